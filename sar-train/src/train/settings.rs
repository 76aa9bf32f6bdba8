//! What every step of a run has in common.

use crate::model::generator::Recompute;
use sar_math::backend::Filter;
use sar_math::rollout::{Method, SarSettings};

/// The way of training and its rates, the same for every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// The way of training.
    pub method: Method,
    /// SAR's switches, where the method is SAR.
    pub sar: Option<SarSettings>,
    /// Filter of own samples in student, hybrid and interleaved forcing.
    pub own_samples: Filter,
    /// Probability that a label becomes the unconditional class.
    pub class_dropout: f64,
    /// Drop path of the last block.
    pub drop_path: f64,
    /// Label smoothing of the teacher-forcing loss.
    pub smoothing: f64,
    /// What the backward computes again.
    pub recompute: Recompute,
    /// Tokens whose logits there is room for.
    pub head_tokens: usize,
    /// Seed of all random numbers.
    pub seed: u64,
}
