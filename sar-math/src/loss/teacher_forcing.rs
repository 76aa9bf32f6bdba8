//! L_TF: cross-entropy of every token against the image's codes.

use super::report::Recorder;
use super::{LossBatch, ScaleReport, Supervision};
use crate::backend::LossOps;
use crate::rollout::Pass;

/// `L_TF = 1/(divisor·T) Σ ℓ(logits, f)` over samples and tokens; ℓ is the cross-entropy against the
/// image's codes f, smoothed by ε where asked.
///
/// Also the loss of student, hybrid and interleaved forcing, whose first pass is supervised alike.
pub struct TeacherForcing<B: LossOps> {
    recorder: Recorder<B>,
}

impl<B: LossOps> TeacherForcing<B> {
    /// Room for `rows` = samples·tokens of the largest batch and the longest schedule.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, rows: usize) -> Result<Self, B::Error> {
        Ok(Self { recorder: Recorder::new(backend, rows)? })
    }

    /// Per-token losses of `logits[b, T, v]` against `targets[b, T]`, kept for what follows.
    ///
    /// # Errors
    /// Shape; a target outside the vocabulary; a device fault may surface here or later.
    pub fn forward(
        &mut self,
        backend: &B,
        batch: LossBatch,
        pass: &Pass,
        logits_blv: &B::Activation,
        targets_bl: &B::Ids,
    ) -> Result<Supervision, B::Error> {
        let supervision = Supervision::new(batch, pass, &pass.schedule, 1.0);
        let out = &mut self.recorder.tokens;
        backend.cross_entropy(&supervision.dims, logits_blv, targets_bl, out)?;
        Ok(supervision)
    }

    /// In place: the logits that `forward` saw become ∂L_TF/∂logits.
    ///
    /// # Errors
    /// As [`TeacherForcing::forward`].
    pub fn backward(
        &self,
        backend: &B,
        supervision: &Supervision,
        logits_to_dlogits: &mut B::Activation,
        targets_bl: &B::Ids,
    ) -> Result<(), B::Error> {
        let saved = &self.recorder.tokens;
        backend.cross_entropy_backward(&supervision.dims, logits_to_dlogits, targets_bl, saved)
    }

    /// Loss and accuracy of each scale of the last `forward`. Waits for the device.
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
