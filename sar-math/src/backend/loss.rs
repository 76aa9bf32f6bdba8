//! Cross-entropies over a vocabulary, and the sums for reporting them.

use super::Buffers;
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// Dimensions of a loss over `logits[b, l, v]`, and how much each token counts.
///
/// The logits may belong to a part of a batch, so that those of the whole batch are never needed at
/// once: ids of targets and [`TokenLoss`] cover the whole batch, while the logits cover `batch`
/// samples from `first_sample` on.
#[derive(Clone, Copy, Debug)]
pub struct LossDims {
    /// Number of samples B that the logits belong to.
    pub batch: usize,
    /// Index, among the samples of the targets' ids and of the token losses, of the logits' first
    /// sample.
    pub first_sample: usize,
    /// Tokens of each sample, and which scale each belongs to.
    pub schedule: ScaleSchedule,
    /// Vocabulary V.
    pub vocab: usize,
    /// Label smoothing ε: targets are `(1−ε)·onehot + ε/V`. Hard targets only.
    pub smoothing: f64,
    /// Factor of every token of a scale in the gradient of the total. Zero excludes a scale: the
    /// gradient of its logits is exactly zero, even if they are not finite. Logits of other weights are finite, or their
    /// token's loss and gradient are not defined.
    pub weights: [f64; MAX_SCALES],
    /// Where the targets lie.
    pub targets: TargetRows,
}

/// Where the target of a token lies in a buffer of targets `[b, tokens]` (or `[b, tokens, v]`):
/// token l of the logits has its target at `l + shift`.
///
/// A pass over scales (1, N) is supervised by the last columns of a buffer of the whole schedule
/// without a copy: its shift is the first token of scale N, minus one for the class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRows {
    /// Number of targets per sample; at least the number of the logits' tokens plus the shift.
    pub tokens: usize,
    /// Index of the target of the logits' token 0.
    pub shift: usize,
}

impl LossDims {
    /// The same loss restricted to the range `samples` of its samples.
    pub const fn part(&self, samples: &Range<usize>) -> Self {
        Self {
            first_sample: self.first_sample.saturating_add(samples.start),
            batch: samples.end.saturating_sub(samples.start),
            ..*self
        }
    }
}

impl TargetRows {
    /// Targets that match the logits of a schedule token for token.
    pub const fn beside(schedule: &ScaleSchedule) -> Self {
        Self { tokens: schedule.tokens(), shift: 0 }
    }

    /// The row of the target for row `row` of the logits, where a sample has `tokens` logits.
    ///
    /// # Panics
    /// If `tokens` is 0.
    #[inline(always)]
    pub const fn of(self, row: usize, tokens: usize) -> usize {
        row / tokens * self.tokens + row % tokens + self.shift
    }
}

/// What a cross-entropy leaves per token `[b, l]` of the whole batch, for its backward and for
/// reports.
pub struct TokenLoss<B: Buffers + ?Sized> {
    /// The loss, unweighted.
    pub loss_bl: B::Accum,
    /// 1 where the largest logit (lowest index on ties) is the target's largest, else 0.
    pub hits_bl: B::Accum,
    /// Log-sum-exp of the logits.
    pub lse_bl: B::Accum,
    /// Log-sum-exp of the teacher's logits, where the target is soft.
    pub teacher_lse_bl: B::Accum,
}

impl<B: Buffers + ?Sized> TokenLoss<B> {
    /// Allocates room for `rows` = batch·tokens tokens.
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
    /// A shape error; the same holds for all methods below. A target outside the vocabulary is an error, or makes its
    /// token's loss NaN where finding it would mean waiting for a device. That holds for tokens of weight zero, too.
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Self::Activation,
        targets_bl: &Self::Ids,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), Self::Error>;
    /// In place: logits of a token of scale s become `weights[s]·(softmax − target)`.
    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Self::Activation,
        targets_bl: &Self::Ids,
        saved: &TokenLoss<Self>,
    ) -> Result<(), Self::Error>;

    /// Cross-entropy of each token against the softmax of `teacher_blv`, which takes no gradient.
    /// The teacher's logits belong to the same samples as the student's, whatever `first_sample`
    /// is.
    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Self::Activation,
        teacher_blv: &Self::Activation,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), Self::Error>;
    /// In place: logits of a token of scale s become `weights[s]·(softmax(logits) − softmax(teacher))`.
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
