//! Memory of a forward pass: what its backward needs, and scratch.

use super::{Conditioning, Generator};
use sar_math::backend::{Backend, Buffers, Slot, Write};
use std::fmt;
use std::str::FromStr;

/// What a backward pass recomputes instead of keeping it, trading time for memory.
///
/// The choice does not change a bit of the gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing: 18 tensors of the model's width are kept per block.
    Nothing,
    /// Norm outputs, GELU and the residual sum in the middle of a block, which cost next to
    /// nothing: 11 tensors are kept per block.
    #[default]
    Norms,
    /// Whole blocks from their input, which takes a third more time: 1 tensor is kept per block.
    Blocks,
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Norms => "norms",
            Self::Blocks => "blocks",
        })
    }
}

impl FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "nothing" => Ok(Self::Nothing),
            "norms" => Ok(Self::Norms),
            "blocks" => Ok(Self::Blocks),
            _ => Err(format!(
                "unknown choice `{text}` of what to compute again, expected `nothing`, `norms` or \
                 `blocks`"
            )),
        }
    }
}

/// Everything a pass writes, allocated once for the longest schedule and the largest batch.
///
/// Kept per block are its input, the normalised q, k, v, the attention output, the branch outputs
/// and the hidden layer before GELU, or more or less than that, depending on [`Recompute`]. All
/// blocks share one buffer for what is not kept.
pub struct Trace<B: Buffers> {
    pub(crate) recompute: Recompute,
    pub(crate) max_batch: usize,
    pub(crate) max_tokens: usize,
    pub(crate) conditioning: Conditioning<B>,
    /// Input of norm n, `[b, l, c]`, at [`Trace::sum_of`].
    pub(crate) sums: Vec<B::Activation>,
    pub(crate) stats: Vec<B::Accum>,
    /// Output of branch n, `[b, l, c]`, at [`Trace::branch_of`].
    pub(crate) branches: Vec<B::Activation>,
    /// q, k, v of block i, at [`Trace::block`]; likewise the four below.
    pub(crate) qkv: Vec<B::Activation>,
    pub(crate) inverse_norms: Vec<B::Accum>,
    pub(crate) lse: Vec<B::Accum>,
    pub(crate) attended: Vec<B::Activation>,
    pub(crate) hidden: Vec<B::Activation>,
    /// Output of norm n at [`Trace::normed_of`].
    pub(crate) normed: Vec<B::Activation>,
    /// GELU output of block i, if it is kept.
    pub(crate) activated: Vec<B::Activation>,
    /// In a forward, the GELU output if it is not kept; in a backward, the gradient of the hidden
    /// layer or of qkv. Only one of these at a time.
    pub(crate) wide: B::Activation,
}

impl<B: Backend> Trace<B> {
    /// Allocates memory for `batch` samples of `tokens` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        generator: &Generator,
        batch: usize,
        tokens: usize,
        recompute: Recompute,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let Counts { blocks, sums, branches, normed, activated } = recompute.counts(g.depth);
        let (d, c, rows) = (g.depth, g.width, batch * tokens);
        let many = |n: usize, len: usize| -> Result<Vec<B::Activation>, B::Error> {
            (0..n).map(|_| backend.activation(len)).collect()
        };
        let accums = |n: usize, len: usize| -> Result<Vec<B::Accum>, B::Error> {
            (0..n).map(|_| backend.accum(len)).collect()
        };
        Ok(Self {
            recompute,
            max_batch: batch,
            max_tokens: tokens,
            conditioning: Conditioning::new(backend, generator, batch, tokens)?,
            sums: many(sums, rows * c)?,
            stats: accums(2 * d + 1, rows * 2)?,
            branches: many(branches, rows * c)?,
            qkv: many(blocks, rows * 3 * c)?,
            inverse_norms: accums(blocks, rows * 2 * g.heads)?,
            lse: accums(blocks, rows * g.heads)?,
            attended: many(blocks, rows * c)?,
            hidden: many(blocks, rows * g.mlp_ratio * c)?,
            normed: many(normed, rows * c)?,
            activated: many(activated, rows * g.mlp_ratio * c)?,
            wide: backend.activation(rows * g.widest())?,
        })
    }

    /// Returns the last norm's output of the last forward, `[b, l, c]`; valid until the backward
    /// begins.
    pub fn output(&self) -> &B::Activation {
        &self.normed[self.normed_of(self.stats.len() - 1)]
    }

    /// Index of the tensors that belong to block i.
    pub(crate) fn block(&self, i: usize) -> usize {
        if self.recompute == Recompute::Blocks { 0 } else { i }
    }

    /// Index of the sum that is the input of norm n. If the sums in the middle of blocks are not
    /// kept, all blocks share the last one.
    pub(crate) fn sum_of(&self, norm: usize) -> usize {
        match self.recompute {
            Recompute::Nothing => norm,
            _ if norm % 2 == 1 => self.sums.len() - 1,
            _ => norm / 2,
        }
    }

    /// Whether the input of norm n is available in the backward; otherwise it has to be added up
    /// again.
    pub(crate) fn keeps_sum(&self, norm: usize) -> bool {
        // Recomputing a block has also recomputed its sum.
        self.recompute != Recompute::Norms || norm.is_multiple_of(2)
    }

    /// Index of the output of branch n.
    pub(crate) fn branch_of(&self, branch: usize) -> usize {
        if self.recompute == Recompute::Blocks { branch % 2 } else { branch }
    }

    /// Index of the output of norm n.
    pub(crate) fn normed_of(&self, norm: usize) -> usize {
        if self.recompute == Recompute::Nothing { norm } else { 0 }
    }
}

/// Number of tensors of each kind that a trace holds.
pub(crate) struct Counts {
    /// Tensors of q, k, v, of the attention output and of the hidden layer.
    pub(crate) blocks: usize,
    pub(crate) sums: usize,
    pub(crate) branches: usize,
    pub(crate) normed: usize,
    pub(crate) activated: usize,
}

impl Recompute {
    /// Returns the counts for a generator of `depth` blocks.
    pub(crate) const fn counts(self, depth: usize) -> Counts {
        let all = Counts {
            blocks: depth,
            sums: 2 * depth + 1,
            branches: 2 * depth,
            normed: 2 * depth + 1,
            activated: depth,
        };
        // Every block's input, the last sum, and one shared sum for the middle of a block.
        let norms = Counts { sums: depth + 2, normed: 1, activated: 0, ..all };
        match self {
            Self::Nothing => all,
            Self::Norms => norms,
            Self::Blocks => Counts { blocks: 1, branches: 2, ..norms },
        }
    }
}

/// Scratch of a backward pass, and the gradients that do not belong to parameters.
pub struct Gradients<B: Buffers> {
    pub(crate) dx: B::Activation,
    pub(crate) dy: B::Activation,
    pub(crate) dbranch: B::Activation,
    pub(crate) d_ada: B::Activation,
    pub(crate) dcond: B::Activation,
    pub(crate) dpos: B::Activation,
    /// Parameter gradients in the generator's layout, accumulated since [`Gradients::begin`].
    pub params: B::Accum,
    /// Whether the next pass overwrites or adds to the weight gradients of the head, and of the
    /// blocks and modulation.
    pub(crate) head: Write,
    pub(crate) blocks: Write,
    /// Slots that the first pass of a step adds to: all but the weights of layers, which it
    /// overwrites.
    added_to: Vec<Slot>,
}

impl<B: Backend> Gradients<B> {
    /// Allocates memory for the backward of `batch` samples of `tokens` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        generator: &Generator,
        batch: usize,
        tokens: usize,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let (c, rows) = (g.width, batch * tokens);
        Ok(Self {
            dx: backend.activation(rows * c)?,
            dy: backend.activation(rows * c)?,
            dbranch: backend.activation(rows * c)?,
            d_ada: backend.activation(batch * generator.ada_stride())?,
            dcond: backend.activation(batch * c)?,
            dpos: backend.activation(tokens * c)?,
            params: backend.accum(generator.layout().len())?,
            // New buffers are zero.
            head: Write::Accumulate,
            blocks: Write::Accumulate,
            added_to: between(generator.weights_of_layers(), generator.layout().len()),
        })
    }

    /// Begins a step with empty gradients.
    ///
    /// # Errors
    /// A device fault.
    pub fn begin(&mut self, backend: &B) -> Result<(), B::Error> {
        (self.head, self.blocks) = (Write::Overwrite, Write::Overwrite);
        let mut slots = self.added_to.iter();
        slots.try_for_each(|slot| backend.zero_accum(&mut self.params, slot.offset, slot.len))
    }
}

/// Returns the gaps that `taken` leaves in `0..len`, in ascending order.
fn between(mut taken: Vec<Slot>, len: usize) -> Vec<Slot> {
    taken.sort_by_key(|slot| slot.offset);
    let mut free = Vec::new();
    let mut end = 0;
    for slot in taken.into_iter().chain([Slot { offset: len, len: 0 }]) {
        if end < slot.offset {
            free.push(Slot { offset: end, len: slot.offset - end });
        }
        end = slot.end();
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_is_all_that_is_not_taken() {
        let slot = |offset, len| Slot { offset, len };
        assert_eq!(between(vec![slot(4, 2), slot(0, 3), slot(6, 1)], 9), [slot(3, 1), slot(7, 2)]);
        assert_eq!(between(vec![slot(1, 2)], 3), [slot(0, 1)]);
        assert_eq!(between(Vec::new(), 2), [slot(0, 2)]);
        assert_eq!(between(vec![slot(0, 2)], 2), []);
    }
}
