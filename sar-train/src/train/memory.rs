//! Memory of a training step, allocated once for the longest schedule.

use crate::model::generator::{Generator, Gradients, Recompute, Trace};
use crate::sample::Sampler;
use sar_math::ScaleSchedule;
use sar_math::backend::Backend;
use sar_math::loss::{StudentForcing, Supervision, TeacherForcing};

/// What a way of training needs beside teacher forcing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// An unconditional half beside the teacher pass (guided rollouts).
    pub guided: bool,
    /// A copy of the teacher's logits (soft targets).
    pub soft: bool,
    /// Generation scale by scale (student, hybrid, interleaved forcing).
    pub sampler: bool,
    /// What the backward computes again.
    pub recompute: Recompute,
}

/// Buffers of a step: nothing is allocated after they are.
pub struct StepMemory<B: Backend> {
    pub(crate) trace: Trace<B>,
    pub(crate) grads: Gradients<B>,
    /// The latent at every scale, `[b, T, k]`.
    pub(crate) tokens: B::Activation,
    /// Codes of the images, `[b, T]`.
    pub(crate) truth: B::Ids,
    /// Codes of the model's own, `[b, T]`.
    pub(crate) own: B::Ids,
    /// Codes that feed a pass where truth and own are mixed, `[b, T]`.
    pub(crate) mixed: B::Ids,
    pub(crate) inputs: B::Activation,
    /// Labels of the samples and, where guided, of their unconditional half.
    pub(crate) labels: B::Ids,
    pub(crate) keep: B::Accum,
    pub(crate) teacher_loss: TeacherForcing<B>,
    pub(crate) student_loss: StudentForcing<B>,
    /// What the losses of the last forward passes were asked for: teacher's, student's.
    pub(crate) supervised: (Option<Supervision>, Option<Supervision>),
    pub(crate) teacher_logits: Option<B::Activation>,
    pub(crate) norm: B::Accum,
    pub(crate) sampler: Option<Sampler<B>>,
}

impl<B: Backend> StepMemory<B> {
    /// Room for steps of `batch` images on schedules of at most `tokens` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        generator: &Generator,
        batch: usize,
        schedule: &ScaleSchedule,
        tokens: usize,
        needs: Needs,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let rows = if needs.guided { 2 * batch } else { batch };
        let logits = batch * tokens * g.vocab;
        Ok(Self {
            trace: Trace::new(backend, generator, rows, tokens, needs.recompute)?,
            grads: Gradients::new(backend, generator, batch, tokens)?,
            tokens: backend.activation(batch * tokens * g.channels)?,
            truth: backend.ids(batch * tokens)?,
            own: backend.ids(batch * tokens)?,
            mixed: backend.ids(batch * tokens)?,
            inputs: backend.activation(batch * tokens * g.channels)?,
            labels: backend.ids(rows)?,
            keep: backend.accum(2 * g.depth * rows)?,
            teacher_loss: TeacherForcing::new(backend, batch * tokens)?,
            student_loss: StudentForcing::new(backend, batch * tokens)?,
            supervised: (None, None),
            teacher_logits: needs.soft.then(|| backend.activation(logits)).transpose()?,
            norm: backend.accum(1)?,
            sampler: needs
                .sampler
                .then(|| Sampler::new(backend, generator, batch, schedule, false))
                .transpose()?,
        })
    }

    /// Parameter gradients, in the generator's layout; they accumulate.
    pub fn gradients(&self) -> &B::Accum {
        &self.grads.params
    }
}
