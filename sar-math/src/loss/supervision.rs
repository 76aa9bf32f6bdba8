//! How much every scale of a pass counts, and where its targets lie.

use crate::backend::{LossDims, ShapeError, TargetRows};
use crate::rollout::Pass;
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// The batch a loss is computed on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossBatch {
    /// Samples of this (micro-)batch.
    pub samples: usize,
    /// Samples of the whole optimiser step, over all micro-batches of all workers. If it is 0, all weights are, and
    /// nothing is learnt.
    pub divisor: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// Label smoothing ε of hard targets; 0 is off.
    pub smoothing: f64,
}

/// What a loss measures: how much each scale of a pass counts, and against what.
#[derive(Clone, Copy, Debug)]
pub struct Supervision {
    /// Dimensions, and the weight of each scale's tokens in the gradient.
    pub dims: LossDims,
    /// Index in the whole schedule of each scale of the pass; reports use these indices.
    pub origin: [usize; MAX_SCALES],
    /// Which scales of the pass are supervised, including those whose weight is 0 because σ is.
    pub supervised: [bool; MAX_SCALES],
}

impl Supervision {
    /// Supervision of `L_TF`: the mean over the supervised tokens of a pass whose targets match its
    /// logits token for token.
    pub fn teacher(batch: LossBatch, pass: &Pass) -> Self {
        Self::new(batch, pass, &pass.schedule, 1.0)
    }

    /// Supervision of `σ·L_CSF`: `pass` is the student pass, `whole` is the schedule of the teacher
    /// pass and of the targets.
    pub fn student(batch: LossBatch, pass: &Pass, whole: &ScaleSchedule, sigma: f64) -> Self {
        Self::new(batch, pass, whole, sigma)
    }

    /// The dimensions of a part of the batch.
    pub(super) fn part(&self, samples: Range<usize>) -> Result<LossDims, ShapeError> {
        ShapeError::at_least("loss", "samples (start to end)", samples.start, samples.end)?;
        ShapeError::at_least("loss", "samples of the batch", samples.end, self.dims.batch)?;
        Ok(self.dims.part(&samples))
    }

    /// Supervision of `factor` times the mean over the tokens of the supervised scales of `pass`,
    /// whose targets lie in a buffer of the schedule `whole`.
    ///
    /// The weights are 0 if the pass supervises nothing or the divisor is 0.
    fn new(batch: LossBatch, pass: &Pass, whole: &ScaleSchedule, factor: f64) -> Self {
        let counted = pass.supervised_tokens() as f64 * batch.divisor as f64;
        let weight = if counted > 0.0 { factor / counted } else { 0.0 };
        let (mut weights, mut supervised) = ([0.0; MAX_SCALES], [false; MAX_SCALES]);
        for i in 0..pass.schedule.len() {
            supervised[i] = pass.supervised(i);
            weights[i] = if supervised[i] { weight } else { 0.0 };
        }
        let dims = LossDims {
            batch: batch.samples,
            first_sample: 0,
            schedule: pass.schedule,
            vocab: batch.vocab,
            smoothing: batch.smoothing,
            weights,
            targets: pass.target_rows(whole),
        };
        Self { dims, origin: pass.origin, supervised }
    }
}

impl Pass {
    /// Where the targets of this pass lie in a buffer of the whole schedule: the last scale of the
    /// pass is aligned with the same scale of the whole schedule.
    pub fn target_rows(&self, whole: &ScaleSchedule) -> TargetRows {
        let last = self.origin[self.schedule.len() - 1];
        let shift = whole.range(last).end.saturating_sub(self.schedule.tokens());
        TargetRows { tokens: whole.tokens(), shift }
    }
}
