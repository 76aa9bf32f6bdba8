//! What every step of a run has in common.

use super::memory::Needs;
use super::step::MicroBatch;
use crate::config::Config;
use crate::model::generator::Recompute;
use sar_math::backend::{Choice, DrawKeys, Filter};
use sar_math::guidance::Guidance;
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Method, SarSettings, StudentTarget};

/// The training method and its rates, the same for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// The training method.
    pub method: Method,
    /// SAR's switches, if the method is SAR.
    pub sar: Option<SarSettings>,
    /// Filter of own samples in student, hybrid and interleaved forcing.
    pub own_samples: Filter,
    /// Probability that a label becomes the unconditional class.
    pub class_dropout: f64,
    /// Drop path of the last block.
    pub drop_path: f64,
    /// Label smoothing of both losses, where targets are codes.
    pub smoothing: f64,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Number of tokens whose logits there is room for.
    pub head_tokens: usize,
    /// Number of forward passes per optimiser step; gradients are divided by it.
    pub accumulate: usize,
    /// Seed of all random numbers.
    pub seed: u64,
}

impl StepSettings {
    /// The settings of a configuration.
    pub fn of(config: &Config) -> Self {
        let method = config.train.method(&config.sar);
        Self {
            method,
            sar: matches!(method, Method::Sar(_)).then(|| config.sar.settings()),
            own_samples: Filter { top_k: config.sar.top_k, top_p: config.sar.top_p },
            class_dropout: config.train.class_dropout,
            drop_path: config.train.last_drop_path(config.generator.depth),
            smoothing: config.train.label_smoothing,
            recompute: config.train.recompute,
            head_tokens: config.train.head_tokens,
            accumulate: config.train.accumulate,
            seed: config.train.seed,
        }
    }

    /// Returns what memory the steps need.
    pub fn needs(&self) -> Needs {
        Needs {
            guided: self.guidance() != Guidance::Off,
            soft: self.sar.is_some_and(|s| s.target == StudentTarget::TeacherSoft),
            sampler: !matches!(self.method, Method::Teacher | Method::Sar(_)),
            accumulate: self.accumulate,
            recompute: self.recompute,
            head_tokens: self.head_tokens,
        }
    }

    /// Guidance of SAR's rollout; off if the method is not SAR.
    pub fn guidance(&self) -> Guidance {
        self.sar.map_or(Guidance::Off, |s| s.decode.guidance)
    }

    /// What the student pass is pulled towards; has no effect if there is no such pass.
    pub(super) fn target(&self) -> StudentTarget {
        self.sar.map_or(StudentTarget::TeacherHard, |s| s.target)
    }

    /// Weight σ of the student pass.
    pub fn sigma(&self) -> f64 {
        self.sar.map_or(0.0, |s| s.sigma)
    }

    /// How the rollout of a part of a step chooses codes.
    pub(super) fn choice(&self, step: u64, micro_batch: MicroBatch) -> Choice {
        let draw = self.sar.map_or(Some(self.own_samples), |s| s.decode.draw);
        let Some(filter) = draw else { return Choice::Argmax };
        let seed = Stream::new(self.seed, Purpose::Rollout, step).next_u64();
        Choice::Draw(filter, DrawKeys { seed, first_image: micro_batch.first_image as u64 })
    }
}
