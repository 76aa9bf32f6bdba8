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

/// Tensors begin at multiples of so many elements: a cache line of f32, and in bf16 the 16 bytes that vector
/// loads and cuBLASLt's fastest algorithms want.
const ALIGNMENT: usize = 16;

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

    /// Appends a tensor and says where it lies. Elements between tensors belong to none: they are zero, as
    /// are their gradients.
    ///
    /// Decay follows the published rule: none on 1-D tensors, biases, positions and `scale_mul`.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        let name = name.into();
        let offset = self.len.next_multiple_of(ALIGNMENT);
        let slot = Slot { offset, len: shape.iter().product() };
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

    /// Elements of all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.slot.len).sum()
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Slots with (`true`) or without weight decay; neighbours are merged, with
    /// what lies between them.
    pub fn slots(&self, decay: bool) -> Vec<Slot> {
        let mut merged: Vec<Slot> = Vec::new();
        for t in self.tensors.iter().filter(|t| t.decay == decay) {
            match merged.last_mut() {
                Some(last) if last.end().next_multiple_of(ALIGNMENT) == t.slot.offset => {
                    last.len = t.slot.end() - last.offset;
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_aligned_and_apart_and_slots_cover_them() {
        let mut layout = Layout::new();
        for (name, shape) in [
            ("a.weight", &[3, 5][..]),
            ("b.weight", &[16, 2]),
            ("b.bias", &[7]),
            ("scale_mul", &[1]),
            ("c.weight", &[2, 2]),
        ] {
            layout.push(name, shape);
        }
        let mut end = 0;
        for t in layout.tensors() {
            assert!(t.slot.offset.is_multiple_of(ALIGNMENT), "{}", t.name);
            assert!(t.slot.offset >= end, "{}", t.name);
            end = t.slot.end();
        }
        assert_eq!((layout.parameters(), layout.len()), (15 + 32 + 7 + 1 + 4, 84));
        let range = |slot: &Slot| (slot.offset, slot.end());
        assert_eq!(layout.slots(true).iter().map(range).collect::<Vec<_>>(), [(0, 48), (80, 84)]);
        assert_eq!(layout.slots(false).iter().map(range).collect::<Vec<_>>(), [(48, 65)]);
    }
}
