//! How a generator is trained.

use super::{ConfigError, MOST_IMAGES, SarConfig, require, text};
use crate::model::generator::Recompute;
use documented::DocumentedFields;
use sar_math::anneal::{Anneal, Shape};
use sar_math::rollout::Method;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

/// Maximum number of forward passes of a step; each keeps its losses until they are reported.
pub(super) const MOST_PASSES: usize = 1 << 16;

/// Training method: what feeds each scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Ground truth feeds every scale.
    #[default]
    Teacher,
    /// Teacher forcing and, in addition, the staggered pass of section `[sar]`.
    Ssr,
    /// Own samples feed every scale, scale by scale.
    Student,
    /// Ground truth feeds the first scales, own samples the others.
    Hybrid {
        /// Number of scales fed from ground truth, from the first.
        teacher_scales: usize,
    },
    /// Own samples and ground truth in turn, scale by scale.
    Interleaved,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Teacher => f.write_str("teacher"),
            Self::Ssr => f.write_str("ssr"),
            Self::Student => f.write_str("student"),
            Self::Hybrid { teacher_scales } => write!(f, "hybrid:{teacher_scales}"),
            Self::Interleaved => f.write_str("interleaved"),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "teacher" => Ok(Self::Teacher),
            "ssr" => Ok(Self::Ssr),
            "student" => Ok(Self::Student),
            "interleaved" => Ok(Self::Interleaved),
            _ => text
                .strip_prefix("hybrid:")
                .and_then(|n| n.parse().ok())
                .filter(|&n| n >= 1)
                .map(|teacher_scales| Self::Hybrid { teacher_scales })
                .ok_or_else(|| {
                    format!(
                        "unknown way of training `{text}`, expected one of `teacher`, `ssr`, \
                         `student`, `hybrid:N` with N of at least 1, `interleaved`"
                    )
                }),
        }
    }
}

/// Section `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// `teacher` (default), `ssr`, `student`, `hybrid:N` or `interleaved`.
    #[serde(with = "text")]
    pub mode: Mode,
    /// Latents of the images, from `sar tokenizer encode --latents`; without it images are encoded as they come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents: Option<PathBuf>,
    /// Optimiser steps. Default 4000.
    pub steps: u64,
    /// Images of one forward pass. Default 64.
    pub batch: usize,
    /// Forward passes of one optimiser step. Default 1.
    pub accumulate: usize,
    /// Peak learning rate; default: `base_lr`·batch·accumulate/256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Peak learning rate per 256 images. Default 1e-4 (published: 8e-5 at depth 24).
    pub base_lr: f64,
    /// Shape after warm-up: `cos`, `lin`, `lin0` (default), `lin00`, `lin0.2`, `exp`.
    #[serde(with = "text")]
    pub lr_shape: Shape,
    /// Steps from `lr_start` to the peak. Default 0.
    pub warmup: u64,
    /// First learning rate, as a fraction of the peak. Default 0.005.
    pub lr_start: f64,
    /// Last learning rate, as a fraction of the peak. Default 0.1.
    pub lr_end: f64,
    /// Decoupled weight decay of matrices. Default 0.05.
    pub weight_decay: f64,
    /// Final weight decay, reached along a cosine; default: it stays constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay_end: Option<f64>,
    /// AdamW's decay of the first moment. Default 0.9.
    pub beta1: f64,
    /// AdamW's decay of the second moment. Default 0.95.
    pub beta2: f64,
    /// AdamW's ε. Default 1e-8.
    pub eps: f64,
    /// Largest global gradient norm; 0 is off. Default 2.
    pub clip: f64,
    /// Decay of the running average of the weights, per step; 0 keeps none. After n updates it is at most
    /// (1+n)/(10+n), so that the weights that training begins with do not stay in it. Default 0.
    pub ema: f64,
    /// Label smoothing of both losses, where targets are codes and not the teacher's probabilities. Default 0.
    pub label_smoothing: f64,
    /// Probability that a label becomes the unconditional class. Default 0.1.
    pub class_dropout: f64,
    /// Drop path of the last block, linear from 0 at the first; default: 0.1·depth/24.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_path: Option<f64>,
    /// What the backward recomputes instead of keeping it: `nothing`, `norms` (default) or
    /// `blocks`, from most memory to least.
    #[serde(with = "text")]
    pub recompute: Recompute,
    /// Number of tokens whose logits are held at a time, at least those of one image; fewer take
    /// less memory, but on a GPU more time below some thousands. Default 8192.
    pub head_tokens: usize,
    /// Draw a schedule per step as FlexVAR does, in proportion to the last grid. Default false.
    pub random_schedules: bool,
    /// Steps between log lines. Default 10.
    pub log_every: u64,
    /// Steps between sample grids; 0 is never. Default 1000.
    pub sample_every: u64,
    /// Steps between checkpoints; 0 makes none by steps. There is always one at the end. Default
    /// 1000.
    pub save_every: u64,
    /// Maximum minutes between checkpoints, whatever `save_every` is, which limits what a crash
    /// costs; 0 is no limit. These checkpoints count among those that `keep` keeps. Default 10.
    pub save_minutes: f64,
    /// Steps between evaluations on held-out images; 0 is only at the end. Default 500.
    pub eval_every: u64,
    /// Number of the latest checkpoints to keep. The one with the lowest held-out loss, of steps
    /// that were both evaluated (`eval_every`) and saved, is kept in addition. Default 3.
    pub keep: usize,
    /// Non-finite steps in a row, each skipped, before the run stops. Default 5.
    pub non_finite_limit: u32,
    /// Seed of weights, order, crops, dropout and draws. Default 0.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Teacher,
            latents: None,
            steps: 4000,
            batch: 64,
            accumulate: 1,
            lr: None,
            base_lr: 1e-4,
            lr_shape: Shape::PUBLISHED,
            warmup: 0,
            lr_start: 0.005,
            lr_end: 0.1,
            weight_decay: 0.05,
            weight_decay_end: None,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            clip: 2.0,
            ema: 0.0,
            label_smoothing: 0.0,
            class_dropout: 0.1,
            drop_path: None,
            random_schedules: false,
            log_every: 10,
            sample_every: 1000,
            save_every: 1000,
            save_minutes: 10.0,
            eval_every: 500,
            keep: 3,
            non_finite_limit: 5,
            recompute: Recompute::Norms,
            head_tokens: 8192,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// Returns the peak learning rate: `lr`, or by the rule of the published runs.
    pub fn peak_lr(&self) -> f64 {
        let images = (self.batch * self.accumulate) as f64;
        self.lr.unwrap_or(self.base_lr * images / 256.0)
    }

    /// Whether a checkpoint is due by the clock, given when the last one was made.
    pub(crate) fn overdue(&self, saved: Instant) -> bool {
        let most = 60.0 * self.save_minutes;
        most > 0.0 && saved.elapsed().as_secs_f64() >= most
    }

    /// Returns the highest learning rate that the run reaches: the peak, unless it ends while the
    /// rate still rises.
    pub fn highest_lr(&self) -> f64 {
        match self.warmup < self.steps {
            true => self.peak_lr(),
            false => self.anneal().learning_rate(self.steps.saturating_sub(1)),
        }
    }

    /// Returns learning rate and weight decay over the run.
    pub fn anneal(&self) -> Anneal {
        Anneal {
            shape: self.lr_shape,
            peak: self.peak_lr(),
            total: self.steps,
            warmup: self.warmup,
            warmup_from: self.lr_start,
            end: self.lr_end,
            weight_decay: self.weight_decay,
            weight_decay_end: self.weight_decay_end.unwrap_or(self.weight_decay),
        }
    }

    /// Returns the training method, including SAR's extent if it is SAR.
    pub fn method(&self, sar: &SarConfig) -> Method {
        match self.mode {
            Mode::Teacher => Method::Teacher,
            Mode::Ssr => Method::Sar(sar.extent),
            Mode::Student => Method::Student,
            Mode::Hybrid { teacher_scales } => Method::Hybrid { teacher_scales },
            Mode::Interleaved => Method::Interleaved,
        }
    }

    /// Returns the drop path of the last of `depth` blocks.
    pub fn last_drop_path(&self, depth: usize) -> f64 {
        self.drop_path.unwrap_or(0.1 * depth as f64 / 24.0)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require(self.steps >= 1, "train.steps", self.steps, "at least 1")?;
        for (key, value, most) in [
            ("train.batch", self.batch, MOST_IMAGES),
            ("train.accumulate", self.accumulate, MOST_PASSES),
        ] {
            require((1..=most).contains(&value), key, value, &format!("1 to {most}"))?;
        }
        require(self.log_every >= 1, "train.log_every", self.log_every, "at least 1")?;
        require(self.head_tokens >= 1, "train.head_tokens", self.head_tokens, "at least 1")?;
        require(self.keep >= 1, "train.keep", self.keep, "at least 1")?;
        let limit = self.non_finite_limit;
        require(limit >= 1, "train.non_finite_limit", limit, "at least 1")?;
        let positive = [
            ("train.base_lr", self.base_lr),
            ("train.lr", self.peak_lr()),
            ("train.eps", self.eps),
        ];
        for (key, value) in positive {
            require(value.is_finite() && value > 0.0, key, value, "a number above 0")?;
        }
        for (key, value) in [
            ("train.clip", self.clip),
            ("train.save_minutes", self.save_minutes),
            ("train.weight_decay", self.weight_decay),
            ("train.weight_decay_end", self.weight_decay_end.unwrap_or(0.0)),
        ] {
            require(value.is_finite() && value >= 0.0, key, value, "a number of at least 0")?;
        }
        for (key, value) in [
            ("train.beta1", self.beta1),
            ("train.beta2", self.beta2),
            ("train.ema", self.ema),
            ("train.label_smoothing", self.label_smoothing),
            ("train.drop_path", self.drop_path.unwrap_or(0.0)),
        ] {
            let below_one = (0.0..1.0).contains(&value);
            require(below_one, key, value, "at least 0 and below 1")?;
        }
        for (key, value) in [
            ("train.class_dropout", self.class_dropout),
            ("train.lr_start", self.lr_start),
            ("train.lr_end", self.lr_end),
        ] {
            require((0.0..=1.0).contains(&value), key, value, "between 0 and 1")?;
        }
        // An exponential decay towards 0 would drop to 0 at once.
        let falls = self.lr_shape != Shape::Exponential || self.lr_end > 0.0;
        require(falls, "train.lr_end", self.lr_end, "above 0 where train.lr_shape is exp")?;
        Ok(())
    }
}
