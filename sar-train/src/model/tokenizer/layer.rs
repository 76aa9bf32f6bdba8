//! The layers of a chain: where their parameters lie and what their backward needs.

use super::network::{Gradients, Saved};
use sar_math::backend::{Conv, ConvDims, GroupNorm, MapDims, TokenizerOps, Write};

/// A convolution and its shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvLayer {
    pub slots: Conv,
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    pub pad_before: usize,
    pub pad_after: usize,
}

impl ConvLayer {
    fn dims(&self, x: MapDims) -> ConvDims {
        ConvDims {
            batch: x.batch,
            inputs: self.inputs,
            outputs: self.outputs,
            height: x.height,
            width: x.width,
            kernel: self.kernel,
            stride: self.stride,
            pad_before: self.pad_before,
            pad_after: self.pad_after,
        }
    }

    fn output(&self, x: MapDims) -> MapDims {
        let (height, width) = self.dims(x).output();
        MapDims { batch: x.batch, channels: self.outputs, height, width }
    }
}

/// x + conv(silu(norm(conv(silu(norm(x)))))), the first x through a 1×1 where channels change.
#[derive(Clone, Debug)]
pub(super) struct ResidualBlock {
    pub norm1: GroupNorm,
    pub conv1: ConvLayer,
    pub norm2: GroupNorm,
    pub conv2: ConvLayer,
    pub nin_shortcut: Option<ConvLayer>,
}

/// x + proj(attention(q, k, v of norm(x))).
#[derive(Clone, Debug)]
pub(super) struct AttentionBlock {
    pub norm: GroupNorm,
    pub qkv: [ConvLayer; 3],
    pub proj_out: ConvLayer,
}

/// One layer of a chain.
#[derive(Clone, Debug)]
pub(super) enum Layer {
    Conv(ConvLayer),
    Residual(ResidualBlock),
    Attention(AttentionBlock),
    /// Nearest ×2, then a convolution.
    Upsample(ConvLayer),
    /// Norm and SiLU, then a convolution.
    Out(GroupNorm, ConvLayer),
}

fn doubled(x: MapDims) -> MapDims {
    MapDims { height: 2 * x.height, width: 2 * x.width, ..x }
}

fn with_channels(x: MapDims, channels: usize) -> MapDims {
    MapDims { channels, ..x }
}

impl Layer {
    /// Dimensions of the layer's output.
    pub(super) fn output(&self, x: MapDims) -> MapDims {
        match self {
            Self::Conv(conv) | Self::Out(_, conv) => conv.output(x),
            Self::Residual(block) => with_channels(x, block.conv2.outputs),
            Self::Attention(_) => x,
            Self::Upsample(conv) => conv.output(doubled(x)),
        }
    }

    /// Lengths of the maps, and numbers of statistics, that the layer keeps.
    pub(super) fn kept(&self, x: MapDims) -> (Vec<usize>, Vec<usize>) {
        let stats = |norm: &GroupNorm| x.batch * norm.groups * 2;
        match self {
            Self::Conv(_) => (vec![], vec![]),
            Self::Upsample(_) => (vec![doubled(x).len()], vec![]),
            Self::Out(norm, _) => (vec![x.len()], vec![stats(norm)]),
            Self::Residual(block) => {
                let out = with_channels(x, block.conv2.outputs).len();
                let shortcut = if block.nin_shortcut.is_some() { out } else { 0 };
                (vec![x.len(), out, out, shortcut], vec![stats(&block.norm1), stats(&block.norm2)])
            }
            Self::Attention(block) => {
                let n = x.height * x.width;
                let len = x.len();
                (vec![len, len, len, len, len, x.batch * n * n], vec![stats(&block.norm)])
            }
        }
    }

    /// `y` from `x`, keeping in `saved` what the backward needs.
    pub(super) fn forward<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: MapDims,
        x: &B::Activation,
        saved: &mut Saved<B>,
        y: &mut B::Activation,
    ) -> Result<(), B::Error> {
        let conv = |layer: &ConvLayer, dims: MapDims, x: &B::Activation, y: &mut B::Activation| {
            backend.conv2d(layer.dims(dims), x, params, layer.slots, y)
        };
        match (self, &mut saved.maps[..], &mut saved.stats[..]) {
            (Self::Conv(layer), ..) => conv(layer, dims, x, y),
            (Self::Upsample(layer), [up, ..], _) => {
                backend.upsample_nearest(dims, x, up)?;
                conv(layer, doubled(dims), up, y)
            }
            (Self::Out(norm, layer), [a, ..], [stats, ..]) => {
                backend.group_norm(dims, x, params, *norm, a, stats)?;
                conv(layer, dims, a, y)
            }
            (Self::Residual(block), [a1, h, a2, shortcut, ..], [stats1, stats2, ..]) => {
                let inner = with_channels(dims, block.conv1.outputs);
                backend.group_norm(dims, x, params, block.norm1, a1, stats1)?;
                conv(&block.conv1, dims, a1, h)?;
                backend.group_norm(inner, h, params, block.norm2, a2, stats2)?;
                conv(&block.conv2, inner, a2, y)?;
                match &block.nin_shortcut {
                    Some(layer) => {
                        conv(layer, dims, x, shortcut)?;
                        backend.add(shortcut, y, inner.len())
                    }
                    None => backend.add(x, y, inner.len()),
                }
            }
            (Self::Attention(block), [a, q, k, v, o, p, ..], [stats, ..]) => {
                backend.group_norm(dims, x, params, block.norm, a, stats)?;
                for (layer, to) in block.qkv.iter().zip([&mut *q, &mut *k, &mut *v]) {
                    conv(layer, dims, a, to)?;
                }
                backend.spatial_attention(dims, q, k, v, p, o)?;
                conv(&block.proj_out, dims, o, y)?;
                backend.add(x, y, dims.len())
            }
            _ => Err(too_few("trace")),
        }
    }

    /// From the gradient of y in `space.current` to that of x in the same place.
    pub(super) fn backward<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: MapDims,
        x: &B::Activation,
        saved: &Saved<B>,
        input_gradient: bool,
        space: &mut Gradients<B>,
        grads: &mut B::Accum,
    ) -> Result<(), B::Error> {
        let Gradients { current, other, inner } = space;
        let [t0, t1, t2, t3] = inner;
        let mut conv = |layer: &ConvLayer,
                        dims: MapDims,
                        dy: &B::Activation,
                        x: &B::Activation,
                        dx: Option<&mut B::Activation>| {
            backend.conv2d_backward(layer.dims(dims), dy, x, params, layer.slots, dx, &mut *grads)
        };
        match (self, &saved.maps[..], &saved.stats[..]) {
            (Self::Conv(layer), ..) => {
                conv(layer, dims, current, x, input_gradient.then_some(&mut *other))?;
                core::mem::swap(current, other);
            }
            (Self::Upsample(layer), [up, ..], _) => {
                conv(layer, doubled(dims), current, up, Some(t0))?;
                backend.upsample_nearest_backward(dims, t0, current)?;
            }
            (Self::Out(norm, layer), [a, ..], [stats, ..]) => {
                conv(layer, dims, current, a, Some(t0))?;
                let write = Write::Overwrite;
                backend.group_norm_backward(
                    dims, t0, x, stats, params, *norm, write, current, grads,
                )?;
            }
            (Self::Residual(block), [a1, h, a2, ..], [stats1, stats2, ..]) => {
                let mid = with_channels(dims, block.conv1.outputs);
                conv(&block.conv2, mid, current, a2, Some(t0))?;
                if let Some(layer) = &block.nin_shortcut {
                    conv(layer, dims, current, x, Some(other))?;
                    core::mem::swap(current, other);
                }
                let (norm, write) = (block.norm2, Write::Overwrite);
                backend.group_norm_backward(mid, t0, h, stats2, params, norm, write, t1, grads)?;
                let layer = &block.conv1;
                let slots = layer.slots;
                backend.conv2d_backward(
                    layer.dims(dims),
                    t1,
                    a1,
                    params,
                    slots,
                    Some(t0),
                    grads,
                )?;
                let (norm, write) = (block.norm1, Write::Accumulate);
                backend.group_norm_backward(
                    dims, t0, x, stats1, params, norm, write, current, grads,
                )?;
            }
            (Self::Attention(block), [a, q, k, v, o, p, ..], [stats, ..]) => {
                conv(&block.proj_out, dims, current, o, Some(t0))?;
                backend.spatial_attention_backward(dims, t0, q, k, v, p, t1, t2, t3)?;
                conv(&block.qkv[0], dims, t1, a, Some(t0))?;
                conv(&block.qkv[1], dims, t2, a, Some(t1))?;
                backend.add(t1, t0, dims.len())?;
                conv(&block.qkv[2], dims, t3, a, Some(t1))?;
                backend.add(t1, t0, dims.len())?;
                let (norm, write) = (block.norm, Write::Accumulate);
                backend
                    .group_norm_backward(dims, t0, x, stats, params, norm, write, current, grads)?;
            }
            _ => return Err(too_few("trace")),
        }
        Ok(())
    }
}

/// A trace made for another tokenizer.
pub(super) fn too_few<E: From<sar_math::backend::ShapeError>>(operand: &'static str) -> E {
    sar_math::backend::ShapeError { op: "tokenizer", operand, expected: 1, found: 0 }.into()
}
