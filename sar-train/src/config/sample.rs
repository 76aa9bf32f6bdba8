//! How images are sampled.

use super::{ConfigError, MOST_GUIDANCE, MOST_IMAGES, check_top_k, require, text};
use crate::sample::SampleSettings;
use documented::DocumentedFields;
use sar_math::ScaleSchedule;
use sar_math::backend::Filter;
use sar_math::guidance::Guidance;
use serde::{Deserialize, Serialize};

/// How guidance g becomes t of scale i (from 0) of N; logits are `(1+t)·cond − t·uncond`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ramp {
    /// `t = g·i/min(N−1, 9)`: FlexVAR's sampler.
    #[default]
    Flexvar,
    /// `t = g·i/(N−1)`: VAR's sampler.
    Var,
    /// `t = g·½·(1+i/(N−1))`: the rollout of the published SAR code.
    Rollout,
    /// `t = g`.
    Constant,
}

/// Settings by which the results of a published model were sampled, as its repository says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Published {
    /// VAR: guidance 1.5, its own ramp, top-k 900, top-p 0.96.
    Var,
    /// FlexVAR: guidance 2.5, top-k 900, top-p 0.95, greedy off its list of grids.
    Flexvar,
    /// SAR of depth 16: as FlexVAR, at guidance 2.2.
    SarD16,
    /// SAR of depth 20: at guidance 2.6.
    SarD20,
    /// SAR of depth 24: at guidance 3.3.
    SarD24,
}

impl Published {
    /// Changes a section to these settings.
    pub fn over(self, sample: &mut SampleConfig) {
        let (guidance, ramp, top_p) = match self {
            Self::Var => (1.5, Ramp::Var, 0.96),
            Self::Flexvar => (2.5, Ramp::Flexvar, 0.95),
            Self::SarD16 => (2.2, Ramp::Flexvar, 0.95),
            Self::SarD20 => (2.6, Ramp::Flexvar, 0.95),
            Self::SarD24 => (3.3, Ramp::Flexvar, 0.95),
        };
        // VAR has no other grids than those of its schedule.
        let published_greedy = self != Self::Var;
        (sample.guidance, sample.ramp, sample.top_k, sample.top_p, sample.published_greedy) =
            (guidance, ramp, 900, top_p, published_greedy);
    }
}

/// Section `[sample]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// Guidance g; 0 samples without. Default 1 (published for SAR d16/d20/d24: 2.2/2.6/3.3).
    pub guidance: f64,
    /// How g grows over the scales: `flexvar` (default), `var`, `rollout`, `constant`.
    pub ramp: Ramp,
    /// Keep the k most likely tokens; 0 is off, 1 is greedy. Default 900.
    pub top_k: usize,
    /// Keep the most likely tokens of this cumulative probability; 0 is off. Default 0.95.
    pub top_p: f64,
    /// Grids to sample in; default: the generator's own.
    #[serde(with = "text::optional", skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScaleSchedule>,
    /// Seed of the draws: image k of a seed is the same whatever the batch. Default 0.
    pub seed: u64,
    /// Images. Default 100.
    pub count: usize,
    /// Images at once; changes speed and memory, never the images. Default 20.
    pub batch: usize,
    /// Greedy on grids outside the published sampler's fixed list, as it does. Default false.
    pub published_greedy: bool,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            guidance: 1.0,
            ramp: Ramp::Flexvar,
            top_k: 900,
            top_p: 0.95,
            schedule: None,
            seed: 0,
            count: 100,
            batch: 20,
            published_greedy: false,
        }
    }
}

impl Ramp {
    /// Returns the ramp as a formula, to be printed with results.
    pub fn formula(self) -> &'static str {
        match self {
            Self::Flexvar => "t = g·i/min(N−1, 9)",
            Self::Var => "t = g·i/(N−1)",
            Self::Rollout => "t = g·½·(1+i/(N−1))",
            Self::Constant => "t = g",
        }
    }

    /// Returns guidance g with this ramp; off at 0.
    pub fn guidance(self, g: f64) -> Guidance {
        match self {
            _ if g == 0.0 => Guidance::Off,
            Self::Flexvar => Guidance::Sampling(g),
            Self::Var => Guidance::Var(g),
            Self::Rollout => Guidance::Rollout(g),
            Self::Constant => Guidance::Constant(g),
        }
    }
}

impl SampleConfig {
    /// Returns the settings for a painter, with this seed.
    pub fn settings(&self, seed: u64) -> SampleSettings {
        SampleSettings {
            guidance: self.ramp.guidance(self.guidance),
            filter: Filter { top_k: self.top_k, top_p: self.top_p },
            seed,
            published_greedy: self.published_greedy,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // Below −1 the weight of the conditional half would be negative.
        let guidance = (-1.0..=MOST_GUIDANCE).contains(&self.guidance);
        let expected = format!("-1 to {MOST_GUIDANCE}");
        require(guidance, "sample.guidance", self.guidance, &expected)?;
        check_top_k("sample.top_k", self.top_k)?;
        let top_p = (0.0..=1.0).contains(&self.top_p);
        require(top_p, "sample.top_p", self.top_p, "between 0 and 1")?;
        let count = (1..=MOST_IMAGES).contains(&self.count);
        require(count, "sample.count", self.count, &format!("1 to {MOST_IMAGES}"))?;
        let most = 1 << 16;
        let batch = (1..=most).contains(&self.batch);
        require(batch, "sample.batch", self.batch, &format!("1 to {most}"))
    }
}
