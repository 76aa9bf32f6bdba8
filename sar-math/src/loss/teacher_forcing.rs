//! L_TF: cross-entropy of every token against the image's codes.

use super::report::Recorder;
use super::{ScaleReport, Supervision};
use crate::backend::LossOps;
use core::ops::Range;

/// `L_TF = 1/(divisor·T) Σ ℓ(logits, f)` over samples and tokens; ℓ is the cross-entropy against the
/// image's codes f, smoothed by ε where asked.
///
/// This is also the loss of student, hybrid and interleaved forcing, whose first pass is supervised
/// in the same way.
pub struct TeacherForcing<B: LossOps> {
    recorder: Recorder<B>,
}

impl<B: LossOps> TeacherForcing<B> {
    /// Allocates room for `rows` = samples·tokens of the largest micro-batch and the longest
    /// schedule, and for the sums of `parts` micro-batches of a step.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, rows: usize, parts: usize) -> Result<Self, B::Error> {
        Ok(Self { recorder: Recorder::new(backend, rows, parts)? })
    }

    /// Computes the per-token losses of the logits `[n, T, v]` of n `samples` against
    /// `targets[b, T]` of all samples, and keeps them for the calls that follow. `supervision`
    /// comes from [`Supervision::teacher`].
    ///
    /// # Errors
    /// A shape error, or a target outside the vocabulary; a device fault may surface here or later.
    pub fn forward(
        &mut self,
        backend: &B,
        supervision: &Supervision,
        samples: Range<usize>,
        logits_nlv: &B::Activation,
        targets_bl: &B::Ids,
    ) -> Result<(), B::Error> {
        let dims = supervision.part(samples)?;
        backend.cross_entropy(&dims, logits_nlv, targets_bl, &mut self.recorder.tokens)
    }

    /// In place: the logits that `forward` saw become ∂L_TF/∂logits. The samples must be those of
    /// that `forward`.
    ///
    /// # Errors
    /// As [`TeacherForcing::forward`].
    pub fn backward(
        &self,
        backend: &B,
        supervision: &Supervision,
        samples: Range<usize>,
        logits_to_dlogits: &mut B::Activation,
        targets_bl: &B::Ids,
    ) -> Result<(), B::Error> {
        let (dims, saved) = (supervision.part(samples)?, &self.recorder.tokens);
        backend.cross_entropy_backward(&dims, logits_to_dlogits, targets_bl, saved)
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
    /// # Errors
    /// A device fault of earlier work; as [`TeacherForcing::keep`].
    pub fn report(
        &self,
        backend: &B,
        supervision: &Supervision,
        part: usize,
    ) -> Result<ScaleReport, B::Error> {
        self.recorder.kept(backend, supervision, part)
    }
}
