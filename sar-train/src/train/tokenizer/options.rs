//! How a tokenizer is trained.

use sar_math::anneal::{Anneal, Shape};
use serde::{Deserialize, Serialize};

/// Settings of tokenizer training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerTrainConfig {
    /// Optimiser steps. Default 1500.
    pub steps: u64,
    /// Images of a step. Default 32.
    pub batch: usize,
    /// Peak learning rate. Default 2e-3.
    pub lr: f64,
    /// Steps over which the rate rises. Default 50.
    pub warmup: u64,
    /// Last learning rate, as a factor of the peak; half a cosine leads there. Default 0.02.
    pub lr_end: f64,
    /// Decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// Beside the root. Default 1e-8.
    pub eps: f64,
    /// Decoupled weight decay. Default 1e-4.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 is off. Default 1.
    pub clip: f64,
    /// Weight of the loss that moves the codebook. Default 1.
    pub codebook: f64,
    /// Weight of the loss that holds the encoder to its codes. Default 0.25.
    pub commitment: f64,
    /// Probability that a step decodes a smaller grid. Default 0.5.
    pub coarse_probability: f64,
    /// Steps after which a code that nothing used is put on a current latent; 0 is never. Default
    /// 40.
    pub revive_after: u32,
    /// Of initial values, scales and revived codes. Default 0.
    pub seed: u64,
}

impl Default for TokenizerTrainConfig {
    fn default() -> Self {
        Self {
            steps: 1500,
            batch: 32,
            lr: 2e-3,
            warmup: 50,
            lr_end: 0.02,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 1e-4,
            clip: 1.0,
            codebook: 1.0,
            commitment: 0.25,
            coarse_probability: 0.5,
            revive_after: 40,
            seed: 0,
        }
    }
}

impl TokenizerTrainConfig {
    /// Learning rate over the steps.
    pub(super) fn anneal(&self) -> Anneal {
        Anneal {
            shape: Shape::Cosine,
            peak: self.lr,
            total: self.steps,
            warmup: self.warmup,
            warmup_from: 0.01,
            end: self.lr_end,
            weight_decay: self.weight_decay,
            weight_decay_end: self.weight_decay,
        }
    }

    /// The first key whose value is out of range, its value, and what is expected.
    ///
    /// # Errors
    /// These three, for the caller to say where the key stands.
    pub fn validate(&self) -> Result<(), (&'static str, String, &'static str)> {
        let at_least_0 = |v: f64| v.is_finite() && v >= 0.0;
        let part = |v: f64| (0.0..=1.0).contains(&v);
        let below_1 = |v: f64| (0.0..1.0).contains(&v);
        let checks = [
            ("steps", self.steps >= 1, self.steps.to_string(), "at least 1"),
            ("batch", self.batch >= 1, self.batch.to_string(), "at least 1"),
            ("lr", self.lr > 0.0 && self.lr < 1.0, self.lr.to_string(), "above 0 and below 1"),
            ("lr_end", part(self.lr_end), self.lr_end.to_string(), "from 0 to 1"),
            ("beta1", below_1(self.beta1), self.beta1.to_string(), "from 0 to below 1"),
            ("beta2", below_1(self.beta2), self.beta2.to_string(), "from 0 to below 1"),
            ("eps", self.eps > 0.0 && self.eps < 1.0, self.eps.to_string(), "above 0 and below 1"),
            (
                "weight_decay",
                at_least_0(self.weight_decay),
                self.weight_decay.to_string(),
                "0 or more",
            ),
            ("clip", at_least_0(self.clip), self.clip.to_string(), "0 or more"),
            ("codebook", at_least_0(self.codebook), self.codebook.to_string(), "0 or more"),
            ("commitment", at_least_0(self.commitment), self.commitment.to_string(), "0 or more"),
            (
                "coarse_probability",
                part(self.coarse_probability),
                self.coarse_probability.to_string(),
                "from 0 to 1",
            ),
        ];
        for (key, holds, found, expected) in checks {
            if !holds {
                return Err((key, found, expected));
            }
        }
        Ok(())
    }
}
