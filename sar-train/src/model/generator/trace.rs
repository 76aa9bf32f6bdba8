//! Memory of a forward pass: what its backward needs, and scratch.

use super::{Generator, layout::MLP_RATIO};
use sar_math::backend::{Backend, Buffers};

/// Everything a pass writes, allocated once for the longest schedule and the largest batch.
///
/// Kept per block are the residual sums, the normalised q, k, v, the attention output, the branch
/// outputs and the hidden layer before GELU; norm outputs and GELU are computed again in the backward.
pub struct Trace<B: Buffers> {
    pub(crate) max_batch: usize,
    pub(crate) max_tokens: usize,
    /// Class vectors `[b, c]` and SiLU of them.
    pub(crate) cond: B::Activation,
    pub(crate) silu_cond: B::Activation,
    /// All modulation vectors `[b, (6d+2)c]`.
    pub(crate) ada: B::Activation,
    pub(crate) pos_lc: B::Activation,
    /// What norm n saw, `[b, l, c]`; 2·depth + 1 of them.
    pub(crate) sums: Vec<B::Activation>,
    pub(crate) stats: Vec<B::Accum>,
    /// What branch n added, `[b, l, c]`; 2·depth of them.
    pub(crate) branches: Vec<B::Activation>,
    pub(crate) qkv: Vec<B::Activation>,
    pub(crate) inverse_norms: Vec<B::Accum>,
    pub(crate) lse: Vec<B::Accum>,
    pub(crate) attended: Vec<B::Activation>,
    pub(crate) hidden: Vec<B::Activation>,
    /// Scratch: a norm's output, GELU's output.
    pub(crate) normed: B::Activation,
    pub(crate) activated: B::Activation,
    /// Logits `[b, l, v]`; the loss turns them into their gradient.
    pub logits: B::Activation,
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
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let (d, c, rows) = (g.depth, g.width, batch * tokens);
        let many = |n: usize, len: usize| -> Result<Vec<B::Activation>, B::Error> {
            (0..n).map(|_| backend.activation(len)).collect()
        };
        let accums = |n: usize, len: usize| -> Result<Vec<B::Accum>, B::Error> {
            (0..n).map(|_| backend.accum(len)).collect()
        };
        Ok(Self {
            max_batch: batch,
            max_tokens: tokens,
            cond: backend.activation(batch * c)?,
            silu_cond: backend.activation(batch * c)?,
            ada: backend.activation(batch * generator.ada_stride())?,
            pos_lc: backend.activation(tokens * c)?,
            sums: many(2 * d + 1, rows * c)?,
            stats: accums(2 * d + 1, rows * 2)?,
            branches: many(2 * d, rows * c)?,
            qkv: many(d, rows * 3 * c)?,
            inverse_norms: accums(d, rows * 2 * g.heads)?,
            lse: accums(d, rows * g.heads)?,
            attended: many(d, rows * c)?,
            hidden: many(d, rows * MLP_RATIO * c)?,
            normed: backend.activation(rows * c)?,
            activated: backend.activation(rows * MLP_RATIO * c)?,
            logits: backend.activation(rows * g.vocab)?,
        })
    }
}

/// Scratch of a backward pass, and the gradients that do not belong to parameters.
pub struct Gradients<B: Buffers> {
    pub(crate) dx: B::Activation,
    pub(crate) dy: B::Activation,
    pub(crate) dbranch: B::Activation,
    /// Gradient of the hidden layer or of qkv: never both at once.
    pub(crate) wide: B::Activation,
    pub(crate) d_ada: B::Activation,
    pub(crate) dcond: B::Activation,
    pub(crate) dpos: B::Activation,
    /// Parameter gradients, in the generator's layout; they accumulate.
    pub params: B::Accum,
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
            wide: backend.activation(rows * MLP_RATIO * c)?,
            d_ada: backend.activation(batch * generator.ada_stride())?,
            dcond: backend.activation(batch * c)?,
            dpos: backend.activation(tokens * c)?,
            params: backend.accum(generator.layout().len())?,
        })
    }
}
