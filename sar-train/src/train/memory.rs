//! Memory of a training step, allocated once for the longest schedule.

use crate::model::generator::{Generator, Gradients, Head, PassInput, Recompute, Trace};
use crate::model::tokenizer::{Quantizer, QuantizerMemory};
use crate::sample::Sampler;
use sar_math::ScaleSchedule;
use sar_math::backend::Backend;
use sar_math::loss::{StudentForcing, Supervision, TeacherForcing};
use sar_math::rollout::Pass;

/// Memory that a way of training needs in addition to that of teacher forcing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// An unconditional half of the teacher pass (guided rollouts).
    pub guided: bool,
    /// The teacher's last norm, and room for some of its logits (soft targets).
    pub soft: bool,
    /// A sampler that generates scale by scale (student, hybrid, interleaved forcing).
    pub sampler: bool,
    /// Number of micro-batches in one optimiser step.
    pub accumulate: usize,
    /// What the backward pass recomputes.
    pub recompute: Recompute,
    /// Number of tokens whose logits there is room for; those of one image always fit.
    pub head_tokens: usize,
}

impl Needs {
    /// Returns the number of samples in the teacher pass of `batch` images.
    pub(crate) fn rows(&self, batch: usize) -> usize {
        if self.guided { 2 * batch } else { batch }
    }

    /// Returns the number of tokens whose logits fit: at least those of one image (and of its unconditional
    /// twin), and at most those of a pass.
    pub(crate) fn head_rows(&self, batch: usize, tokens: usize) -> usize {
        let image = self.rows(1) * tokens;
        image * (self.head_tokens / image.max(1)).clamp(1, batch.max(1))
    }
}

/// Inputs of a pass.
pub(crate) struct Given<B: Backend> {
    pub(crate) inputs: B::Activation,
    /// Labels of the samples and, where guided, of their unconditional half.
    pub(crate) labels: B::Ids,
    /// Drop path's factors.
    pub(crate) keep: B::Accum,
}

impl<B: Backend> Given<B> {
    /// Returns the input of a pass of `batch` samples, of which the first `input_batch` have inputs of their
    /// own; `keep` says whether there is drop path.
    pub(crate) fn input(
        &self,
        pass: &Pass,
        batch: usize,
        input_batch: usize,
        keep: bool,
    ) -> PassInput<'_, B> {
        PassInput {
            batch,
            schedule: pass.schedule,
            labels: &self.labels,
            inputs: &self.inputs,
            input_batch,
            with_start: pass.with_start,
            keep: keep.then_some(&self.keep),
        }
    }
}

/// The source of soft targets: the teacher's last norm, and room for some of its logits.
pub(crate) struct SoftTeacher<B: Backend> {
    /// `[b, T, c]`.
    pub(crate) normed: B::Activation,
    pub(crate) head: Head<B>,
}

/// Buffers of a step; no step allocates any others.
pub struct StepMemory<B: Backend> {
    pub(crate) trace: Trace<B>,
    pub(crate) head: Head<B>,
    pub(crate) grads: Gradients<B>,
    /// From latents to codes, and from codes to inputs.
    pub(crate) coding: QuantizerMemory<B>,
    /// Codes of the images, `[b, T]`.
    pub(crate) truth: B::Ids,
    /// Codes that the model chose, `[b, T]`.
    pub(crate) own: B::Ids,
    /// Codes that feed a pass which reads some of both, `[b, T]`.
    pub(crate) mixed: B::Ids,
    pub(crate) given: Given<B>,
    pub(crate) teacher_loss: TeacherForcing<B>,
    pub(crate) student_loss: StudentForcing<B>,
    /// What supervised the passes of each micro-batch of the step: the teacher's, the student's.
    pub(crate) supervised: Vec<(Supervision, Option<Supervision>)>,
    /// Labels of the forward pass after class dropout, with those of the unconditional half.
    pub(crate) labels: Vec<u32>,
    pub(crate) soft: Option<SoftTeacher<B>>,
    pub(crate) sampler: Option<Sampler<B>>,
}

impl<B: Backend> StepMemory<B> {
    /// Allocates memory for steps of `batch` images on a schedule, or on others with no more tokens that end in the same
    /// grid.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        generator: &Generator,
        quantizer: &Quantizer<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        needs: Needs,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let (rows, tokens) = (needs.rows(batch), schedule.tokens());
        let head = || Head::new(backend, generator, needs.head_rows(batch, tokens));
        let soft = || -> Result<SoftTeacher<B>, B::Error> {
            let normed = backend.activation(batch * tokens * g.width)?;
            Ok(SoftTeacher { normed, head: head()? })
        };
        Ok(Self {
            trace: Trace::new(backend, generator, rows, tokens, needs.recompute)?,
            head: head()?,
            grads: Gradients::new(backend, generator, batch, tokens)?,
            coding: quantizer.memory(backend, batch, schedule)?,
            truth: backend.ids(batch * tokens)?,
            own: backend.ids(batch * tokens)?,
            mixed: backend.ids(batch * tokens)?,
            given: Given {
                inputs: backend.activation(batch * tokens * g.channels)?,
                labels: backend.ids(rows)?,
                keep: backend.accum(2 * g.depth * rows)?,
            },
            // Sums of held-out images go beside those of the step.
            teacher_loss: TeacherForcing::new(backend, batch * tokens, needs.accumulate + 1)?,
            student_loss: StudentForcing::new(backend, batch * tokens, needs.accumulate)?,
            supervised: Vec::new(),
            labels: Vec::with_capacity(rows),
            soft: needs.soft.then(soft).transpose()?,
            sampler: needs
                .sampler
                .then(|| Sampler::new(backend, generator, quantizer, batch, schedule, false))
                .transpose()?,
        })
    }

    /// Parameter gradients of the step, in the generator's layout.
    pub fn gradients(&self) -> &B::Accum {
        &self.grads.params
    }
}
