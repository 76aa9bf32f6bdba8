//! A generator's weights on one backend, and the gradients of its share of a step.

use super::TrainError;
use super::memory::StepMemory;
use super::settings::StepSettings;
use super::step::{MicroBatch, StepInput};
use super::trainer::expect_length;
use crate::config::{Config, TrainConfig};
use crate::model::generator::Generator;
use crate::model::tokenizer::Quantizer;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, MapDims};
use sar_math::loss::ScaleReport;
use sar_math::rollout::{Method, Plan};
use std::ops::Range;

/// A source of training images, as latents.
pub trait Batches<B: Backend> {
    /// Writes the latents of the next batch, `[b, k, h, w]`, to `latents`; returns its labels.
    ///
    /// # Errors
    /// Images that cannot be read, or a failure of the backend.
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError>;
}

/// Losses of a step, or of a rank's share of it: means over its micro-batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLosses {
    /// Losses of the first pass.
    pub first: ScaleReport,
    /// Losses of the student pass, if there is one.
    pub second: Option<ScaleReport>,
}

impl StepLosses {
    /// Merges the losses of other micro-batches of the same step.
    pub(super) fn merge(&mut self, other: &Self) {
        self.first.merge(&other.first);
        if let (Some(second), Some(other)) = (self.second.as_mut(), &other.second) {
            second.merge(other);
        }
    }
}

/// A copy of a generator in training, with the memory for a step's gradients. It has no optimiser: a [`Trainer`]
/// updates the weights of its own replica, and the other ranks of a run are sent theirs.
///
/// [`Trainer`]: super::Trainer
pub struct Replica<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) generator: Generator,
    pub(crate) schedule: ScaleSchedule,
    pub(crate) config: TrainConfig,
    pub(crate) settings: StepSettings,
    pub(crate) params: B::Params,
    pub(crate) quantizer: &'a Quantizer<B>,
    pub(crate) latents: B::Activation,
    pub(crate) latent_dims: MapDims,
    pub(crate) memory: StepMemory<B>,
}

impl<'a, B: Backend> Replica<'a, B> {
    /// Creates a replica with weights of zero.
    ///
    /// `quantizer` is the tokenizer's; latents are `height`×`width`.
    ///
    /// # Errors
    /// A configuration out of range, or a way of training that its schedule is too short for; out of memory.
    pub fn new(
        backend: &'a B,
        generator: Generator,
        config: &Config,
        quantizer: &'a Quantizer<B>,
        (height, width): (usize, usize),
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let shape = generator.shape().clone();
        expect_length("codes of the tokenizer", shape.vocab, quantizer.vocab())?;
        expect_length("channels of the tokenizer", shape.channels, quantizer.channels())?;
        let settings = StepSettings::of(config);
        let (schedule, batch) = (config.generator.schedule, config.train.batch);
        Plan::new(settings.method, settings.target(), &schedule, settings.seed, 0)
            .map_err(TrainError::Plan)?;
        let params = backend.params(generator.layout().len())?;
        let latent_dims = MapDims { batch, channels: shape.channels, height, width };
        let needs = settings.needs();
        let memory = StepMemory::new(backend, &generator, quantizer, batch, &schedule, needs)?;
        Ok(Self {
            backend,
            params,
            quantizer,
            latents: backend.activation(batch * shape.channels * height * width)?,
            latent_dims,
            memory,
            schedule,
            config: config.train.clone(),
            settings,
            generator,
        })
    }

    /// Computes the gradients of the micro-batches `share` of step `step`, whose images are the next of `batches`.
    /// They replace those of the step before.
    ///
    /// # Errors
    /// The images', the backend's.
    pub fn gradients(
        &mut self,
        step: u64,
        share: Range<usize>,
        batches: &mut dyn Batches<B>,
    ) -> Result<(), TrainError> {
        let TrainConfig { batch, accumulate, .. } = self.config;
        for (index, of_step) in share.enumerate() {
            let labels = batches.next(self.backend, &mut self.latents)?;
            let (first_image, images_in_step) = (of_step * batch, batch * accumulate);
            self.accumulate(step, &labels, MicroBatch { index, first_image, images_in_step })?;
        }
        Ok(())
    }

    /// Adds the gradients of the images in `self.latents`.
    fn accumulate(
        &mut self,
        step: u64,
        labels: &[u32],
        micro_batch: MicroBatch,
    ) -> Result<(), TrainError> {
        let seed = self.settings.seed;
        let schedule = match self.config.random_schedules {
            true => self.schedule.random_at(seed, step),
            false => self.schedule,
        };
        let target = self.settings.target();
        let method = match self.settings.method {
            // A drawn schedule may have fewer scales than ground truth is to feed: then it feeds all.
            Method::Hybrid { teacher_scales } => {
                Method::Hybrid { teacher_scales: teacher_scales.min(schedule.len()) }
            }
            other => other,
        };
        let plan = Plan::new(method, target, &schedule, seed, step).map_err(TrainError::Plan)?;
        let input = StepInput {
            settings: &self.settings,
            generator: &self.generator,
            params: &self.params,
            quantizer: self.quantizer,
            latents: &self.latents,
            latent_dims: MapDims { batch: labels.len(), ..self.latent_dims },
            labels,
            plan: &plan,
            step,
            micro_batch,
        };
        self.memory.accumulate(self.backend, &input)?;
        Ok(())
    }

    /// Returns the losses of the micro-batches of the last [`Replica::gradients`], and the schedule of their step;
    /// `None` before the first. Waits for the device.
    ///
    /// # Errors
    /// A device fault.
    pub fn losses(&self) -> Result<Option<(StepLosses, ScaleSchedule)>, B::Error> {
        let (backend, memory) = (self.backend, &self.memory);
        let Some((teacher, student)) = memory.supervised.first() else { return Ok(None) };
        let mut first = ScaleReport::default();
        let mut second = student.map(|_| ScaleReport::default());
        for (part, (teacher, student)) in memory.supervised.iter().enumerate() {
            first.merge(&memory.teacher_loss.report(backend, teacher, part)?);
            if let (Some(second), Some(student)) = (second.as_mut(), student) {
                second.merge(&memory.student_loss.report(backend, student, part)?);
            }
        }
        Ok(Some((StepLosses { first, second }, teacher.dims.schedule)))
    }
}
