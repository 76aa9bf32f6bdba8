//! Entry points of the steps without gradients: they check shapes, then call `ops`.

use crate::device::Device;
use crate::memory::Address;
use crate::ops::{
    area_tokens, cached_attention, choose_codes, code_map, guide, keep_codes, merge_ids,
    nearest_code, rollout_inputs,
};
use crate::storage::Storage;
use crate::transformer::head_params;
use crate::{Buffer, CudaBackend, CudaError, Params};
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    AttentionSlots, CachedAttentionDims, ChooseDims, CodeDims, MapDims, RolloutDims, RolloutOps,
    ShapeError, TokenSpan,
};
use sar_math::sampling::MAX_VOCAB;
use sar_math::{Scale, ScaleSchedule};
use std::ops::Range;

/// The ids `[b, T]` and the codebook.
fn codes<D: Device>(
    op: &'static str,
    dims: &RolloutDims,
    ids_bt: &Buffer<u32, D>,
    codebook_vk: &Buffer<f32, D>,
) -> Result<(Address<u32>, Address<f32>), CudaError> {
    let ids = ids_bt.head(op, "ids (b*tokens)", size([dims.batch, dims.schedule.tokens()]))?;
    let len = size([dims.vocab, dims.channels]);
    Ok((ids, codebook_vk.head(op, "codebook (vocab*channels)", len)?))
}

impl<S: Storage, D: Device> RolloutOps for CudaBackend<S, D> {
    fn area_tokens(
        &self,
        dims: MapDims,
        span: &TokenSpan,
        latent_bkhw: &Buffer<S, D>,
        tokens_btk: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "area_tokens";
        ShapeError::at_least(OP, "height", 1, dims.height)?;
        ShapeError::at_least(OP, "width", 1, dims.width)?;
        let len = size([dims.batch, dims.channels, dims.height, dims.width]);
        let latent = latent_bkhw.head(OP, "latent (b*k*h*w)", len)?;
        let [row, _] = checks::token_span(OP, span)?;
        let len = size([dims.batch, row, dims.channels]);
        let tokens = tokens_btk.head_mut(OP, "tokens (b*tokens held*k)", len)?;
        area_tokens::forward(self, dims, span, latent, tokens)
    }

    fn nearest_code(
        &self,
        batch: usize,
        span: &TokenSpan,
        codes: CodeDims,
        z_btk: &Buffer<S, D>,
        codebook: &Buffer<f32, D>,
        ids_bt: &mut Buffer<u32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "nearest_code";
        ShapeError::at_least(OP, "vocab", 1, codes.vocab)?;
        ShapeError::at_least(OP, "channels", 1, codes.channels)?;
        let [row, tokens] = checks::token_span(OP, span)?;
        let z = z_btk.head(OP, "z (b*tokens*k)", size([batch, tokens, codes.channels]))?;
        let len = size([codes.vocab, codes.columns()]);
        let codebook = codebook.head(OP, "codebook (vocab*columns)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens held)", size([batch, row]))?;
        nearest_code::forward(self, batch, span, codes, z, codebook, ids)
    }

    fn rollout_inputs(
        &self,
        dims: &RolloutDims,
        ids_bt: &Buffer<u32, D>,
        codebook_vk: &Buffer<f32, D>,
        inputs: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "rollout_inputs";
        checks::scales(OP, &dims.schedule, &dims.scales)?;
        ShapeError::at_least(OP, "scales.start", 1, dims.scales.start)?;
        let (ids, codebook) = codes(OP, dims, ids_bt, codebook_vk)?;
        let tokens = dims.schedule.span(dims.scales.clone()).len();
        let len = size([dims.batch, tokens, dims.channels]);
        let inputs = inputs.head_mut(OP, "inputs (b*tokens of scales*k)", len)?;
        rollout_inputs::forward(self, dims, ids, codebook, inputs)
    }

    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        (height, width): (usize, usize),
        ids_bt: &Buffer<u32, D>,
        codebook_vk: &Buffer<f32, D>,
        map_bkhw: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "code_map";
        let scales = scale..scale.saturating_add(1);
        checks::scales(OP, &dims.schedule, &scales)?;
        let (ids, codebook) = codes(OP, dims, ids_bt, codebook_vk)?;
        ShapeError::at_least(OP, "height", 1, height)?;
        ShapeError::at_least(OP, "width", 1, width)?;
        let longest = height.max(width);
        ShapeError::at_least(OP, "room for a side (2^20 - 512)", longest, code_map::MAX_SIDE)?;
        let len = size([dims.batch, dims.channels, height, width]);
        let map = map_bkhw.head_mut(OP, "map (b*k*h*w)", len)?;
        code_map::forward(self, dims, scale, Scale { height, width }, ids, codebook, map)
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
        checks::scales(OP, &dims.schedule, &dims.scales)?;
        let tokens = dims.schedule.span(dims.scales.clone()).len();
        let halves = if dims.guidance.is_some() { 2 } else { 1 };
        let len = size([halves, dims.batch, tokens, dims.vocab]);
        let logits = logits.head(OP, "logits (b or 2b*tokens of scales*v)", len)?;
        let (tokens, first) = (dims.schedule.tokens(), dims.first_sample);
        let len = size([first.saturating_add(dims.batch), tokens]);
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", len)?;
        choose_codes::forward(self, dims, logits, ids.at(first * tokens))
    }

    fn guide(&self, len: usize, t: f64, x: &mut Buffer<S, D>) -> Result<(), CudaError> {
        let x = x.head_mut("guide", "x (2*len)", size([2, len]))?;
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
        let len = size([batch, schedule.tokens()]);
        let other = other_bt.head(OP, "other (b*tokens)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", len)?;
        merge_ids::forward(self, batch, schedule, from_other, other, ids)
    }

    fn keep_codes(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        kept_bt: &Buffer<u32, D>,
        given_bt: &Buffer<u32, D>,
        ids_bt: &mut Buffer<u32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "keep_codes";
        checks::scales(OP, schedule, &scales)?;
        let (tokens, span) = (schedule.tokens(), schedule.span(scales));
        let len = size([batch, tokens]);
        let kept = kept_bt.head(OP, "kept (b*tokens)", len)?;
        let given = given_bt.head(OP, "given (b*tokens)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", len)?;
        keep_codes::forward(self, [batch, tokens], span, kept, given, ids)
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
        let width = checks::heads(OP, dims.heads, dims.head_dim)?;
        let seen = dims.past.saturating_add(dims.tokens);
        ShapeError::at_least(OP, "capacity (past+tokens)", seen, dims.capacity)?;
        let rows = size([dims.batch, dims.tokens]);
        let weights = head_params(OP, dims.heads, width, params, slots)?;
        let qkv = qkv.head_mut(OP, "qkv (b*tokens*3*h*d)", size([rows, 3, width]))?;
        let len = size([2, dims.batch, dims.capacity, width]);
        let cache = cache.head_mut(OP, "cache (2*b*capacity*h*d)", len)?;
        let out = out.head_mut(OP, "out (b*tokens*h*d)", size([rows, width]))?;
        cached_attention::forward(self, dims, qkv, weights, cache, out)
    }
}
