//! Teacher-forcing loss on images that training does not see.

use super::TrainError;
use super::Trainer;
use super::memory::Given;
use super::replica::Replica;
use super::trainer::expect_length;
use crate::model::generator::{Head, Recompute, Trace, parts};
use crate::model::tokenizer::QuantizerMemory;
use crate::run::Interrupt;
use crate::sample::Model;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, MapDims};
use sar_math::loss::{LossBatch, ScaleReport, Supervision, TeacherForcing};
use sar_math::rollout::Pass;
use serde::{Deserialize, Serialize};

/// Latents and labels of held-out images, encoded once.
#[derive(Clone, Debug)]
pub struct HeldOut<H> {
    /// `[n, k, h, w]`.
    pub latents: Vec<H>,
    /// `[n]`.
    pub labels: Vec<u32>,
}

/// Results of a generator on held-out images, with losses in nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOutReport {
    /// Mean over all tokens.
    pub heldout_loss: f64,
    /// Mean over the tokens of each scale.
    pub heldout_scale_loss: Vec<f64>,
    /// Accuracy of each scale.
    pub heldout_scale_acc: Vec<f64>,
}

/// Factor over its lowest from which a held-out loss counts as risen.
pub(crate) const RISEN: f64 = 1.01;

/// A held-out loss that has risen since it was lowest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Risen {
    /// The step of the lowest loss.
    pub(crate) step: u64,
    pub(crate) lowest: f64,
    pub(crate) last: f64,
}

impl Risen {
    /// Of steps and losses; `None` unless the last is over `factor` times the lowest.
    pub(crate) fn of(curve: &[(u64, f64)], factor: f64) -> Option<Self> {
        let &(step, lowest) = curve.iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let &(_, last) = curve.last()?;
        (last > factor * lowest).then_some(Self { step, lowest, last })
    }
}

impl<B: Backend> Trainer<'_, B> {
    /// Measures teacher-forcing loss and accuracy on held-out images, without dropout of any kind.
    ///
    /// # Errors
    /// There are no images, or not one latent for each label; a device fault.
    pub fn held_out(&mut self, images: &HeldOut<B::Host>) -> Result<HeldOutReport, TrainError> {
        // Nothing interrupts this measurement.
        self.held_out_until(images, &Interrupt::none())?.ok_or(TrainError::NotBegun)
    }

    /// As [`Trainer::held_out`]; `None` if the user stops it.
    ///
    /// # Errors
    /// As [`Trainer::held_out`].
    pub fn held_out_until(
        &mut self,
        images: &HeldOut<B::Host>,
        interrupt: &Interrupt,
    ) -> Result<Option<HeldOutReport>, TrainError> {
        self.replica.held_out(images, interrupt)
    }
}

impl<B: Backend> Replica<'_, B> {
    fn held_out(
        &mut self,
        images: &HeldOut<B::Host>,
        interrupt: &Interrupt,
    ) -> Result<Option<HeldOutReport>, TrainError> {
        let m = &mut self.memory;
        let (generator, params, quantizer) = (&self.generator, &self.params, self.quantizer);
        let memory = Lent {
            latents: &mut self.latents,
            coding: &mut m.coding,
            truth: &mut m.truth,
            given: &mut m.given,
            trace: &mut m.trace,
            head: &mut m.head,
            loss: &mut m.teacher_loss,
            // Kept after the losses of a step, which can still be asked for.
            part: self.settings.accumulate,
        };
        let MapDims { batch, .. } = self.latent_dims;
        Measuring {
            backend: self.backend,
            model: Model { generator, params, quantizer },
            schedule: self.schedule,
            latent_dims: self.latent_dims,
            memory,
        }
        .all(images, batch, interrupt)
    }
}

/// As [`Trainer::held_out_until`], for weights that are not trained: on a schedule, in memory for `batch` images at a
/// time, whose latents are `height`×`width`.
///
/// # Errors
/// As [`Trainer::held_out`]; out of memory.
pub fn held_out_loss<B: Backend>(
    backend: &B,
    model: Model<'_, B>,
    schedule: &ScaleSchedule,
    images: &HeldOut<B::Host>,
    batch: usize,
    (height, width): (usize, usize),
    interrupt: &Interrupt,
) -> Result<Option<HeldOutReport>, TrainError> {
    let Model { generator, quantizer, .. } = model;
    let (g, tokens) = (generator.shape(), schedule.tokens());
    let rows = batch * tokens;
    // A forward that recomputes blocks keeps the least.
    let mut trace = Trace::new(backend, generator, batch, tokens, Recompute::Blocks)?;
    let mut head = Head::new(backend, generator, tokens)?;
    let (mut latents, mut truth) =
        (backend.activation(batch * g.channels * height * width)?, backend.ids(rows)?);
    let mut coding = quantizer.memory(backend, batch, schedule)?;
    let mut given = Given {
        inputs: backend.activation(rows * g.channels)?,
        labels: backend.ids(batch)?,
        keep: backend.accum(0)?,
    };
    let mut loss = TeacherForcing::new(backend, rows, 1)?;
    let memory = Lent {
        latents: &mut latents,
        coding: &mut coding,
        truth: &mut truth,
        given: &mut given,
        trace: &mut trace,
        head: &mut head,
        loss: &mut loss,
        part: 0,
    };
    let latent_dims = MapDims { batch, channels: g.channels, height, width };
    let schedule = *schedule;
    let measuring = Measuring { backend, model, schedule, latent_dims, memory };
    measuring.all(images, batch, interrupt)
}

/// Memory of a forward pass and its loss.
struct Lent<'m, B: Backend> {
    latents: &'m mut B::Activation,
    coding: &'m mut QuantizerMemory<B>,
    truth: &'m mut B::Ids,
    given: &'m mut Given<B>,
    trace: &'m mut Trace<B>,
    head: &'m mut Head<B>,
    loss: &'m mut TeacherForcing<B>,
    /// Where the loss keeps its sums.
    part: usize,
}

/// Held-out images on their way through a model.
struct Measuring<'m, B: Backend> {
    backend: &'m B,
    model: Model<'m, B>,
    schedule: ScaleSchedule,
    latent_dims: MapDims,
    memory: Lent<'m, B>,
}

impl<B: Backend> Measuring<'_, B> {
    /// All images, `batch` at a time; `None` if the user stops it.
    fn all(
        mut self,
        images: &HeldOut<B::Host>,
        batch: usize,
        interrupt: &Interrupt,
    ) -> Result<Option<HeldOutReport>, TrainError> {
        let mut all = ScaleReport::default();
        let each = MapDims { batch: 1, ..self.latent_dims }.len();
        let labels = images.labels.len();
        expect_length("labels of held-out images", labels.max(1), labels)?;
        expect_length("latents of held-out images", each * labels, images.latents.len())?;
        for (latents, labels) in
            images.latents.chunks(batch * each).zip(images.labels.chunks(batch))
        {
            if interrupt.is_asked() {
                return Ok(None);
            }
            let report = self.measure(latents, labels)?;
            all.merge(&report);
        }
        let scales = self.schedule.len();
        Ok(Some(HeldOutReport {
            heldout_loss: all.mean_loss(),
            heldout_scale_loss: all.loss[..scales].to_vec(),
            heldout_scale_acc: all.accuracy[..scales].to_vec(),
        }))
    }

    fn measure(&mut self, latents: &[B::Host], labels: &[u32]) -> Result<ScaleReport, B::Error> {
        let (b, m, schedule) = (self.backend, &mut self.memory, self.schedule);
        let Model { generator, params, quantizer } = self.model;
        let batch = labels.len();
        b.upload(latents, m.latents, 0)?;
        b.upload_ids(labels, &mut m.given.labels, 0)?;
        let latent_dims = MapDims { batch, ..self.latent_dims };
        quantizer.codes(b, m.coding, latent_dims, &schedule, m.latents, m.truth)?;
        let scales = 1..schedule.len();
        if schedule.len() > 1 {
            let inputs = &mut m.given.inputs;
            quantizer.inputs(b, m.coding, batch, &schedule, scales, m.truth, inputs)?;
        }
        let pass = Pass::teacher(&schedule);
        let input = m.given.input(&pass, batch, batch, false);
        generator.forward(b, params, &input, m.trace)?;
        let vocab = generator.shape().vocab;
        let of = LossBatch { samples: batch, divisor: batch, vocab, smoothing: 0.0 };
        let supervised = Supervision::teacher(of, &pass);
        for samples in parts(batch, m.head.samples(schedule.tokens())) {
            let (normed, part) = (m.trace.output(), [samples.clone()]);
            generator.head(b, params, schedule.tokens(), normed, &part, m.head)?;
            m.loss.forward(b, &supervised, samples, &m.head.logits, m.truth)?;
        }
        m.loss.keep(b, &supervised, m.part)?;
        m.loss.report(b, &supervised, m.part)
    }
}
