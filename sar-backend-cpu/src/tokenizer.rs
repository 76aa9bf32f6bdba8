//! Tokenizer ops at the door: shapes are checked, then `ops` is called.

use crate::loss::check_ids;
use crate::ops::{
    area_resize, conv2d, group_norm, spatial_attention, squared_error, upsample_nearest,
    vector_quantize,
};
use crate::{Buffer, CpuBackend, CpuError, Element};
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    Conv, ConvDims, GroupNorm, MapDims, QuantizeWeights, ShapeError, Slot, TokenizerOps, Write,
};

fn norm(dims: MapDims, layer: &GroupNorm) -> group_norm::Norm {
    group_norm::Norm { dims, groups: layer.groups, eps: layer.eps, silu: layer.silu }
}

/// Weight and bias gradients of one layer at once, in whichever order they lie in the buffer.
fn pair<'a, T>(
    op: &'static str,
    grads: &'a mut Buffer<T>,
    (weight, weight_len): (Slot, usize),
    (bias, bias_len): (Slot, usize),
) -> Result<(&'a mut [T], &'a mut [T]), ShapeError>
where
    T: Copy + Default,
{
    ShapeError::equal(op, "weight", weight_len, weight.len)?;
    ShapeError::equal(op, "bias", bias_len, bias.len)?;
    ShapeError::at_least(op, "grads", weight.end().max(bias.end()), grads.len())?;
    let (low, high) = if weight.offset <= bias.offset { (weight, bias) } else { (bias, weight) };
    ShapeError::at_least(op, "slots that do not overlap", low.end(), high.offset)?;
    let (head, tail) = grads.as_mut_slice().split_at_mut(high.offset);
    let (low_values, high_values) = (&mut head[low.range()], &mut tail[..high.len]);
    Ok(if weight.offset <= bias.offset {
        (low_values, high_values)
    } else {
        (high_values, low_values)
    })
}

impl<T: Element> TokenizerOps for CpuBackend<T> {
    fn conv2d(
        &self,
        dims: ConvDims,
        x: &Buffer<T>,
        params: &Buffer<T>,
        layer: Conv,
        y: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "conv2d";
        let [x_len, y_len, weights] = checks::conv(OP, dims)?;
        conv2d::forward(
            dims,
            x.head(OP, "x", x_len)?,
            params.slot(OP, "weight", layer.weight, weights)?,
            params.slot(OP, "bias", layer.bias, dims.outputs)?,
            y.head_mut(OP, "y", y_len)?,
        );
        Ok(())
    }

    fn conv2d_backward(
        &self,
        dims: ConvDims,
        dy: &Buffer<T>,
        x: &Buffer<T>,
        params: &Buffer<T>,
        layer: Conv,
        dx: Option<&mut Buffer<T>>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "conv2d_backward";
        let [x_len, y_len, weights] = checks::conv(OP, dims)?;
        let (dweight, dbias) =
            pair(OP, grads, (layer.weight, weights), (layer.bias, dims.outputs))?;
        conv2d::backward(
            dims,
            dy.head(OP, "dy", y_len)?,
            x.head(OP, "x", x_len)?,
            params.slot(OP, "weight", layer.weight, weights)?,
            dx.map(|dx| dx.head_mut(OP, "dx", x_len)).transpose()?,
            dweight,
            dbias,
        );
        Ok(())
    }

    fn group_norm(
        &self,
        dims: MapDims,
        x: &Buffer<T>,
        params: &Buffer<T>,
        layer: GroupNorm,
        y: &mut Buffer<T>,
        stats: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "group_norm";
        let stats_len = checks::group_norm(OP, dims, &layer)?;
        group_norm::forward(
            norm(dims, &layer),
            x.head(OP, "x", dims.len())?,
            params.slot(OP, "weight", layer.weight, dims.channels)?,
            params.slot(OP, "bias", layer.bias, dims.channels)?,
            y.head_mut(OP, "y", dims.len())?,
            stats.head_mut(OP, "stats", stats_len)?,
        );
        Ok(())
    }

    fn group_norm_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<T>,
        x: &Buffer<T>,
        stats: &Buffer<T>,
        params: &Buffer<T>,
        layer: GroupNorm,
        write: Write,
        dx: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "group_norm_backward";
        let stats_len = checks::group_norm(OP, dims, &layer)?;
        let channels = dims.channels;
        let (dweight, dbias) = pair(OP, grads, (layer.weight, channels), (layer.bias, channels))?;
        group_norm::backward(
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
        );
        Ok(())
    }

    fn upsample_nearest(
        &self,
        dims: MapDims,
        x: &Buffer<T>,
        y: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "upsample_nearest";
        let x = x.head(OP, "x", dims.len())?;
        upsample_nearest::forward(dims, x, y.head_mut(OP, "y", size([4, dims.len()]))?);
        Ok(())
    }

    fn upsample_nearest_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<T>,
        dx: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "upsample_nearest_backward";
        let dy = dy.head(OP, "dy", size([4, dims.len()]))?;
        upsample_nearest::backward(dims, dy, dx.head_mut(OP, "dx", dims.len())?);
        Ok(())
    }

    fn spatial_attention(
        &self,
        dims: MapDims,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
        probabilities: &mut Buffer<T>,
        y: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "spatial_attention";
        let (len, area) = (dims.len(), size([dims.height, dims.width]));
        spatial_attention::forward(
            dims,
            q.head(OP, "q", len)?,
            k.head(OP, "k", len)?,
            v.head(OP, "v", len)?,
            probabilities.head_mut(OP, "probabilities", size([dims.batch, area, area]))?,
            y.head_mut(OP, "y", len)?,
        );
        Ok(())
    }

    fn spatial_attention_backward(
        &self,
        dims: MapDims,
        dy: &Buffer<T>,
        q: &Buffer<T>,
        k: &Buffer<T>,
        v: &Buffer<T>,
        probabilities: &Buffer<T>,
        dq: &mut Buffer<T>,
        dk: &mut Buffer<T>,
        dv: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "spatial_attention_backward";
        let (len, area) = (dims.len(), size([dims.height, dims.width]));
        spatial_attention::backward(
            dims,
            dy.head(OP, "dy", len)?,
            (q.head(OP, "q", len)?, k.head(OP, "k", len)?, v.head(OP, "v", len)?),
            probabilities.head(OP, "probabilities", size([dims.batch, area, area]))?,
            (dq.head_mut(OP, "dq", len)?, dk.head_mut(OP, "dk", len)?, dv.head_mut(OP, "dv", len)?),
        );
        Ok(())
    }

    fn area_resize(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        x: &Buffer<T>,
        y: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "area_resize";
        let y_len = checks::resized(OP, dims, (height, width))?;
        let x = x.head(OP, "x", dims.len())?;
        area_resize::forward(dims, (height, width), x, y.head_mut(OP, "y", y_len)?);
        Ok(())
    }

    fn area_resize_backward(
        &self,
        dims: MapDims,
        height: usize,
        width: usize,
        dy: &Buffer<T>,
        dx: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "area_resize_backward";
        let y_len = checks::resized(OP, dims, (height, width))?;
        let dy = dy.head(OP, "dy", y_len)?;
        area_resize::backward(dims, (height, width), dy, dx.head_mut(OP, "dx", dims.len())?);
        Ok(())
    }

    fn vector_quantize(
        &self,
        dims: MapDims,
        vocab: usize,
        z: &Buffer<T>,
        params: &Buffer<T>,
        codebook: Slot,
        ids: &mut Buffer<u32>,
        quantized: &mut Buffer<T>,
        distance: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "vector_quantize";
        ShapeError::at_least(OP, "vocab", 1, vocab)?;
        let positions = size([dims.batch, dims.height, dims.width]);
        distance.head_mut(OP, "distance", 1)?[0] = vector_quantize::forward(
            dims,
            vocab,
            z.head(OP, "z", dims.len())?,
            params.slot(OP, "codebook", codebook, size([vocab, dims.channels]))?,
            ids.head_mut(OP, "ids", positions)?,
            quantized.head_mut(OP, "quantized", dims.len())?,
        );
        Ok(())
    }

    fn vector_quantize_backward(
        &self,
        dims: MapDims,
        vocab: usize,
        d_quantized: &Buffer<T>,
        z: &Buffer<T>,
        ids: &Buffer<u32>,
        params: &Buffer<T>,
        codebook: Slot,
        weights: QuantizeWeights,
        dz: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "vector_quantize_backward";
        let ids = ids.head(OP, "ids", size([dims.batch, dims.height, dims.width]))?;
        check_ids(OP, ids, 0, vocab)?;
        let len = size([vocab, dims.channels]);
        vector_quantize::backward(
            dims,
            vocab,
            d_quantized.head(OP, "d_quantized", dims.len())?,
            z.head(OP, "z", dims.len())?,
            ids,
            params.slot(OP, "codebook", codebook, len)?,
            weights,
            dz.head_mut(OP, "dz", dims.len())?,
            grads.slot_mut(OP, "codebook", codebook, len)?,
        );
        Ok(())
    }

    fn squared_error(
        &self,
        len: usize,
        x: &Buffer<T>,
        target: &Buffer<T>,
        weight: f64,
        loss: &mut Buffer<T>,
        dx: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "squared_error";
        let x = x.head(OP, "x", len)?;
        let target = target.head(OP, "target", len)?;
        let dx = dx.head_mut(OP, "dx", len)?;
        loss.head_mut(OP, "loss", 1)?[0] = squared_error::squared_error(x, target, weight, dx);
        Ok(())
    }
}
