//! Named tensors of a model and their places in its flat parameter buffer.

use sar_math::Real as _;
use sar_math::backend::{Buffers, Slot};
use std::borrow::Cow;
use std::collections::HashMap;

/// A named tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Published name: `blocks.0.attn.mat_qkv.weight`.
    pub name: String,
    /// Published shape.
    pub shape: Vec<usize>,
    /// Place in the flat buffer.
    pub slot: Slot,
    /// Whether weight decay applies to it.
    pub decay: bool,
}

/// Alignment of tensors, or groups of them, in elements: a cache line of f32, and in bf16 more than
/// the 16 bytes that vector loads and cuBLASLt's fastest algorithms need.
pub(crate) const ALIGNMENT: usize = 16;

/// The order in which a model's tensors fill its flat buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// Creates an empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a tensor and returns its place. Padding elements before it belong to no tensor; they
    /// and their gradients are zero.
    ///
    /// Decay follows the published rule: none on 1-D tensors, biases, positions, `lvl_embed` and `scale_mul`.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        self.push_together([(name.into(), shape.to_vec())])
    }

    /// Appends tensors that lie directly one after the other, so that they can be used as one, and
    /// returns the slot that covers all of them.
    pub fn push_together(
        &mut self,
        tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    ) -> Slot {
        let start = self.len.next_multiple_of(ALIGNMENT);
        self.len = start;
        for (name, shape) in tensors {
            let slot = Slot { offset: self.len, len: shape.iter().product() };
            self.len = slot.end();
            let decay = decays(&name, &shape);
            self.by_name.insert(name.clone(), self.tensors.len());
            self.tensors.push(Tensor { name, shape, slot, decay });
        }
        Slot { offset: start, len: self.len - start }
    }

    /// The tensors in buffer order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Returns the tensor with this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Number of elements of all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(|t| t.slot.len).sum()
    }

    /// Number of elements of the flat buffer, including padding between tensors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names the tensors of which not all values are finite; `None` if there are none.
    pub(crate) fn not_finite(&self, values: &[impl sar_math::Real]) -> Option<String> {
        let broken = |tensor: &&Tensor| !values[tensor.slot.range()].iter().all(|v| v.is_finite());
        let mut broken = self.tensors.iter().filter(broken);
        let first = &broken.next()?.name;
        let (others, all) = (broken.count(), self.tensors.len());
        Some(match others {
            0 => format!("of {first}"),
            _ => format!("of {first} and {others} other tensors of {all}"),
        })
    }

    /// Returns the slots with (`true`) or without weight decay. Neighbours are merged, including
    /// the padding between them.
    pub fn slots(&self, decay: bool) -> Vec<Slot> {
        let runs = self.tensors.chunk_by(|a, b| a.decay == b.decay);
        let runs = runs.filter(|run| run[0].decay == decay);
        let covering = |run: &[Tensor]| {
            let (first, last) = (run[0].slot, run[run.len() - 1].slot);
            Slot { offset: first.offset, len: last.end() - first.offset }
        };
        runs.map(covering).collect()
    }
}

fn decays(name: &str, shape: &[usize]) -> bool {
    let matrix = shape.iter().filter(|&&n| n > 1).count() > 1;
    matrix
        && !name.ends_with("bias")
        && !["pos_1LC", "pos_start", "scale_mul", "lvl_embed"].iter().any(|s| name.contains(s))
}

/// Values of a file or of images in the host's number type, without a copy where it is theirs.
pub(crate) fn hosted<B: Buffers>(values: &[f32]) -> Cow<'_, [B::Host]> {
    let converted = || values.iter().map(|&v| B::Host::of(f64::from(v))).collect();
    B::Host::of_singles(values).map_or_else(converted, Cow::Borrowed)
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

    #[test]
    fn tensors_pushed_together_leave_no_gap() {
        let mut layout = Layout::new();
        layout.push("a.bias", &[3]);
        let parts = ["b.bias", "c.bias"].map(|name| (name.to_owned(), vec![5]));
        assert_eq!(layout.push_together(parts), Slot { offset: 16, len: 10 });
        let starts: Vec<usize> = layout.tensors().iter().map(|t| t.slot.offset).collect();
        assert_eq!(starts, [0, 16, 21]);
        assert_eq!(layout.slots(false), [Slot { offset: 0, len: 26 }]);
    }
}
