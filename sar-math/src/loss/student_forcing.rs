//! L_CSF: the student pass pulled towards what the teacher pass predicted.

use super::report::Recorder;
use super::{LossBatch, ScaleReport, Supervision};
use crate::ScaleSchedule;
use crate::backend::{LossOps, TokenLoss};
use crate::rollout::Pass;

/// What the student's logits are compared with; both are of the *whole* schedule.
pub enum StudentTargets<'a, B: LossOps> {
    /// Codes `[b, T]`: the teacher's predictions, or the image's.
    Hard(&'a B::Ids),
    /// The teacher's logits `[b, T, v]`, of which the softmax is the target.
    Soft(&'a B::Activation),
}

impl<B: LossOps> Clone for StudentTargets<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: LossOps> Copy for StudentTargets<'_, B> {}

/// `σ·L_CSF = σ/(divisor·n) Σ ℓ(logits^S, target)` over samples and the n tokens of the supervised
/// scales of the student pass.
///
/// ℓ is the cross-entropy against a hard target (the rollout's codes f̂, or the image's), or against
/// the detached softmax of the teacher's logits. No gradient flows to any target.
pub struct StudentForcing<B: LossOps> {
    recorder: Recorder<B>,
}

impl<B: LossOps> StudentForcing<B> {
    /// Room for `rows` = samples·tokens of the largest batch and the longest schedule.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, rows: usize) -> Result<Self, B::Error> {
        Ok(Self { recorder: Recorder::new(backend, rows)? })
    }

    /// Per-token losses of the student's `logits[b, l, v]`, kept for what follows.
    ///
    /// `pass` is the student pass and `whole` the schedule of the teacher pass and of the targets.
    /// Label smoothing applies to hard targets alone.
    ///
    /// # Errors
    /// Shape; a target outside the vocabulary; a device fault may surface here or later.
    pub fn forward(
        &mut self,
        backend: &B,
        batch: LossBatch,
        pass: &Pass,
        whole: &ScaleSchedule,
        sigma: f64,
        logits_blv: &B::Activation,
        targets: StudentTargets<'_, B>,
    ) -> Result<Supervision, B::Error> {
        let mut supervision = Supervision::new(batch, pass, whole, sigma);
        let out = &mut self.recorder.tokens;
        match targets {
            StudentTargets::Hard(ids) => {
                backend.cross_entropy(&supervision.dims, logits_blv, ids, out)?;
            }
            StudentTargets::Soft(teacher) => {
                supervision.dims.smoothing = 0.0;
                backend.soft_cross_entropy(&supervision.dims, logits_blv, teacher, out)?;
            }
        }
        Ok(supervision)
    }

    /// In place: the logits that `forward` saw become ∂(σ·L_CSF)/∂logits. The targets must be those
    /// of `forward`, unchanged: soft ones take the teacher's *logits*, not yet its gradient.
    ///
    /// # Errors
    /// As [`StudentForcing::forward`].
    pub fn backward(
        &self,
        backend: &B,
        supervision: &Supervision,
        logits_to_dlogits: &mut B::Activation,
        targets: StudentTargets<'_, B>,
    ) -> Result<(), B::Error> {
        let (dims, saved): (_, &TokenLoss<B>) = (&supervision.dims, &self.recorder.tokens);
        match targets {
            StudentTargets::Hard(ids) => {
                backend.cross_entropy_backward(dims, logits_to_dlogits, ids, saved)
            }
            StudentTargets::Soft(teacher) => {
                backend.soft_cross_entropy_backward(dims, logits_to_dlogits, teacher, saved)
            }
        }
    }

    /// Loss and accuracy of each scale of the last `forward`. Waits for the device.
    ///
    /// Accuracy against a soft target: the largest logit is where the teacher's is.
    ///
    /// # Errors
    /// A device fault of earlier work.
    pub fn report(
        &mut self,
        backend: &B,
        supervision: &Supervision,
    ) -> Result<ScaleReport, B::Error> {
        self.recorder.report(backend, supervision)
    }
}
