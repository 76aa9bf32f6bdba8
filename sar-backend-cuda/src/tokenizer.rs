//! Entry points of the tokenizer ops: they check shapes, then call `ops`.

use crate::device::Device;
use crate::memory::Address;
use crate::ops::{
    area_resize, conv2d, group_norm, spatial_attention, squared_error, upsample_nearest,
    vector_quantize,
};
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError, Params};
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    Conv, ConvDims, GroupNorm, MapDims, QuantizeWeights, ShapeError, Slot, TokenizerOps, Write,
};

fn norm(dims: MapDims, layer: &GroupNorm) -> group_norm::Norm {
    group_norm::Norm { dims, groups: layer.groups, eps: layer.eps, silu: layer.silu }
}

/// Weight and bias gradients of one layer.
fn pair<D: Device>(
    op: &'static str,
    grads: &mut Buffer<f32, D>,
    (weight, weight_len): (Slot, usize),
    (bias, bias_len): (Slot, usize),
) -> Result<(Address<f32>, Address<f32>), ShapeError> {
    Ok((
        grads.slot_mut(op, "weight gradient", weight, weight_len)?,
        grads.slot_mut(op, "bias gradient", bias, bias_len)?,
    ))
}

impl<S: Storage, D: Device> TokenizerOps for CudaBackend<S, D> {
    fn conv2d(
        &self,
        dims: ConvDims,
        x: &Buffer<S, D>,
        params: &Params<S, D>,
        layer: Conv,
        y: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d";
        let [x_len, y_len, weights] = checks::conv(OP, dims)?;
        conv2d::forward(
            self,
            dims,
            x.head(OP, "x", x_len)?,
            params.weights(OP, "weight", layer.weight, weights)?,
            params.slot(OP, "bias", layer.bias, dims.outputs)?,
            y.head_mut(OP, "y", y_len)?,
        )
    }

    fn conv2d_backward(
        &self,
        dims: ConvDims,
        dy: &Buffer<S, D>,
        x: &Buffer<S, D>,
        params: &Params<S, D>,
        layer: Conv,
        dx: Option<&mut Buffer<S, D>>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d_backward";
        let [x_len, y_len, weights] = checks::conv(OP, dims)?;
        let (dweight, dbias) =
            pair(OP, grads, (layer.weight, weights), (layer.bias, dims.outputs))?;
        conv2d::backward(
            self,
            dims,
            dy.head(OP, "dy", y_len)?,
            x.head(OP, "x", x_len)?,
            params.weights(OP, "weight", layer.weight, weights)?,
            dx.map(|dx| dx.head_mut(OP, "dx", x_len)).transpose()?,
            dweight,
            dbias,
        )
    }

    fn group_norm(
        &self,
        dims: MapDims,
        x: &Buffer<S, D>,
        params: &Params<S, D>,
        layer: GroupNorm,
        y: &mut Buffer<S, D>,
        stats: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "group_norm";
        let stats_len = checks::group_norm(OP, dims, &layer)?;
        group_norm::forward(
            self,
            norm(dims, &layer),
            x.head(OP, "x", dims.len())?,
            params.slot(OP, "weight", layer.weight, dims.channels)?,
            params.slot(OP, "bias", layer.bias, dims.channels)?,
            y.head_mut(OP, "y", dims.len())?,
            stats.head_mut(OP, "stats", stats_len)?,
        )
    }

    fn group_norm_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<S, D>,
        x: &Buffer<S, D>,
        stats: &Buffer<f32, D>,
        params: &Params<S, D>,
        layer: GroupNorm,
        write: Write,
        dx: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "group_norm_backward";
        let stats_len = checks::group_norm(OP, dims, &layer)?;
        let channels = dims.channels;
        let (dweight, dbias) = pair(OP, grads, (layer.weight, channels), (layer.bias, channels))?;
        group_norm::backward(
            self,
            norm(dims, &layer),
            dy.head(OP, "dy", dims.len())?,
            x.head(OP, "x", dims.len())?,
            stats.head(OP, "stats", stats_len)?,
            params.slot(OP, "weight", layer.weight, channels)?,
            params.slot(OP, "bias", layer.bias, channels)?,
            write,
            dx.head_mut(OP, "dx", dims.len())?,
            dweight,
            dbias,
        )
    }

    fn upsample_nearest(
        &self,
        dims: MapDims,
        x: &Buffer<S, D>,
        y: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "upsample_nearest";
        let x = x.head(OP, "x", dims.len())?;
        upsample_nearest::forward(self, dims, x, y.head_mut(OP, "y", size([4, dims.len()]))?)
    }

    fn upsample_nearest_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<S, D>,
        dx: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "upsample_nearest_backward";
        let dy = dy.head(OP, "dy", size([4, dims.len()]))?;
        upsample_nearest::backward(self, dims, dy, dx.head_mut(OP, "dx", dims.len())?)
    }

    fn spatial_attention(
        &self,
        dims: MapDims,
        q: &Buffer<S, D>,
        k: &Buffer<S, D>,
        v: &Buffer<S, D>,
        probabilities: &mut Buffer<S, D>,
        y: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "spatial_attention";
        let (len, area) = (dims.len(), size([dims.height, dims.width]));
        spatial_attention::forward(
            self,
            dims,
            q.head(OP, "q", len)?,
            k.head(OP, "k", len)?,
            v.head(OP, "v", len)?,
            probabilities.head_mut(OP, "probabilities", size([dims.batch, area, area]))?,
            y.head_mut(OP, "y", len)?,
        )
    }

    fn spatial_attention_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<S, D>,
        q: &Buffer<S, D>,
        k: &Buffer<S, D>,
        v: &Buffer<S, D>,
        probabilities: &Buffer<S, D>,
        dq: &mut Buffer<S, D>,
        dk: &mut Buffer<S, D>,
        dv: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "spatial_attention_backward";
        let (len, area) = (dims.len(), size([dims.height, dims.width]));
        spatial_attention::backward(
            self,
            dims,
            dy.head(OP, "dy", len)?,
            [q.head(OP, "q", len)?, k.head(OP, "k", len)?, v.head(OP, "v", len)?],
            probabilities.head(OP, "probabilities", size([dims.batch, area, area]))?,
            [dq.head_mut(OP, "dq", len)?, dk.head_mut(OP, "dk", len)?, dv.head_mut(OP, "dv", len)?],
        )
    }

    fn area_resize(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        x: &Buffer<S, D>,
        y: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "area_resize";
        let y_len = checks::resized(OP, dims, (height, width))?;
        let x = x.head(OP, "x", dims.len())?;
        area_resize::forward(self, dims, (height, width), x, y.head_mut(OP, "y", y_len)?)
    }

    fn area_resize_backward(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        dy: &Buffer<S, D>,
        dx: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "area_resize_backward";
        let y_len = checks::resized(OP, dims, (height, width))?;
        let dy = dy.head(OP, "dy", y_len)?;
        area_resize::backward(self, dims, (height, width), dy, dx.head_mut(OP, "dx", dims.len())?)
    }

    fn vector_quantize(
        &self,
        dims: MapDims,
        vocab: usize,
        z: &Buffer<S, D>,
        params: &Params<S, D>,
        codebook: Slot,
        ids: &mut Buffer<u32, D>,
        quantized: &mut Buffer<S, D>,
        distance: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "vector_quantize";
        ShapeError::at_least(OP, "vocab", 1, vocab)?;
        let positions = size([dims.batch, dims.height, dims.width]);
        vector_quantize::forward(
            self,
            dims,
            vocab,
            z.head(OP, "z", dims.len())?,
            params.slot(OP, "codebook", codebook, size([vocab, dims.channels]))?,
            ids.head_mut(OP, "ids", positions)?,
            quantized.head_mut(OP, "quantized", dims.len())?,
            distance.head_mut(OP, "distance", 1)?,
        )
    }

    fn vector_quantize_backward(
        &self,
        dims: MapDims,
        vocab: usize,
        d_quantized: &Buffer<S, D>,
        z: &Buffer<S, D>,
        ids: &Buffer<u32, D>,
        params: &Params<S, D>,
        codebook: Slot,
        weights: QuantizeWeights,
        dz: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "vector_quantize_backward";
        let ids = ids.head(OP, "ids", size([dims.batch, dims.height, dims.width]))?;
        let len = size([vocab, dims.channels]);
        vector_quantize::backward(
            self,
            dims,
            vocab,
            d_quantized.head(OP, "d_quantized", dims.len())?,
            z.head(OP, "z", dims.len())?,
            ids,
            params.slot(OP, "codebook", codebook, len)?,
            weights,
            dz.head_mut(OP, "dz", dims.len())?,
            grads.slot_mut(OP, "codebook", codebook, len)?,
        )
    }

    fn squared_error(
        &self,
        len: usize,
        x: &Buffer<S, D>,
        target: &Buffer<S, D>,
        weight: f64,
        loss: &mut Buffer<f32, D>,
        dx: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "squared_error";
        let x = x.head(OP, "x", len)?;
        let target = target.head(OP, "target", len)?;
        let dx = dx.head_mut(OP, "dx", len)?;
        let loss = loss.head_mut(OP, "loss", 1)?;
        squared_error::forward(self, len, x, target, weight, loss, dx)
    }
}
