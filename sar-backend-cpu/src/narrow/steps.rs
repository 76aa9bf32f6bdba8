//! Losses, rollout and optimiser.

use super::{Buf, Done, Ids, NarrowCpu, held, rounding, store, with_loss};
use sar_math::ScaleSchedule;
use sar_math::backend::{
    AdamW, AttentionSlots, CachedAttentionDims, ChooseDims, CodeDims, LossDims, LossOps, MapDims,
    OptimizerOps, RolloutDims, RolloutOps, Slot, TokenLoss, TokenSpan,
};
use std::ops::Range;

impl LossOps for NarrowCpu {
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits: &Buf,
        targets: &Ids,
        out: &mut TokenLoss<Self>,
    ) -> Done {
        with_loss(out, |out| self.0.cross_entropy(dims, logits, targets, out))
    }

    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits: &mut Buf,
        targets: &Ids,
        saved: &TokenLoss<Self>,
    ) -> Done {
        self.0.cross_entropy_backward(dims, logits, targets, &held(saved))?;
        store(logits);
        Ok(())
    }

    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits: &Buf,
        teacher: &Buf,
        out: &mut TokenLoss<Self>,
    ) -> Done {
        with_loss(out, |out| self.0.soft_cross_entropy(dims, logits, teacher, out))
    }

    fn soft_cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits: &mut Buf,
        teacher: &Buf,
        saved: &TokenLoss<Self>,
    ) -> Done {
        self.0.soft_cross_entropy_backward(dims, logits, teacher, &held(saved))?;
        store(logits);
        Ok(())
    }

    rounding! {
        scale_sums(
            batch: usize, schedule: &ScaleSchedule, values: &Buf, sums: &mut Buf, offset: usize,
        ) -> [];
    }
}

impl RolloutOps for NarrowCpu {
    rounding! {
        area_tokens(
            dims: MapDims, span: &TokenSpan, latent: &Buf, tokens: &mut Buf,
        ) -> [tokens];
        nearest_code(
            batch: usize, span: &TokenSpan, codes: CodeDims, z: &Buf, codebook: &Buf, ids: &mut Ids,
        ) -> [];
        rollout_inputs(dims: &RolloutDims, ids: &Ids, codebook: &Buf, inputs: &mut Buf) -> [inputs];
        code_map(
            dims: &RolloutDims, scale: usize, size: (usize, usize), ids: &Ids, codebook: &Buf,
            map: &mut Buf,
        ) -> [map];
        choose_codes(dims: &ChooseDims, logits: &Buf, ids: &mut Ids) -> [];
        guide(len: usize, t: f64, x: &mut Buf) -> [x];
        merge_ids(
            batch: usize, schedule: &ScaleSchedule, from_other: &[bool], other: &Ids, ids: &mut Ids,
        ) -> [];
        keep_codes(
            batch: usize, schedule: &ScaleSchedule, scales: Range<usize>, kept: &Ids, given: &Ids,
            ids: &mut Ids,
        ) -> [];
        cached_attention(
            dims: CachedAttentionDims, qkv: &mut Buf, params: &Buf, slots: AttentionSlots,
            cache: &mut Buf, out: &mut Buf,
        ) -> [qkv, cache, out];
    }
}

impl OptimizerOps for NarrowCpu {
    rounding! {
        grad_norm(len: usize, grads: &Buf, norm: &mut Buf) -> [];
        adamw(
            hyper: &AdamW, decayed: &[Slot], plain: &[Slot], grads: &Buf, norm: &Buf,
            first_moment: &mut Buf, second_moment: &mut Buf, params: &mut Buf,
        ) -> [];
        ema(len: usize, decay: f64, params: &Buf, average: &mut Buf) -> [];
    }
}
