//! Cross-entropies over a vocabulary, and the sums they are reported by.

use super::Buffers;
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// Dimensions of a loss over `logits[b, l, v]`, and how much each token counts.
///
/// The logits may be those of a part of a batch, so that the logits of all of it are never needed at
/// once: ids of targets and [`TokenLoss`] are of the whole batch, logits of `batch` samples from
/// `first_sample` on.
#[derive(Clone, Copy, Debug)]
pub struct LossDims {
    /// Samples B of which there are logits.
    pub batch: usize,
    /// Sample of the targets' ids and of the token losses that is the first of the logits.
    pub first_sample: usize,
    /// Tokens of each sample, and which scale each belongs to.
    pub schedule: ScaleSchedule,
    /// Vocabulary V.
    pub vocab: usize,
    /// Label smoothing ε: targets are `(1−ε)·onehot + ε/V`. Hard targets only.
    pub smoothing: f64,
    /// The factor of every token of a scale in the gradient of the total. Zero takes a scale out
    /// of it: its logits' gradient is exactly zero.
    pub weights: [f64; MAX_SCALES],
    /// Where the targets stand.
    pub targets: TargetRows,
}

/// Where the target of a token stands in a buffer of targets `[b, tokens]` (or `[b, tokens, v]`):
/// token l of the logits has its target at `l + shift`.
///
/// A pass over scales (1, N) is supervised by the last columns of a buffer of the whole schedule
/// without a copy: its shift is the first token of scale N, less one for the class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRows {
    /// Targets of each sample; at least the logits' tokens and the shift.
    pub tokens: usize,
    /// Target of the logits' token 0.
    pub shift: usize,
}

impl LossDims {
    /// The same loss on `samples` of this one's.
    pub const fn part(&self, samples: &Range<usize>) -> Self {
        Self {
            first_sample: self.first_sample.saturating_add(samples.start),
            batch: samples.end.saturating_sub(samples.start),
            ..*self
        }
    }
}

impl TargetRows {
    /// Targets that stand token for token beside the logits of a schedule.
    pub const fn beside(schedule: &ScaleSchedule) -> Self {
        Self { tokens: schedule.tokens(), shift: 0 }
    }

    /// The row of the target of logits row `row`, where a sample has `tokens` logits.
    ///
    /// # Panics
    /// Where a sample has none.
    #[inline(always)]
    pub const fn of(self, row: usize, tokens: usize) -> usize {
        row / tokens * self.tokens + row % tokens + self.shift
    }
}

/// What a cross-entropy leaves per token `[b, l]` of the whole batch, for its backward and for
/// reports.
pub struct TokenLoss<B: Buffers + ?Sized> {
    /// The loss, not weighted.
    pub loss_bl: B::Accum,
    /// 1 where the largest logit (lowest index on ties) is the target's largest, else 0.
    pub hits_bl: B::Accum,
    /// Log-sum-exp of the logits.
    pub lse_bl: B::Accum,
    /// Log-sum-exp of the teacher's logits, where the target is soft.
    pub teacher_lse_bl: B::Accum,
}

impl<B: Buffers + ?Sized> TokenLoss<B> {
    /// Room for `rows` = batch·tokens tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, rows: usize) -> Result<Self, B::Error> {
        Ok(Self {
            loss_bl: backend.accum(rows)?,
            hits_bl: backend.accum(rows)?,
            lse_bl: backend.accum(rows)?,
            teacher_lse_bl: backend.accum(rows)?,
        })
    }
}

/// Losses on logits, forward and backward.
pub trait LossOps: Buffers {
    /// Cross-entropy of each token against a hard target (see [`TargetRows`]).
    ///
    /// # Errors
    /// Shape; likewise for all below. A target outside the vocabulary is an error on the CPU.
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Self::Activation,
        targets_bl: &Self::Ids,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), Self::Error>;
    /// In place: logits become `weight_scale·(softmax − target)`.
    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Self::Activation,
        targets_bl: &Self::Ids,
        saved: &TokenLoss<Self>,
    ) -> Result<(), Self::Error>;

    /// Cross-entropy of each token against the softmax of `teacher_blv`, which takes no gradient. The
    /// teacher's logits are of the same samples as the student's, whatever the first of them is.
    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Self::Activation,
        teacher_blv: &Self::Activation,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), Self::Error>;
    /// In place: logits become `weight_scale·(softmax(logits) − softmax(teacher))`.
    fn soft_cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Self::Activation,
        teacher_blv: &Self::Activation,
        saved: &TokenLoss<Self>,
    ) -> Result<(), Self::Error>;

    /// `sums[offset + i] = Σ values[b, l]` over the batch and the tokens of scale i.
    fn scale_sums(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        values_bl: &Self::Accum,
        sums: &mut Self::Accum,
        offset: usize,
    ) -> Result<(), Self::Error>;
}
