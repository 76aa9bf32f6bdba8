//! How a tokenizer is trained.

use super::train::MOST_PASSES;
use super::{ConfigError, MOST_IMAGES, require};
use documented::DocumentedFields;
use sar_math::anneal::{Anneal, Shape};
use serde::{Deserialize, Serialize};

/// Section `[tokenizer_train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerTrainConfig {
    /// Optimiser steps. Default 1500.
    pub steps: u64,
    /// Images of a micro-batch. Default 32.
    pub batch: usize,
    /// Micro-batches of a step; the gradient is the mean over them. Default 1.
    pub accumulate: usize,
    /// Peak learning rate. Default 2e-3.
    pub lr: f64,
    /// Steps over which the rate rises. Default 50.
    pub warmup: u64,
    /// Last learning rate, as a factor of the peak; half a cosine leads there. Default 0.02.
    pub lr_end: f64,
    /// AdamW's decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// AdamW's decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// AdamW's ε. Default 1e-8.
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
    /// Steps between measurements on held-out images, 512 of them at most, each with a picture of what comes back; 0 is
    /// only at the end. Default 500.
    pub eval_every: u64,
    /// Seed of initial values, scales and revived codes. Default 0.
    pub seed: u64,
}

impl Default for TokenizerTrainConfig {
    fn default() -> Self {
        Self {
            steps: 1500,
            batch: 32,
            accumulate: 1,
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
            eval_every: 500,
            seed: 0,
        }
    }
}

impl TokenizerTrainConfig {
    /// Returns the learning rate over the steps.
    pub(crate) fn anneal(&self) -> Anneal {
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

    /// Returns the number of images of a step.
    pub fn images(&self) -> usize {
        self.batch * self.accumulate
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require(self.steps >= 1, "tokenizer_train.steps", self.steps, "at least 1")?;
        for (key, value, most) in [
            ("tokenizer_train.batch", self.batch, MOST_IMAGES),
            ("tokenizer_train.accumulate", self.accumulate, MOST_PASSES),
        ] {
            require((1..=most).contains(&value), key, value, &format!("1 to {most}"))?;
        }
        for (key, value) in [("tokenizer_train.lr", self.lr), ("tokenizer_train.eps", self.eps)] {
            require(value > 0.0 && value < 1.0, key, value, "above 0 and below 1")?;
        }
        for (key, value) in
            [("tokenizer_train.beta1", self.beta1), ("tokenizer_train.beta2", self.beta2)]
        {
            require((0.0..1.0).contains(&value), key, value, "at least 0 and below 1")?;
        }
        for (key, value) in [
            ("tokenizer_train.lr_end", self.lr_end),
            ("tokenizer_train.coarse_probability", self.coarse_probability),
        ] {
            require((0.0..=1.0).contains(&value), key, value, "between 0 and 1")?;
        }
        for (key, value) in [
            ("tokenizer_train.weight_decay", self.weight_decay),
            ("tokenizer_train.clip", self.clip),
            ("tokenizer_train.codebook", self.codebook),
            ("tokenizer_train.commitment", self.commitment),
        ] {
            require(value.is_finite() && value >= 0.0, key, value, "a number of at least 0")?;
        }
        Ok(())
    }
}
