//! Layers with gradients: transformer and tokenizer.

use super::{Buf, Done, Ids, NarrowCpu, branch, narrowed, rounding, store, store_some};
use crate::{CpuBackend, CpuError};
use sar_math::ScaleSchedule;
use sar_math::backend::{
    AttentionDims, AttentionSlots, Branch, Buffers as _, Conv, ConvDims, EmbeddingDims,
    EmbeddingOps, EmbeddingSlots, GroupNorm, Linear, LinearDims, MapDims, Modulation,
    QuantizeWeights, Seen, Slot, TokenDims, TokenizerOps, TransformerOps, Write,
};
use std::borrow::Cow;

fn slots(layer: Linear) -> Vec<Slot> {
    [layer.weight].into_iter().chain(layer.bias).collect()
}

impl NarrowCpu {
    /// What a norm of `x` and a branch saw: their sum as it is stored, or x where there is no
    /// branch.
    fn stored_sum<'a>(
        &self,
        dims: TokenDims,
        x: &'a Buf,
        added: Option<Branch<'_, CpuBackend<f32>>>,
        ada: &Buf,
        modulation: Modulation,
    ) -> Result<Cow<'a, Buf>, CpuError> {
        if added.is_none() {
            return Ok(Cow::Borrowed(x));
        }
        let (mut sum, mut y, mut stats) = (x.clone(), x.clone(), self.0.accum(2 * dims.rows())?);
        self.0.residual_norm(dims, 1.0, x, added, ada, modulation, &mut sum, &mut y, &mut stats)?;
        store(&mut sum);
        Ok(Cow::Owned(sum))
    }
}

impl TransformerOps for NarrowCpu {
    fn linear(&self, dims: LinearDims, x: &Buf, params: &Buf, layer: Linear, y: &mut Buf) -> Done {
        self.0.linear(dims, x, &narrowed(params, &slots(layer)), layer, y)?;
        store(y);
        Ok(())
    }

    fn linear_backward_input(
        &self,
        dims: LinearDims,
        dy: &Buf,
        params: &Buf,
        layer: Linear,
        dx: &mut Buf,
    ) -> Done {
        self.0.linear_backward_input(dims, dy, &narrowed(params, &slots(layer)), layer, dx)?;
        store(dx);
        Ok(())
    }

    fn linear_backward_weight(
        &self,
        dims: LinearDims,
        dy: &Buf,
        x: &Buf,
        layer: Linear,
        write: Write,
        grads: &mut Buf,
    ) -> Done {
        self.0.linear_backward_weight(dims, dy, x, layer, write, grads)
    }

    fn residual_norm(
        &self,
        dims: TokenDims,
        eps: f64,
        x: &Buf,
        added: Option<Branch<'_, Self>>,
        ada: &Buf,
        modulation: Modulation,
        sum: &mut Buf,
        y: &mut Buf,
        stats: &mut Buf,
    ) -> Done {
        let adds = added.is_some();
        self.0.residual_norm(dims, eps, x, branch(added), ada, modulation, sum, y, stats)?;
        if adds {
            // The stored sum is what is normalised, since the backward and renorm see that.
            store(sum);
            let stored = sum.clone();
            self.0.residual_norm(dims, eps, &stored, None, ada, modulation, sum, y, stats)?;
        }
        store(y);
        Ok(())
    }

    fn residual_norm_backward(
        &self,
        dims: TokenDims,
        dy: &Buf,
        seen: Seen<'_, Self>,
        stats: &Buf,
        added: Option<Branch<'_, Self>>,
        ada: &Buf,
        modulation: Modulation,
        bias: Option<Slot>,
        write: Write,
        dx: &mut Buf,
        mut dbranch: Option<&mut Buf>,
        d_ada: &mut Buf,
        grads: &mut Buf,
    ) -> Done {
        let added = branch(added);
        let sum = match seen {
            Seen::Sum(sum) => Cow::Borrowed(sum),
            Seen::Before(x) => self.stored_sum(dims, x, added, ada, modulation)?,
        };
        self.0.residual_norm_backward(
            dims,
            dy,
            Seen::Sum(sum.as_ref()),
            stats,
            added,
            ada,
            modulation,
            bias,
            write,
            dx,
            dbranch.as_deref_mut(),
            d_ada,
            grads,
        )?;
        store(dx);
        store_some(dbranch);
        store(d_ada);
        Ok(())
    }

    fn renorm(
        &self,
        dims: TokenDims,
        x: &Buf,
        added: Option<Branch<'_, Self>>,
        stats: &Buf,
        ada: &Buf,
        modulation: Modulation,
        y: &mut Buf,
    ) -> Done {
        let sum = self.stored_sum(dims, x, branch(added), ada, modulation)?;
        self.0.renorm(dims, &sum, None, stats, ada, modulation, y)?;
        store(y);
        Ok(())
    }

    rounding! {
        attention(
            dims: AttentionDims, qkv: &mut Buf, params: &Buf, slots: AttentionSlots,
            inverse_norms: &mut Buf, lse: &mut Buf, out: &mut Buf,
        ) -> [qkv, out];
        attention_backward(
            dims: AttentionDims, d_out: &Buf, out: &Buf, qkv: &Buf, inverse_norms: &Buf, lse: &Buf,
            params: &Buf, slots: AttentionSlots, dqkv: &mut Buf, grads: &mut Buf,
        ) -> [dqkv];
        gelu(len: usize, x: &Buf, y: &mut Buf) -> [y];
        gelu_backward(
            rows: usize, columns: usize, x: &Buf, bias: Option<Slot>, dy: &mut Buf, grads: &mut Buf,
        ) -> [dy];
        regelu_backward(
            rows: usize, columns: usize, bias: Option<Slot>, x: &mut Buf, dy: &mut Buf, grads: &mut Buf,
        ) -> [x, dy];
        silu(len: usize, x: &Buf, y: &mut Buf) -> [y];
        silu_backward(len: usize, x: &Buf, dy: &mut Buf) -> [dy];
    }
}

impl EmbeddingOps for NarrowCpu {
    rounding! {
        class_embedding(
            batch: usize, width: usize, labels: &Ids, params: &Buf, table: Slot, cond: &mut Buf,
        ) -> [cond];
        class_embedding_backward(
            batch: usize, width: usize, labels: &Ids, dcond: &Buf, table: Slot, grads: &mut Buf,
        ) -> [];
        positions(
            schedule: &ScaleSchedule, width: usize, params: &Buf, table: Slot, pos: &mut Buf,
        ) -> [pos];
        positions_backward(
            schedule: &ScaleSchedule, width: usize, dpos: &Buf, table: Slot, grads: &mut Buf,
        ) -> [];
        token_embedding(
            dims: &EmbeddingDims, cond: &Buf, inputs: &Buf, params: &Buf, slots: EmbeddingSlots,
            pos: &Buf, x: &mut Buf,
        ) -> [x];
        token_embedding_backward(
            dims: &EmbeddingDims, dx: &Buf, inputs: &Buf, slots: EmbeddingSlots, dcond: &mut Buf,
            dpos: &mut Buf, grads: &mut Buf,
        ) -> [dcond, dpos];
    }
}

impl TokenizerOps for NarrowCpu {
    fn conv2d(&self, dims: ConvDims, x: &Buf, params: &Buf, layer: Conv, y: &mut Buf) -> Done {
        self.0.conv2d(dims, x, &narrowed(params, &[layer.weight]), layer, y)?;
        store(y);
        Ok(())
    }

    fn conv2d_backward(
        &self,
        dims: ConvDims,
        dy: &Buf,
        x: &Buf,
        params: &Buf,
        layer: Conv,
        mut dx: Option<&mut Buf>,
        grads: &mut Buf,
    ) -> Done {
        let params = narrowed(params, &[layer.weight]);
        self.0.conv2d_backward(dims, dy, x, &params, layer, dx.as_deref_mut(), grads)?;
        store_some(dx);
        Ok(())
    }

    rounding! {
        group_norm(
            dims: MapDims, x: &Buf, params: &Buf, layer: GroupNorm, y: &mut Buf, stats: &mut Buf,
        ) -> [y];
        group_norm_backward(
            dims: MapDims, dy: &Buf, x: &Buf, stats: &Buf, params: &Buf, layer: GroupNorm,
            write: Write, dx: &mut Buf, grads: &mut Buf,
        ) -> [dx];
        upsample_nearest(dims: MapDims, x: &Buf, y: &mut Buf) -> [y];
        upsample_nearest_backward(dims: MapDims, dy: &Buf, dx: &mut Buf) -> [dx];
        spatial_attention(
            dims: MapDims, q: &Buf, k: &Buf, v: &Buf, probabilities: &mut Buf, y: &mut Buf,
        ) -> [probabilities, y];
        spatial_attention_backward(
            dims: MapDims, dy: &Buf, q: &Buf, k: &Buf, v: &Buf, probabilities: &Buf, dq: &mut Buf,
            dk: &mut Buf, dv: &mut Buf,
        ) -> [dq, dk, dv];
        area_resize(dims: MapDims, height: usize, width: usize, x: &Buf, y: &mut Buf) -> [y];
        area_resize_backward(
            dims: MapDims, height: usize, width: usize, dy: &Buf, dx: &mut Buf,
        ) -> [dx];
        vector_quantize(
            dims: MapDims, vocab: usize, z: &Buf, params: &Buf, codebook: Slot, ids: &mut Ids,
            quantized: &mut Buf, distance: &mut Buf,
        ) -> [quantized];
        vector_quantize_backward(
            dims: MapDims, vocab: usize, d_quantized: &Buf, z: &Buf, ids: &Ids, params: &Buf,
            codebook: Slot, weights: QuantizeWeights, dz: &mut Buf, grads: &mut Buf,
        ) -> [dz];
        squared_error(
            len: usize, x: &Buf, target: &Buf, weight: f64, loss: &mut Buf, dx: &mut Buf,
        ) -> [dx];
    }
}
