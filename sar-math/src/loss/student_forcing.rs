//! L_CSF: the student pass pulled towards what the teacher pass predicted.

use super::report::Recorder;
use super::{ScaleReport, Supervision};
use crate::backend::LossOps;
use core::ops::Range;

/// What the student's logits are compared with; both kinds cover the *whole* schedule.
pub enum StudentTargets<'a, B: LossOps> {
    /// Codes `[b, T]` of the whole batch: the teacher's predictions, or the image's.
    Hard(&'a B::Ids),
    /// The teacher's logits `[n, T, v]` of the student's samples; their softmax is the target.
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
    /// Allocates room for `rows` = samples·tokens of the largest micro-batch and the longest
    /// schedule, and for the sums of `parts` micro-batches of a step.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, rows: usize, parts: usize) -> Result<Self, B::Error> {
        Ok(Self { recorder: Recorder::new(backend, rows, parts)? })
    }

    /// Computes the per-token losses of the student's logits `[n, l, v]` of n `samples`, and keeps
    /// them for the calls that follow.
    ///
    /// `supervision` comes from [`Supervision::student`]. Label smoothing applies only to hard
    /// targets.
    ///
    /// # Errors
    /// A shape error, or a target outside the vocabulary; a device fault may surface here or later.
    pub fn forward(
        &mut self,
        backend: &B,
        supervision: &Supervision,
        samples: Range<usize>,
        logits_nlv: &B::Activation,
        targets: StudentTargets<'_, B>,
    ) -> Result<(), B::Error> {
        let (dims, out) = (supervision.part(samples)?, &mut self.recorder.tokens);
        match targets {
            StudentTargets::Hard(ids) => backend.cross_entropy(&dims, logits_nlv, ids, out),
            StudentTargets::Soft(teacher) => {
                backend.soft_cross_entropy(&dims, logits_nlv, teacher, out)
            }
        }
    }

    /// In place: the logits that `forward` saw become ∂(σ·L_CSF)/∂logits. Samples and targets must
    /// be those of that `forward`, unchanged: soft targets take the teacher's *logits*, not its
    /// gradient.
    ///
    /// # Errors
    /// As [`StudentForcing::forward`].
    pub fn backward(
        &self,
        backend: &B,
        supervision: &Supervision,
        samples: Range<usize>,
        logits_to_dlogits: &mut B::Activation,
        targets: StudentTargets<'_, B>,
    ) -> Result<(), B::Error> {
        let (dims, saved) = (supervision.part(samples)?, &self.recorder.tokens);
        match targets {
            StudentTargets::Hard(ids) => {
                backend.cross_entropy_backward(&dims, logits_to_dlogits, ids, saved)
            }
            StudentTargets::Soft(teacher) => {
                backend.soft_cross_entropy_backward(&dims, logits_to_dlogits, teacher, saved)
            }
        }
    }

    /// Keeps loss and accuracy of each scale as those of micro-batch `part`, counted from 0, once
    /// `forward` has seen every sample. Does not wait for the device.
    ///
    /// # Errors
    /// A shape error if there is no room for that many micro-batches.
    pub fn keep(
        &mut self,
        backend: &B,
        supervision: &Supervision,
        part: usize,
    ) -> Result<(), B::Error> {
        self.recorder.keep(backend, supervision, part)
    }

    /// Returns what was kept for micro-batch `part`, given the same supervision. Waits for the
    /// device.
    ///
    /// Against a soft target, a token is accurate if its largest logit is where the teacher's is.
    ///
    /// # Errors
    /// A device fault of earlier work; as [`StudentForcing::keep`].
    pub fn report(
        &self,
        backend: &B,
        supervision: &Supervision,
        part: usize,
    ) -> Result<ScaleReport, B::Error> {
        self.recorder.kept(backend, supervision, part)
    }
}
