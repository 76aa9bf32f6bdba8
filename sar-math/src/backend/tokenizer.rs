//! Convolutions and vector quantisation of the tokenizer, forward and backward.
//!
//! Images and maps are `[b, channels, height, width]`.

use super::{Buffers, Slot, Write};

/// Dimensions of [`TokenizerOps::conv2d`] with a square kernel.
#[derive(Clone, Copy, Debug)]
pub struct ConvDims {
    /// Samples B.
    pub batch: usize,
    /// Channels of x.
    pub inputs: usize,
    /// Channels of y.
    pub outputs: usize,
    /// Rows of x.
    pub height: usize,
    /// Columns of x.
    pub width: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros before the first row and column.
    pub pad_before: usize,
    /// Zeros after the last row and column.
    pub pad_after: usize,
}

impl ConvDims {
    /// Rows and columns of y. Both are 0 where the stride is 0, and a side is 0 where the kernel is
    /// larger than the padded map; `checks::conv` distinguishes these errors.
    pub const fn output(self) -> (usize, usize) {
        (self.along(self.height), self.along(self.width))
    }

    /// Number of outputs along a side of `side` elements.
    const fn along(self, side: usize) -> usize {
        let padded = side.saturating_add(self.pad_before).saturating_add(self.pad_after);
        match padded.checked_sub(self.kernel) {
            Some(room) if self.stride > 0 => (room / self.stride).saturating_add(1),
            _ => 0,
        }
    }
}

/// Weight `[outputs, inputs, kernel, kernel]` and bias `[outputs]` of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// `[outputs, inputs, kernel, kernel]`, as published.
    pub weight: Slot,
    /// `[outputs]`.
    pub bias: Slot,
}

/// Dimensions of a map `[b, c, h, w]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapDims {
    /// Samples B.
    pub batch: usize,
    /// Channels C.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl MapDims {
    /// Number of elements; saturates at `usize::MAX`, which no buffer holds.
    pub const fn len(self) -> usize {
        let maps = self.batch.saturating_mul(self.channels);
        maps.saturating_mul(self.height).saturating_mul(self.width)
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Group norm: affine, over `channels/groups` channels and all positions of a sample.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Scale `[c]`.
    pub weight: Slot,
    /// Shift `[c]`.
    pub bias: Slot,
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Added under the root, 1e-6 as published.
    pub eps: f64,
    /// Whether a fused SiLU follows.
    pub silu: bool,
}

/// Weights of the quantiser's two losses.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeWeights {
    /// Weight of `mean‖sg(ẑ)−e‖²`, which moves the codebook.
    pub codebook: f64,
    /// Weight of `mean‖ẑ−sg(e)‖²`, which moves the encoder.
    pub commitment: f64,
}

/// The tokenizer's layers, forward and backward.
pub trait TokenizerOps: Buffers {
    /// Two-dimensional convolution (cross-correlation) with bias.
    ///
    /// # Errors
    /// A shape error; the same holds for all methods below.
    fn conv2d(
        &self,
        dims: ConvDims,
        x: &Self::Activation,
        params: &Self::Params,
        layer: Conv,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TokenizerOps::conv2d`]: `dx`, if asked for, is overwritten; weight and bias
    /// gradients accumulate.
    fn conv2d_backward(
        &self,
        dims: ConvDims,
        dy: &Self::Activation,
        x: &Self::Activation,
        params: &Self::Params,
        layer: Conv,
        dx: Option<&mut Self::Activation>,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// Group norm, followed by SiLU where the layer says so. `stats[b, groups, 2]` receives mean
    /// and 1/σ.
    fn group_norm(
        &self,
        dims: MapDims,
        x: &Self::Activation,
        params: &Self::Params,
        layer: GroupNorm,
        y: &mut Self::Activation,
        stats: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TokenizerOps::group_norm`]; `write` says whether `dx` is overwritten or added to.
    fn group_norm_backward(
        &self,
        dims: MapDims,
        dy: &Self::Activation,
        x: &Self::Activation,
        stats: &Self::Accum,
        params: &Self::Params,
        layer: GroupNorm,
        write: Write,
        dx: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// Nearest ×2 in both directions; `dims` are those of x.
    fn upsample_nearest(
        &self,
        dims: MapDims,
        x: &Self::Activation,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Sums each 2×2 block of dy; `dims` are those of x.
    fn upsample_nearest_backward(
        &self,
        dims: MapDims,
        dy: &Self::Activation,
        dx: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// One-head attention over all positions: softmax(qᵀk·c^−½)·v. q, k, v and y are maps `[b,c,h,w]`;
    /// `probabilities[b, hw, hw]` is kept for the backward.
    fn spatial_attention(
        &self,
        dims: MapDims,
        q: &Self::Activation,
        k: &Self::Activation,
        v: &Self::Activation,
        probabilities: &mut Self::Activation,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TokenizerOps::spatial_attention`].
    fn spatial_attention_backward(
        &self,
        dims: MapDims,
        dy: &Self::Activation,
        q: &Self::Activation,
        k: &Self::Activation,
        v: &Self::Activation,
        probabilities: &Self::Activation,
        dq: &mut Self::Activation,
        dk: &mut Self::Activation,
        dv: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Adaptive average pooling of a map to `height`×`width`; `dims` are those of x.
    fn area_resize(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        x: &Self::Activation,
        y: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`TokenizerOps::area_resize`].
    fn area_resize_backward(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        dy: &Self::Activation,
        dx: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Straight-through quantisation: each position of z is L2-normalised over its channels to ẑ and
    /// replaced by the nearest L2-normalised row e of the codebook parameter `[vocab, channels]`.
    ///
    /// `ids[b, h, w]`; `distance[0]` receives `mean (ẑ−e)²` over all elements.
    fn vector_quantize(
        &self,
        dims: MapDims,
        vocab: usize,
        z: &Self::Activation,
        params: &Self::Params,
        codebook: Slot,
        ids: &mut Self::Ids,
        quantized: &mut Self::Activation,
        distance: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
    /// `dz` is the gradient of the quantised map passed straight to ẑ, plus the commitment term,
    /// taken back through the normalisation. The codebook's gradient accumulates only the codebook
    /// term, taken back through the codebook's normalisation.
    fn vector_quantize_backward(
        &self,
        dims: MapDims,
        vocab: usize,
        d_quantized: &Self::Activation,
        z: &Self::Activation,
        ids: &Self::Ids,
        params: &Self::Params,
        codebook: Slot,
        weights: QuantizeWeights,
        dz: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// `loss[0] = mean (x−target)²` over `len` elements, and its gradient times `weight` in `dx`.
    fn squared_error(
        &self,
        len: usize,
        x: &Self::Activation,
        target: &Self::Activation,
        weight: f64,
        loss: &mut Self::Accum,
        dx: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
}
