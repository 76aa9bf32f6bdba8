//! Named tensors of a model and their places in its flat parameter buffer.

use sar_math::backend::Slot;
use std::collections::HashMap;

/// One named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The published name: `blocks.0.attn.mat_qkv.weight`.
    pub name: String,
    /// The published shape.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub slot: Slot,
    /// Whether weight decay applies to it.
    pub decay: bool,
}

/// The order in which a model's tensors fill its flat buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// An empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a tensor and says where it lies.
    ///
    /// Decay follows the published rule: none on 1-D tensors, biases, positions and `scale_mul`.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        let name = name.into();
        let slot = Slot { offset: self.len, len: shape.iter().product() };
        self.len = slot.end();
        let decay = decays(&name, shape);
        self.by_name.insert(name.clone(), self.tensors.len());
        self.tensors.push(Tensor { name, shape: shape.to_vec(), slot, decay });
        slot
    }

    /// The tensors in buffer order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Slots with (`true`) or without weight decay; neighbours are merged.
    pub fn slots(&self, decay: bool) -> Vec<Slot> {
        let mut merged: Vec<Slot> = Vec::new();
        for t in self.tensors.iter().filter(|t| t.decay == decay) {
            match merged.last_mut() {
                Some(last) if last.end() == t.slot.offset => last.len += t.slot.len,
                _ => merged.push(t.slot),
            }
        }
        merged
    }
}

fn decays(name: &str, shape: &[usize]) -> bool {
    let matrix = shape.iter().filter(|&&n| n > 1).count() > 1;
    matrix
        && !name.ends_with("bias")
        && !["pos_1LC", "pos_start", "scale_mul"].iter().any(|s| name.contains(s))
}
