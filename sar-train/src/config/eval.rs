//! How a generator is measured.

use super::{ConfigError, MOST_GUIDANCE, MOST_IMAGES, require};
use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

/// Maximum number of sampling seeds; more are taken for a mistyped number.
const MOST_SEEDS: u64 = 1000;

/// Section `[eval]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Guidance values to compare. Default 0, 0.25, 0.5, 0.75, 1, 1.5.
    pub guidance: Vec<f64>,
    /// Images per guidance value and sampling seed. Default 930.
    pub samples: usize,
    /// Sampling seeds; the spread over them is reported. Default 3.
    pub seeds: u64,
    /// Training steps of the classifier whose features are compared. Default 500.
    pub classifier_steps: u64,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            guidance: vec![0.0, 0.25, 0.5, 0.75, 1.0, 1.5],
            samples: 930,
            seeds: 3,
            classifier_steps: 500,
        }
    }
}

impl EvalConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let found = format!("{:?}", self.guidance);
        let range = -1.0..=MOST_GUIDANCE;
        let usable = !self.guidance.is_empty() && self.guidance.iter().all(|g| range.contains(g));
        let expected = format!("a list of numbers from -1 to {MOST_GUIDANCE}");
        require(usable, "eval.guidance", found, &expected)?;
        let samples = (2..=MOST_IMAGES).contains(&self.samples);
        require(samples, "eval.samples", self.samples, &format!("2 to {MOST_IMAGES}"))?;
        let seeds = (1..=MOST_SEEDS).contains(&self.seeds);
        require(seeds, "eval.seeds", self.seeds, &format!("1 to {MOST_SEEDS}"))?;
        let steps = self.classifier_steps;
        require(steps >= 1, "eval.classifier_steps", steps, "at least 1")
    }
}
