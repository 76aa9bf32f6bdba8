//! Steps without gradients at the door: shapes and ids are checked, then `ops` is called.

use crate::loss::check_ids;
use crate::ops::{
    area_tokens, cached_attention, choose_codes, code_map, guide, keep_codes, merge_ids,
    nearest_code, rollout_inputs,
};
use crate::transformer::head_params;
use crate::{Buffer, CpuBackend, CpuError, Element};
use core::ops::Range;
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    AttentionSlots, CachedAttentionDims, ChooseDims, CodeDims, MapDims, RolloutDims, RolloutOps,
    ShapeError, TokenSpan,
};
use sar_math::sampling::MAX_VOCAB;
use sar_math::{Scale, ScaleSchedule};

/// The ids `[b, T]` and the codebook, after checking that the ids of `scales` lie in it.
fn codes<'a, T: Element>(
    op: &'static str,
    dims: &RolloutDims,
    scales: Range<usize>,
    ids_bt: &'a Buffer<u32>,
    codebook_vk: &'a Buffer<T>,
) -> Result<(&'a [u32], &'a [T]), CpuError> {
    let tokens = dims.schedule.tokens();
    let ids = ids_bt.head(op, "ids (b*tokens)", size([dims.batch, tokens]))?;
    let span = dims.schedule.span(scales);
    for (b, sample) in ids.chunks_exact(tokens).enumerate() {
        check_ids(op, &sample[span.clone()], b * tokens + span.start, dims.vocab)?;
    }
    let len = size([dims.vocab, dims.channels]);
    Ok((ids, codebook_vk.head(op, "codebook (vocab*channels)", len)?))
}

impl<T: Element> RolloutOps for CpuBackend<T> {
    fn area_tokens(
        &self,
        dims: MapDims,
        span: &TokenSpan,
        latent_bkhw: &Buffer<T>,
        tokens_btk: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "area_tokens";
        ShapeError::at_least(OP, "height", 1, dims.height)?;
        ShapeError::at_least(OP, "width", 1, dims.width)?;
        let len = size([dims.batch, dims.channels, dims.height, dims.width]);
        let latent = latent_bkhw.head(OP, "latent (b*k*h*w)", len)?;
        let [row, _] = checks::token_span(OP, span)?;
        let len = size([dims.batch, row, dims.channels]);
        let tokens = tokens_btk.head_mut(OP, "tokens (b*tokens held*k)", len)?;
        area_tokens::forward(dims, span, latent, tokens);
        Ok(())
    }

    fn nearest_code(
        &self,
        batch: usize,
        span: &TokenSpan,
        codes: CodeDims,
        z_btk: &Buffer<T>,
        codebook: &Buffer<T>,
        ids_bt: &mut Buffer<u32>,
    ) -> Result<(), CpuError> {
        const OP: &str = "nearest_code";
        ShapeError::at_least(OP, "vocab", 1, codes.vocab)?;
        ShapeError::at_least(OP, "channels", 1, codes.channels)?;
        let [row, tokens] = checks::token_span(OP, span)?;
        let z = z_btk.head(OP, "z (b*tokens*k)", size([batch, tokens, codes.channels]))?;
        let len = size([codes.vocab, codes.columns()]);
        let codebook = codebook.head(OP, "codebook (vocab*columns)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens held)", size([batch, row]))?;
        nearest_code::forward(span, codes, z, codebook, ids);
        Ok(())
    }

    fn rollout_inputs(
        &self,
        dims: &RolloutDims,
        ids_bt: &Buffer<u32>,
        codebook_vk: &Buffer<T>,
        inputs: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "rollout_inputs";
        checks::scales(OP, &dims.schedule, &dims.scales)?;
        ShapeError::at_least(OP, "scales.start", 1, dims.scales.start)?;
        let sources = dims.scales.start - 1..dims.scales.end - 1;
        let (ids, codebook) = codes(OP, dims, sources, ids_bt, codebook_vk)?;
        let tokens = dims.schedule.span(dims.scales.clone()).len();
        let len = size([dims.batch, tokens, dims.channels]);
        let inputs = inputs.head_mut(OP, "inputs (b*tokens of scales*k)", len)?;
        rollout_inputs::forward(dims, ids, codebook, inputs);
        Ok(())
    }

    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        (height, width): (usize, usize),
        ids_bt: &Buffer<u32>,
        codebook_vk: &Buffer<T>,
        map_bkhw: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "code_map";
        let scales = scale..scale.saturating_add(1);
        checks::scales(OP, &dims.schedule, &scales)?;
        let (ids, codebook) = codes(OP, dims, scales, ids_bt, codebook_vk)?;
        ShapeError::at_least(OP, "height", 1, height)?;
        ShapeError::at_least(OP, "width", 1, width)?;
        let len = size([dims.batch, dims.channels, height, width]);
        let map = map_bkhw.head_mut(OP, "map (b*k*h*w)", len)?;
        let size = Scale { height, width };
        code_map::forward(&dims.schedule, scale, size, dims.channels, ids, codebook, map);
        Ok(())
    }

    fn choose_codes(
        &self,
        dims: &ChooseDims,
        logits: &Buffer<T>,
        ids_bt: &mut Buffer<u32>,
    ) -> Result<(), CpuError> {
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
        Ok(choose_codes::forward(dims, logits, &mut ids[first * tokens..])?)
    }

    fn guide(&self, len: usize, t: f64, x: &mut Buffer<T>) -> Result<(), CpuError> {
        let x = x.head_mut("guide", "x (2*len)", size([2, len]))?;
        let (conditional, unconditional) = x.split_at_mut(len);
        guide::forward(t, conditional, unconditional);
        Ok(())
    }

    fn merge_ids(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        from_other: &[bool],
        other_bt: &Buffer<u32>,
        ids_bt: &mut Buffer<u32>,
    ) -> Result<(), CpuError> {
        const OP: &str = "merge_ids";
        ShapeError::equal(OP, "from_other (scales)", schedule.len(), from_other.len())?;
        let len = size([batch, schedule.tokens()]);
        let other = other_bt.head(OP, "other (b*tokens)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", len)?;
        merge_ids::forward(schedule, from_other, other, ids);
        Ok(())
    }

    fn keep_codes(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        kept_bt: &Buffer<u32>,
        given_bt: &Buffer<u32>,
        ids_bt: &mut Buffer<u32>,
    ) -> Result<(), CpuError> {
        const OP: &str = "keep_codes";
        checks::scales(OP, schedule, &scales)?;
        let len = size([batch, schedule.tokens()]);
        let kept = kept_bt.head(OP, "kept (b*tokens)", len)?;
        let given = given_bt.head(OP, "given (b*tokens)", len)?;
        let ids = ids_bt.head_mut(OP, "ids (b*tokens)", len)?;
        keep_codes::forward(schedule.tokens(), schedule.span(scales), kept, given, ids);
        Ok(())
    }

    fn cached_attention(
        &self,
        dims: CachedAttentionDims,
        qkv: &mut Buffer<T>,
        params: &Buffer<T>,
        slots: AttentionSlots,
        cache: &mut Buffer<T>,
        out: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "cached_attention";
        let width = checks::heads(OP, dims.heads, dims.head_dim)?;
        let seen = dims.past.saturating_add(dims.tokens);
        ShapeError::at_least(OP, "capacity (past+tokens)", seen, dims.capacity)?;
        let rows = size([dims.batch, dims.tokens]);
        let weights = head_params(OP, dims.heads, width, params, slots, self.stored)?;
        let qkv = qkv.head_mut(OP, "qkv (b*tokens*3*h*d)", size([rows, 3, width]))?;
        let len = size([2, dims.batch, dims.capacity, width]);
        let cache = cache.head_mut(OP, "cache (2*b*capacity*h*d)", len)?;
        let out = out.head_mut(OP, "out (b*tokens*h*d)", size([rows, width]))?;
        cached_attention::cached_attention(&dims, qkv, weights, cache, out);
        Ok(())
    }
}
