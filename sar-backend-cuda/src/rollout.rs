//! Steps without gradients at the door: shapes checked, then `ops`.

use crate::device::Device;
use crate::memory::Address;
use crate::ops::{
    area_tokens, cached_attention, choose_codes, code_map, guide, merge_ids, nearest_code,
    rollout_inputs,
};
use crate::storage::Storage;
use crate::transformer::head_params;
use crate::{Buffer, CudaBackend, CudaError, Params};
use core::ops::Range;
use sar_math::ScaleSchedule;
use sar_math::backend::{
    AttentionSlots, CachedAttentionDims, ChooseDims, LatentDims, RolloutDims, RolloutOps,
    ShapeError,
};
use sar_math::sampling::MAX_VOCAB;

/// The product of dimensions, or `usize::MAX`, which no buffer holds.
fn product(factors: &[usize]) -> usize {
    factors.iter().fold(1, |p, &f| p.saturating_mul(f))
}

/// Fails where `scales` is not a range of the schedule.
fn check_scales(
    op: &'static str,
    schedule: &ScaleSchedule,
    scales: &Range<usize>,
) -> Result<(), ShapeError> {
    ShapeError::at_least(op, "schedule (scales.end)", scales.end, schedule.len())?;
    ShapeError::at_least(op, "scales.end (scales.start)", scales.start, scales.end)
}

/// The ids `[b, T]` and the codebook.
fn codes<D: Device>(
    op: &'static str,
    dims: &RolloutDims,
    ids_bt: &Buffer<u32, D>,
    codebook_vk: &Buffer<f32, D>,
) -> Result<(Address<u32>, Address<f32>), CudaError> {
    let ids = ids_bt.head(op, "ids (b*tokens)", product(&[dims.batch, dims.schedule.tokens()]))?;
    let size = product(&[dims.vocab, dims.channels]);
    Ok((ids, codebook_vk.head(op, "codebook (vocab*channels)", size)?))
}

impl<S: Storage, D: Device> RolloutOps for CudaBackend<S, D> {
    fn area_tokens(
        &self,
        dims: LatentDims,
        schedule: &ScaleSchedule,
        latent_bkhw: &Buffer<S, D>,
        tokens_btk: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "area_tokens";
        ShapeError::at_least(OP, "height", 1, dims.height)?;
        ShapeError::at_least(OP, "width", 1, dims.width)?;
        let size = product(&[dims.batch, dims.channels, dims.height, dims.width]);
        let latent = latent_bkhw.head(OP, "latent (b*k*h*w)", size)?;
        let size = product(&[dims.batch, schedule.tokens(), dims.channels]);
        let tokens = tokens_btk.head_mut(OP, "tokens (b*tokens*k)", size)?;
        area_tokens::forward(self, dims, schedule, latent, tokens)
    }

    fn nearest_code(
        &self,
        rows: usize,
        vocab: usize,
        channels: usize,
        z_rk: &Buffer<S, D>,
        codebook_vk: &Buffer<f32, D>,
        ids_r: &mut Buffer<u32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "nearest_code";
        ShapeError::at_least(OP, "vocab", 1, vocab)?;
        ShapeError::at_least(OP, "channels", 1, channels)?;
        let z = z_rk.head(OP, "z (rows*channels)", product(&[rows, channels]))?;
        let size = product(&[vocab, channels]);
        let codebook = codebook_vk.head(OP, "codebook (vocab*channels)", size)?;
        let ids = ids_r.head_mut(OP, "ids (rows)", rows)?;
        nearest_code::forward(self, rows, vocab, channels, z, codebook, ids)
    }

    fn rollout_inputs(
        &self,
        dims: &RolloutDims,
        ids_bt: &Buffer<u32, D>,
        codebook_vk: &Buffer<f32, D>,
        inputs: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "rollout_inputs";
        check_scales(OP, &dims.schedule, &dims.scales)?;
        ShapeError::at_least(OP, "scales.start", 1, dims.scales.start)?;
        let (ids, codebook) = codes(OP, dims, ids_bt, codebook_vk)?;
        let tokens = dims.schedule.span(dims.scales.clone()).len();
        let size = product(&[dims.batch, tokens, dims.channels]);
        let inputs = inputs.head_mut(OP, "inputs (b*tokens of scales*k)", size)?;
        rollout_inputs::forward(self, dims, ids, codebook, inputs)
    }

    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        ids_bt: &Buffer<u32, D>,
        codebook_vk: &Buffer<f32, D>,
        map_bkhw: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "code_map";
        let scales = scale..scale.saturating_add(1);
        check_scales(OP, &dims.schedule, &scales)?;
        let (ids, codebook) = codes(OP, dims, ids_bt, codebook_vk)?;
        let range = dims.schedule.range(scale);
        let size = product(&[dims.batch, dims.channels, range.len()]);
        let map = map_bkhw.head_mut(OP, "map (b*k*h*w)", size)?;
        code_map::forward(self, dims, range, ids, codebook, map)
    }

    fn choose_codes(
        &self,
        dims: &ChooseDims,
        logits: &Buffer<S, D>,
        ids_bt: &mut Buffer<u32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "choose_codes";
        ShapeError::at_least(OP, "vocab", 1, dims.vocab)?;
        ShapeError::at_least(OP, "room for the vocabulary (2^16)", dims.vocab, MAX_VOCAB)?;
        check_scales(OP, &dims.schedule, &dims.scales)?;
        let tokens = dims.schedule.span(dims.scales.clone()).len();
        let halves = if dims.guidance.is_some() { 2 } else { 1 };
        let size = product(&[halves, dims.batch, tokens, dims.vocab]);
        let logits = logits.head(OP, "logits (b or 2b*tokens of scales*v)", size)?;
        let (tokens, first) = (dims.schedule.tokens(), dims.first_sample);
        let size = product(&[first.saturating_add(dims.batch), tokens]);
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", size)?;
        choose_codes::forward(self, dims, logits, ids.at(first * tokens))
    }

    fn guide(&self, len: usize, t: f64, x: &mut Buffer<S, D>) -> Result<(), CudaError> {
        let x = x.head_mut("guide", "x (2*len)", product(&[2, len]))?;
        guide::forward(self, len, t, x)
    }

    fn merge_ids(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        from_other: &[bool],
        other_bt: &Buffer<u32, D>,
        ids_bt: &mut Buffer<u32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "merge_ids";
        ShapeError::equal(OP, "from_other (scales)", schedule.len(), from_other.len())?;
        let size = product(&[batch, schedule.tokens()]);
        let other = other_bt.head(OP, "other (b*tokens)", size)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", size)?;
        merge_ids::forward(self, batch, schedule, from_other, other, ids)
    }

    fn cached_attention(
        &self,
        dims: CachedAttentionDims,
        qkv: &mut Buffer<S, D>,
        params: &Params<S, D>,
        slots: AttentionSlots,
        cache: &mut Buffer<S, D>,
        out: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "cached_attention";
        ShapeError::at_least(OP, "heads", 1, dims.heads)?;
        ShapeError::at_least(OP, "head_dim", 1, dims.head_dim)?;
        let seen = dims.past.saturating_add(dims.tokens);
        ShapeError::at_least(OP, "capacity (past+tokens)", seen, dims.capacity)?;
        let width = product(&[dims.heads, dims.head_dim]);
        let rows = product(&[dims.batch, dims.tokens]);
        let weights = head_params(OP, dims.heads, width, params, slots)?;
        let qkv = qkv.head_mut(OP, "qkv (b*tokens*3*h*d)", product(&[rows, 3, width]))?;
        let size = product(&[2, dims.batch, dims.capacity, width]);
        let cache = cache.head_mut(OP, "cache (2*b*capacity*h*d)", size)?;
        let out = out.head_mut(OP, "out (b*tokens*h*d)", product(&[rows, width]))?;
        cached_attention::forward(self, dims, qkv, weights, cache, out)
    }
}
