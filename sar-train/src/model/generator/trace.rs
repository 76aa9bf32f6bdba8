//! Memory of a forward pass: what its backward needs, and scratch.

use super::{Generator, Places};
use sar_math::backend::{Backend, Buffers, Slot, Write};
use std::fmt;
use std::str::FromStr;

/// What a backward pass computes again instead of keeping it: memory against time.
///
/// Gradients have the same bits whichever is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Everything is kept: 18 tensors of the width a block.
    Nothing,
    /// Norm outputs, GELU and the residual sum in the middle of a block, which cost next to nothing: 11
    /// tensors a block.
    #[default]
    Norms,
    /// Whole blocks from their input, a third more work: 1 tensor a block.
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
/// Kept per block are its input, the normalised q, k, v, the attention output, the branch outputs and
/// the hidden layer before GELU; more or less of it as [`Recompute`] says. What is not kept shares one
/// buffer among the blocks.
pub struct Trace<B: Buffers> {
    pub(crate) recompute: Recompute,
    pub(crate) max_batch: usize,
    pub(crate) max_tokens: usize,
    /// Class vectors `[b, c]` and SiLU of them.
    pub(crate) cond: B::Activation,
    pub(crate) silu_cond: B::Activation,
    /// All modulation vectors `[b, (6d+2)c]`.
    pub(crate) ada: B::Activation,
    pub(crate) pos_lc: B::Activation,
    pub(crate) places: Option<Places<B>>,
    /// What norm n saw, `[b, l, c]`, at [`Trace::sum_of`].
    pub(crate) sums: Vec<B::Activation>,
    pub(crate) stats: Vec<B::Accum>,
    /// What branch n added, `[b, l, c]`, at [`Trace::branch_of`].
    pub(crate) branches: Vec<B::Activation>,
    /// Of block i at [`Trace::block`]; likewise the four below.
    pub(crate) qkv: Vec<B::Activation>,
    pub(crate) inverse_norms: Vec<B::Accum>,
    pub(crate) lse: Vec<B::Accum>,
    pub(crate) attended: Vec<B::Activation>,
    pub(crate) hidden: Vec<B::Activation>,
    /// Output of norm n at [`Trace::normed_of`].
    pub(crate) normed: Vec<B::Activation>,
    /// GELU's of block i, where it is kept.
    pub(crate) activated: Vec<B::Activation>,
    /// GELU's output in a forward, where it is not kept; in a backward the gradient of the hidden layer or
    /// of qkv. Never two of them at once.
    pub(crate) wide: B::Activation,
}

impl<B: Backend> Trace<B> {
    /// Room for `batch` samples of `tokens` tokens.
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
            cond: backend.activation(batch * c)?,
            silu_cond: backend.activation(batch * c)?,
            ada: backend.activation(batch * generator.ada_stride())?,
            pos_lc: backend.activation(tokens * c)?,
            places: generator.places(backend, tokens)?,
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

    /// The last norm's output of the last forward, `[b, l, c]`, until the backward begins.
    pub fn output(&self) -> &B::Activation {
        &self.normed[self.normed_of(self.stats.len() - 1)]
    }

    /// Where block i keeps what is its own.
    pub(crate) fn block(&self, i: usize) -> usize {
        if self.recompute == Recompute::Blocks { 0 } else { i }
    }

    /// Where the sum that norm n saw is; where it is not kept, the one in the middle of a block is
    /// shared by them all and stands last.
    pub(crate) fn sum_of(&self, norm: usize) -> usize {
        match self.recompute {
            Recompute::Nothing => norm,
            _ if norm % 2 == 1 => self.sums.len() - 1,
            _ => norm / 2,
        }
    }

    /// Whether the sum that norm n saw is there in the backward, or to be added up again.
    pub(crate) fn keeps_sum(&self, norm: usize) -> bool {
        // A block that was computed again has made its own.
        self.recompute != Recompute::Norms || norm.is_multiple_of(2)
    }

    /// Where the output of branch n is.
    pub(crate) fn branch_of(&self, branch: usize) -> usize {
        if self.recompute == Recompute::Blocks { branch % 2 } else { branch }
    }

    /// Where the output of norm n is.
    pub(crate) fn normed_of(&self, norm: usize) -> usize {
        if self.recompute == Recompute::Nothing { norm } else { 0 }
    }
}

/// How many tensors of each kind a trace holds.
pub(crate) struct Counts {
    /// Of q, k, v, of attention's output and of the hidden layer.
    pub(crate) blocks: usize,
    pub(crate) sums: usize,
    pub(crate) branches: usize,
    pub(crate) normed: usize,
    pub(crate) activated: usize,
}

impl Recompute {
    /// The counts of a generator of `depth` blocks.
    pub(crate) const fn counts(self, depth: usize) -> Counts {
        let all = Counts {
            blocks: depth,
            sums: 2 * depth + 1,
            branches: 2 * depth,
            normed: 2 * depth + 1,
            activated: depth,
        };
        // Every block's input and the last sum; one sum in the middle of a block.
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
    /// Parameter gradients, in the generator's layout; they accumulate from [`Gradients::begin`] on.
    pub params: B::Accum,
    /// Whether the weights of the head, and those of the blocks and of modulation, have gradients of this step.
    pub(crate) head: Write,
    pub(crate) blocks: Write,
    /// What the first pass of a step adds to: all but the weights of layers, which it overwrites.
    added_to: Vec<Slot>,
}

impl<B: Backend> Gradients<B> {
    /// Room for the backward of `batch` samples of `tokens` tokens.
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
            // They are zeros.
            head: Write::Accumulate,
            blocks: Write::Accumulate,
            added_to: between(generator.weights_of_layers(), generator.layout().len()),
        })
    }

    /// Begins a step, of gradients of nothing.
    ///
    /// # Errors
    /// A device fault.
    pub fn begin(&mut self, backend: &B) -> Result<(), B::Error> {
        (self.head, self.blocks) = (Write::Overwrite, Write::Overwrite);
        let mut slots = self.added_to.iter();
        slots.try_for_each(|slot| backend.zero_accum(&mut self.params, slot.offset, slot.len))
    }
}

/// What of `len` elements lies in none of these, in ascending order.
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
