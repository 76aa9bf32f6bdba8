//! The ops that layers are made of, over one set of parameters: forward and backward.

use sar_math::backend::{Buffers, Conv, ConvDims, GroupNorm, MapDims, TokenizerOps, Write};

/// A convolution and its shape.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ConvLayer {
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

    /// Dimensions of the output.
    pub(super) fn output(&self, x: MapDims) -> MapDims {
        let (height, width) = self.dims(x).output();
        MapDims { batch: x.batch, channels: self.outputs, height, width }
    }
}

/// A forward pass through layers.
pub(in super::super) struct Forward<'a, B: Buffers> {
    pub backend: &'a B,
    pub params: &'a B::Params,
}

impl<B: TokenizerOps> Forward<'_, B> {
    pub(super) fn conv(
        &self,
        layer: &ConvLayer,
        dims: MapDims,
        x: &B::Activation,
        y: &mut B::Activation,
    ) -> Result<(), B::Error> {
        self.backend.conv2d(layer.dims(dims), x, self.params, layer.slots, y)
    }

    /// Computes norm, and SiLU if `norm` includes it, keeping the norm's statistics.
    pub(super) fn norm(
        &self,
        norm: GroupNorm,
        dims: MapDims,
        x: &B::Activation,
        y: &mut B::Activation,
        stats: &mut B::Accum,
    ) -> Result<(), B::Error> {
        self.backend.group_norm(dims, x, self.params, norm, y, stats)
    }
}

/// A backward pass; gradients of parameters accumulate.
pub(in super::super) struct Backward<'a, B: Buffers> {
    pub backend: &'a B,
    pub params: &'a B::Params,
    pub grads: &'a mut B::Accum,
}

impl<B: TokenizerOps> Backward<'_, B> {
    /// Computes parameter gradients of a convolution from its output's gradient and its input, and
    /// `dx` if asked for.
    pub(super) fn conv(
        &mut self,
        layer: &ConvLayer,
        dims: MapDims,
        dy: &B::Activation,
        x: &B::Activation,
        dx: Option<&mut B::Activation>,
    ) -> Result<(), B::Error> {
        let (dims, slots) = (layer.dims(dims), layer.slots);
        self.backend.conv2d_backward(dims, dy, x, self.params, slots, dx, self.grads)
    }

    /// Computes the gradient of a norm's input from its output's gradient, its input and its
    /// statistics.
    pub(super) fn norm(
        &mut self,
        norm: GroupNorm,
        dims: MapDims,
        dy: &B::Activation,
        (x, stats): (&B::Activation, &B::Accum),
        write: Write,
        dx: &mut B::Activation,
    ) -> Result<(), B::Error> {
        let (params, grads) = (self.params, &mut *self.grads);
        self.backend.group_norm_backward(dims, dy, x, stats, params, norm, write, dx, grads)
    }
}
