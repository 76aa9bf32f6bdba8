//! The steps of a transformer block, forward and backward.
//!
//! Shape suffixes: b batch, l tokens, c width, h heads, d head size.

use super::{Buffers, Slot};
use crate::ScaleSchedule;

/// Dimensions of [`TransformerOps::linear`]: `y[rows, outputs] = x[rows, inputs]·Wᵀ + bias`.
#[derive(Clone, Copy, Debug)]
pub struct LinearDims {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
}

/// Weight `[outputs, inputs]` and bias `[outputs]` of a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Row-major `[outputs, inputs]`, as published.
    pub weight: Slot,
    /// `[outputs]`, where the layer has one.
    pub bias: Option<Slot>,
}

impl Linear {
    /// The layer without its bias: for [`TransformerOps::linear_backward_weight`] where the op that
    /// wrote `dy` has already added to the bias gradient.
    #[must_use]
    pub const fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }
}

/// Dimensions of a token tensor `x[b, l, c]`.
#[derive(Clone, Copy, Debug)]
pub struct TokenDims {
    /// Samples B.
    pub batch: usize,
    /// Tokens L of each sample.
    pub tokens: usize,
    /// Width C.
    pub width: usize,
}

impl TokenDims {
    /// B·L·C; saturates at `usize::MAX`, which no buffer holds.
    pub const fn len(self) -> usize {
        self.rows().saturating_mul(self.width)
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// B·L, saturating.
    pub const fn rows(self) -> usize {
        self.batch.saturating_mul(self.tokens)
    }
}

/// Where a sample's modulation vectors lie in the matrix `ada[b, stride]` of all ada-linear outputs.
///
/// Each is a column offset; the vector is `ada[b, offset..offset + C]`.
#[derive(Clone, Copy, Debug)]
pub struct Modulation {
    /// Columns of `ada`.
    pub stride: usize,
    /// Offset of the scale s in `LN(x)·(1+s)+b`.
    pub scale: usize,
    /// Offset of the shift b.
    pub shift: usize,
}

/// The branch that [`TransformerOps::residual_norm`] adds to the residual stream.
pub struct Branch<'a, B: Buffers + ?Sized> {
    /// Output of attention or FFN, `[b, l, c]`.
    pub value_blc: &'a B::Activation,
    /// Column offset of the gate γ in `ada`.
    pub gate: usize,
    /// Drop path: the factor of each sample, 0 or 1/(1−p), as a buffer and the offset at which
    /// `[b]` begins in it; `None` means 1.
    pub keep: Option<(&'a B::Accum, usize)>,
}

impl<B: Buffers + ?Sized> Clone for Branch<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Buffers + ?Sized> Copy for Branch<'_, B> {}

/// What a norm saw, as passed to its backward.
pub enum Seen<'a, B: Buffers + ?Sized> {
    /// The sum, `[b, l, c]`, as it was kept; x where there was no branch.
    Sum(&'a B::Activation),
    /// What the branch was added to, `[b, l, c]`. The backward adds the branch again, which gives
    /// the bits of the sum.
    Before(&'a B::Activation),
}

/// Whether the buffer already holds a gradient: for the residual stream, that of later layers; for
/// a weight, that of earlier passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The buffer's contents do not matter; it is overwritten.
    Overwrite,
    /// The buffer holds a gradient; the op adds to it.
    Accumulate,
}

/// Dimensions of block-causal attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDims {
    /// Samples B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Head size D; the width is H·D.
    pub head_dim: usize,
    /// The schedule; tokens of scale i see all tokens of scales 0..=i.
    pub schedule: ScaleSchedule,
}

/// Parameters of L2-normalised attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSlots {
    /// Bias of q, `[C]`.
    pub q_bias: Slot,
    /// Bias of v, `[C]`; k has none.
    pub v_bias: Slot,
    /// Logarithm of each head's scale, `[H]`; clamped at ln 100.
    pub scale_mul: Slot,
}

/// ln 100, taken in f32 as the published implementation does: the ceiling of `scale_mul`.
pub const SCALE_MUL_MAX: f64 = 4.605_170_249_938_965;
/// The least L2 norm that a vector is divided by, as published: the norm is `max(‖v‖, NORMALIZE_EPS)`.
pub const NORMALIZE_EPS: f64 = 1e-12;

/// Linear, norms, attention and activations.
///
/// Each forward has its backward, and neither has a default body.
pub trait TransformerOps: Buffers {
    /// `y = x·Wᵀ + bias`.
    ///
    /// Each row of y depends only on the same row of x, to the bit, and not on how many rows there
    /// are.
    ///
    /// # Errors
    /// A shape error; a device fault may surface here or later. The same holds for all methods
    /// below.
    fn linear(
        &self,
        dims: LinearDims,
        x: &Self::Activation,
        params: &Self::Params,
        layer: Linear,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// `dx = dy·W`.
    fn linear_backward_input(
        &self,
        dims: LinearDims,
        dy: &Self::Activation,
        params: &Self::Params,
        layer: Linear,
        dx: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// `dW = dyᵀ·x`, or `+=` where `write` says so, and `dbias += Σ dy`.
    ///
    /// The first gradient of a step overwrites: nearly all of a model's parameters are weights of
    /// layers, and this way no zeros need to be written and read for them.
    fn linear_backward_weight(
        &self,
        dims: LinearDims,
        dy: &Self::Activation,
        x: &Self::Activation,
        layer: Linear,
        write: Write,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// `x += keep_b·γ_b·branch` (where there is a branch), then `y = LN(x)·(1+s_b) + b_b`.
    ///
    /// LN has no affine parameters, `eps` 1e-6; `stats` receives mean and 1/σ of each row, `[b, l, 2]`.
    /// `sum_blc` receives the new x; without a branch it is not touched.
    fn residual_norm(
        &self,
        dims: TokenDims,
        eps: f64,
        x_blc: &Self::Activation,
        branch: Option<Branch<'_, Self>>,
        ada: &Self::Activation,
        modulation: Modulation,
        sum_blc: &mut Self::Activation,
        y_blc: &mut Self::Activation,
        stats: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
    /// Computes the y of [`TransformerOps::residual_norm`] again, to the bit, from its saved
    /// statistics and either its x and branch, or the sum without a branch.
    ///
    /// This lets a trainer keep one tensor per norm instead of two, and one sum for two norms.
    fn renorm(
        &self,
        dims: TokenDims,
        x_blc: &Self::Activation,
        branch: Option<Branch<'_, Self>>,
        stats: &Self::Accum,
        ada: &Self::Activation,
        modulation: Modulation,
        y_blc: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TransformerOps::residual_norm`].
    ///
    /// `seen` is what the norm saw: gradients have the same bits whether it was kept or is added up
    /// again. On entry, `dx_blc` holds the gradient of the sum from later layers (see `write`); on
    /// return, it holds the gradient of x. With a branch, `dbranch_blc` receives its gradient. The
    /// columns scale, shift (and gate) of `d_ada` are overwritten; its other columns are not
    /// touched.
    ///
    /// `bias[c]`, which can be given only with a branch, is the bias of the layer that made the
    /// branch: `dbias += Σ dbranch` over all rows, summed either as stored or before rounding for
    /// storage, so that [`TransformerOps::linear_backward_weight`] need not read dbranch for it
    /// (see [`Linear::without_bias`]).
    fn residual_norm_backward(
        &self,
        dims: TokenDims,
        dy_blc: &Self::Activation,
        seen: Seen<'_, Self>,
        stats: &Self::Accum,
        branch: Option<Branch<'_, Self>>,
        ada: &Self::Activation,
        modulation: Modulation,
        bias: Option<Slot>,
        write: Write,
        dx_blc: &mut Self::Activation,
        dbranch_blc: Option<&mut Self::Activation>,
        d_ada: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// L2-normalised, block-causal attention; masked blocks are never computed.
    ///
    /// `qkv[b, l, 3, h, d]` does not include the biases; in place, q becomes
    /// `exp(min(scale_mul_h, ln 100))·(q+q_bias)/‖q+q_bias‖`, k becomes `k/‖k‖` and v becomes
    /// `v+v_bias`. `inverse_norms` receives 1/‖·‖ of q and of k, `[b, l, 2, h]`; `lse` receives the
    /// log-sum-exp of each row of scores, `[b, h, l]`; `out` is `[b, l, h, d]`. Norms are clamped
    /// from below at [`NORMALIZE_EPS`].
    fn attention(
        &self,
        dims: AttentionDims,
        qkv: &mut Self::Activation,
        params: &Self::Params,
        slots: AttentionSlots,
        inverse_norms: &mut Self::Accum,
        lse: &mut Self::Accum,
        out: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TransformerOps::attention`], from what it left in `qkv`, `inverse_norms`,
    /// `lse` and `out`; `dqkv` is the gradient of the qkv that was passed in.
    fn attention_backward(
        &self,
        dims: AttentionDims,
        d_out: &Self::Activation,
        out: &Self::Activation,
        qkv: &Self::Activation,
        inverse_norms: &Self::Accum,
        lse: &Self::Accum,
        params: &Self::Params,
        slots: AttentionSlots,
        dqkv: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// `y = gelu(x)`, tanh form: `½x(1+tanh(√(2/π)(x+0.044715x³)))`.
    fn gelu(
        &self,
        len: usize,
        x: &Self::Activation,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// In place: `dy[rows, columns]` becomes `dx = dy·gelu'(x)`.
    ///
    /// `bias[columns]`, if given, is the bias of the layer that made x: `dbias += Σ dx` over rows,
    /// summed either as stored or before rounding for storage, so that
    /// [`TransformerOps::linear_backward_weight`] need not read dx for it (see
    /// [`Linear::without_bias`]).
    fn gelu_backward(
        &self,
        rows: usize,
        columns: usize,
        x: &Self::Activation,
        bias: Option<Slot>,
        dy_to_dx: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
    /// [`TransformerOps::gelu`] again together with [`TransformerOps::gelu_backward`], both in
    /// place: `x` becomes `y`, `dy` becomes `dx`.
    ///
    /// This lets a trainer that keeps only x read it once.
    fn regelu_backward(
        &self,
        rows: usize,
        columns: usize,
        bias: Option<Slot>,
        x_to_y: &mut Self::Activation,
        dy_to_dx: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// `y = x·σ(x)`.
    fn silu(
        &self,
        len: usize,
        x: &Self::Activation,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// In place: `dy` becomes `dx = dy·silu'(x)`.
    fn silu_backward(
        &self,
        len: usize,
        x: &Self::Activation,
        dy_to_dx: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
}
