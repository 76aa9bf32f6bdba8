//! Teacher-forcing loss on images that training does not see.

use super::TrainError;
use super::Trainer;
use super::replica::Replica;
use super::trainer::expect_length;
use crate::model::generator::parts;
use crate::run::Interrupt;
use sar_math::backend::{Backend, LatentDims};
use sar_math::loss::{LossBatch, ScaleReport, Supervision};
use sar_math::rollout::Pass;
use serde::Serialize;

/// Latents and labels of held-out images, encoded once.
#[derive(Clone, Debug)]
pub struct HeldOut<H> {
    /// `[n, k, h, w]`.
    pub latents: Vec<H>,
    /// `[n]`.
    pub labels: Vec<u32>,
}

/// Results of a generator on held-out images, with losses in nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
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
        let mut all = ScaleReport::default();
        let each = LatentDims { batch: 1, ..self.latent_dims };
        let each = each.channels * each.height * each.width;
        let labels = images.labels.len();
        expect_length("labels of held-out images", labels.max(1), labels)?;
        expect_length("latents of held-out images", each * labels, images.latents.len())?;
        let batch = self.config.batch;
        for (latents, labels) in
            images.latents.chunks(batch * each).zip(images.labels.chunks(batch))
        {
            if interrupt.is_asked() {
                return Ok(None);
            }
            let report = self.measure(latents, labels).map_err(TrainError::backend)?;
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
        let (g, batch) = (self.generator.shape(), labels.len());
        b.upload(latents, &mut self.latents, 0)?;
        b.upload_ids(labels, &mut m.given.labels, 0)?;
        let latent_dims = LatentDims { batch, ..self.latent_dims };
        let (coding, ids, inputs) = (&mut m.coding, &mut m.truth, &mut m.given.inputs);
        let quantizer = self.quantizer;
        quantizer.codes(b, coding, latent_dims, &schedule, &self.latents, ids)?;
        let scales = 1..schedule.len();
        if schedule.len() > 1 {
            quantizer.inputs(b, coding, batch, &schedule, scales, ids, inputs)?;
        }
        let pass = Pass::teacher(&schedule);
        let input = m.given.input(&pass, batch, batch, false);
        self.generator.forward(b, &self.params, &input, &mut m.trace)?;
        let of = LossBatch { samples: batch, divisor: batch, vocab: g.vocab, smoothing: 0.0 };
        let supervised = Supervision::teacher(of, &pass);
        for samples in parts(batch, m.head.samples(schedule.tokens())) {
            let (normed, part) = (m.trace.output(), [samples.clone()]);
            let (tokens, head) = (schedule.tokens(), &mut m.head);
            self.generator.head(b, &self.params, tokens, normed, &part, head)?;
            m.teacher_loss.forward(b, &supervised, samples, &head.logits, &m.truth)?;
        }
        // Stored after the losses of a step, which can still be asked for.
        let part = self.settings.accumulate;
        m.teacher_loss.keep(b, &supervised, part)?;
        m.teacher_loss.report(b, &supervised, part)
    }
}
