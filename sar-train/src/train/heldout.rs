//! Teacher-forcing loss on images that training does not see.

use super::TrainError;
use super::trainer::{Trainer, token_mean};
use crate::model::generator::PassInput;
use sar_math::backend::{Backend, LatentDims, LossDims, RolloutDims, TargetRows};
use sar_math::{MAX_SCALES, Real};
use serde::Serialize;

/// Latents and labels of held-out images, encoded once.
#[derive(Clone, Debug)]
pub struct HeldOut<H> {
    /// `[n, k, h, w]`.
    pub latents: Vec<H>,
    /// `[n]`.
    pub labels: Vec<u32>,
}

/// What a generator reaches on held-out images, nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeldOutReport {
    /// Mean over all tokens.
    pub heldout_loss: f64,
    /// Mean over the tokens of each scale.
    pub heldout_scale_loss: Vec<f64>,
    /// Accuracy of each scale.
    pub heldout_scale_acc: Vec<f64>,
}

impl<B: Backend> Trainer<'_, B> {
    /// Teacher-forcing loss and accuracy on held-out images: no dropout of any kind.
    ///
    /// # Errors
    /// A device fault.
    pub fn held_out(&mut self, images: &HeldOut<B::Host>) -> Result<HeldOutReport, TrainError> {
        let mut sums = vec![0f64; 2 * MAX_SCALES];
        let each = images.latents.len() / images.labels.len().max(1);
        let batch = self.config.batch;
        for (latents, labels) in
            images.latents.chunks(batch * each).zip(images.labels.chunks(batch))
        {
            self.add_batch(latents, labels, &mut sums).map_err(TrainError::backend)?;
        }
        let n = images.labels.len().max(1) as f64;
        let mean = |block: usize| -> Vec<f64> {
            (0..self.schedule.len())
                .map(|i| sums[block * MAX_SCALES + i] / (n * self.schedule.range(i).len() as f64))
                .collect()
        };
        let heldout_scale_loss = mean(0);
        Ok(HeldOutReport {
            heldout_loss: token_mean(&heldout_scale_loss, &self.schedule, 0),
            heldout_scale_loss,
            heldout_scale_acc: mean(1),
        })
    }

    fn add_batch(
        &mut self,
        latents: &[B::Host],
        labels: &[u32],
        sums: &mut [f64],
    ) -> Result<(), B::Error> {
        let (b, m, schedule) = (self.backend, &mut self.memory, self.schedule);
        let (g, batch) = (self.generator.shape(), labels.len());
        let rows = batch * schedule.tokens();
        b.upload(latents, &mut self.latents, 0)?;
        b.upload_ids(labels, &mut m.labels, 0)?;
        let latent_dims = LatentDims { batch, ..self.latent_dims };
        b.area_tokens(latent_dims, &schedule, &self.latents, &mut m.tokens)?;
        let codebook = &self.codebook;
        b.nearest_code(rows, g.vocab, g.channels, &m.tokens, codebook, &mut m.truth)?;
        let rollout = RolloutDims {
            batch,
            schedule,
            scales: 1..schedule.len(),
            channels: g.channels,
            vocab: g.vocab,
        };
        if schedule.len() > 1 {
            b.rollout_inputs(&rollout, &m.truth, codebook, &mut m.inputs)?;
        }
        let input = PassInput {
            batch,
            schedule,
            labels: &m.labels,
            inputs: &m.inputs,
            input_batch: batch,
            with_start: true,
            keep: None,
        };
        self.generator.forward(b, &self.params, &input, &mut m.trace)?;
        let dims = LossDims {
            batch,
            schedule,
            vocab: g.vocab,
            smoothing: 0.0,
            weights: [0.0; MAX_SCALES],
            targets: TargetRows::beside(&schedule),
        };
        b.cross_entropy(&dims, &m.trace.logits, &m.truth, &mut m.teacher_loss)?;
        b.scale_sums(batch, &schedule, &m.teacher_loss.loss_bl, &mut m.sums, 0)?;
        b.scale_sums(batch, &schedule, &m.teacher_loss.hits_bl, &mut m.sums, MAX_SCALES)?;
        let mut host = vec![B::Host::default(); 2 * MAX_SCALES];
        b.download_accum(&m.sums, 0, &mut host)?;
        for (sum, value) in sums.iter_mut().zip(&host) {
            *sum += value.wide();
        }
        Ok(())
    }
}
