//! The layers of a chain: where their parameters lie and what their backward needs.

mod attention;
mod pass;
mod residual;

pub(super) use attention::AttentionBlock;
pub(super) use pass::{Backward, ConvLayer, Forward};
pub(super) use residual::ResidualBlock;

use super::network::{Gradients, Saved};
use sar_math::backend::{GroupNorm, MapDims, ShapeError, TokenizerOps, Write};

/// One layer of a chain.
#[derive(Clone, Debug)]
pub(super) enum Layer {
    Conv(ConvLayer),
    Residual(ResidualBlock),
    Attention(AttentionBlock),
    /// Nearest-neighbour upsampling by 2, then a convolution.
    Upsample(ConvLayer),
    /// Norm and SiLU, then a convolution.
    Out(GroupNorm, ConvLayer),
}

/// Lengths of the maps and of the statistics that a layer keeps.
pub(super) type Kept = (Vec<usize>, Vec<usize>);

fn doubled(x: MapDims) -> MapDims {
    MapDims { height: 2 * x.height, width: 2 * x.width, ..x }
}

fn with_channels(x: MapDims, channels: usize) -> MapDims {
    MapDims { channels, ..x }
}

fn stats_of(norm: &GroupNorm, x: MapDims) -> usize {
    x.batch * norm.groups * 2
}

impl Layer {
    /// Returns the dimensions of the layer's output.
    pub(super) fn output(&self, x: MapDims) -> MapDims {
        match self {
            Self::Conv(conv) | Self::Out(_, conv) => conv.output(x),
            Self::Residual(block) => with_channels(x, block.conv2.outputs),
            Self::Attention(_) => x,
            Self::Upsample(conv) => conv.output(doubled(x)),
        }
    }

    /// Returns what the layer keeps for an input of these dimensions.
    pub(super) fn kept(&self, x: MapDims) -> Kept {
        match self {
            Self::Conv(_) => (vec![], vec![]),
            Self::Upsample(_) => (vec![doubled(x).len()], vec![]),
            Self::Out(norm, _) => (vec![x.len()], vec![stats_of(norm, x)]),
            Self::Residual(block) => block.kept(x),
            Self::Attention(block) => block.kept(x),
        }
    }

    /// Computes `y` from `x`, keeping in `saved` what the backward needs.
    pub(super) fn forward<B: TokenizerOps>(
        &self,
        pass: &Forward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &mut Saved<B>,
        y: &mut B::Activation,
    ) -> Result<(), B::Error> {
        match (self, &mut saved.maps[..], &mut saved.stats[..]) {
            (Self::Residual(block), ..) => block.forward(pass, dims, x, saved, y),
            (Self::Attention(block), ..) => block.forward(pass, dims, x, saved, y),
            (Self::Conv(layer), ..) => pass.conv(layer, dims, x, y),
            (Self::Upsample(layer), [up, ..], _) => {
                pass.backend.upsample_nearest(dims, x, up)?;
                pass.conv(layer, doubled(dims), up, y)
            }
            (Self::Out(norm, layer), [a, ..], [stats, ..]) => {
                pass.norm(*norm, dims, x, a, stats)?;
                pass.conv(layer, dims, a, y)
            }
            _ => Err(too_few("trace")),
        }
    }

    /// Replaces the gradient of y in `space.current` by that of x. A convolution does so only if
    /// the gradient of its input is asked for, which it need not be at the beginning of a chain.
    pub(super) fn backward<B: TokenizerOps>(
        &self,
        pass: &mut Backward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &Saved<B>,
        input_gradient: bool,
        space: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        match (self, &saved.maps[..], &saved.stats[..]) {
            (Self::Residual(block), ..) => block.backward(pass, dims, x, saved, space),
            (Self::Attention(block), ..) => block.backward(pass, dims, x, saved, space),
            (Self::Conv(layer), ..) => {
                let Gradients { current, other, .. } = space;
                pass.conv(layer, dims, current, x, input_gradient.then_some(&mut *other))?;
                core::mem::swap(current, other);
                Ok(())
            }
            (Self::Upsample(layer), [up, ..], _) => {
                let Gradients { current, inner: [dup, ..], .. } = space;
                pass.conv(layer, doubled(dims), current, up, Some(dup))?;
                pass.backend.upsample_nearest_backward(dims, dup, current)
            }
            (Self::Out(norm, layer), [a, ..], [stats, ..]) => {
                let Gradients { current, inner: [da, ..], .. } = space;
                pass.conv(layer, dims, current, a, Some(da))?;
                pass.norm(*norm, dims, da, (x, stats), Write::Overwrite, current)
            }
            _ => Err(too_few("trace")),
        }
    }
}

/// Returns the error for a trace made for another tokenizer.
pub(super) fn too_few<E: From<ShapeError>>(operand: &'static str) -> E {
    ShapeError { op: "tokenizer", operand, expected: 1, found: 0 }.into()
}
