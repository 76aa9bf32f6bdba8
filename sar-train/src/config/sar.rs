//! Self-autoregressive refinement: four independent switches and two presets.

use super::{ConfigError, MOST_GUIDANCE, check_top_k, require, text};
use documented::DocumentedFields;
use sar_math::backend::Filter;
use sar_math::guidance::Guidance;
use sar_math::rollout::{self, Extent, SarSettings, StudentTarget};
use serde::{Deserialize, Serialize};

/// How tokens are chosen from the teacher pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Decode {
    /// The most likely token.
    Argmax,
    /// A draw, filtered by `top_k` and `top_p`.
    Sample,
}

/// Values for all switches together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// What the paper describes: all scales, no guidance, σ 0.1 (its value is not published).
    Paper,
    /// What the published code runs: the last scale, guidance 1.2, σ 0.01.
    #[default]
    Release,
}

/// Section `[sar]`. Each key overrides the preset's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(from = "Keys")]
pub struct SarConfig {
    /// `release` (default) or `paper`.
    pub preset: Preset,
    /// Scales of the second pass, each fed by what the first predicted: `all` but the first, the `last` alone, or one
    /// at `random`.
    #[serde(with = "text")]
    pub extent: Extent,
    /// What the second pass is taught: `teacher-hard` (the tokens that the first chose), `teacher-soft` (its
    /// distribution) or `ground-truth` (the image's tokens).
    #[serde(with = "text")]
    pub target: StudentTarget,
    /// How the tokens of the first pass are chosen: `argmax` or `sample`.
    pub decode: Decode,
    /// Filter of `sample`: keep the k most likely; 0 is off. Presets: 900.
    pub top_k: usize,
    /// Filter of `sample`: keep this cumulative probability; 0 is off. Presets: 0.96.
    pub top_p: f64,
    /// Rollout guidance g, t = g·½·(1+i/(N−1)); 0 is off, else the teacher pass doubles its batch.
    pub guidance: f64,
    /// Weight σ of the contrastive loss. Presets: paper 0.1, release 0.01.
    pub sigma: f64,
}

impl SarConfig {
    /// Returns an unmodified preset.
    pub fn preset(preset: Preset) -> Self {
        let SarSettings { extent, target, decode, sigma } = match preset {
            Preset::Paper => SarSettings::PAPER,
            Preset::Release => SarSettings::RELEASE,
        };
        let filter = decode.draw.unwrap_or(Filter { top_k: 0, top_p: 0.0 });
        Self {
            preset,
            extent,
            target,
            decode: if decode.draw.is_some() { Decode::Sample } else { Decode::Argmax },
            top_k: filter.top_k,
            top_p: filter.top_p,
            guidance: match decode.guidance {
                Guidance::Rollout(g) => g,
                _ => 0.0,
            },
            sigma,
        }
    }

    /// Returns the switches in the form that a training step takes.
    pub fn settings(&self) -> SarSettings {
        let guidance =
            if self.guidance == 0.0 { Guidance::Off } else { Guidance::Rollout(self.guidance) };
        let draw = match self.decode {
            Decode::Argmax => None,
            Decode::Sample => Some(Filter { top_k: self.top_k, top_p: self.top_p }),
        };
        let decode = rollout::Decode { draw, guidance };
        SarSettings { extent: self.extent, target: self.target, decode, sigma: self.sigma }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sigma = self.sigma.is_finite() && self.sigma >= 0.0;
        require(sigma, "sar.sigma", self.sigma, "a number of at least 0")?;
        let guidance = (0.0..=MOST_GUIDANCE).contains(&self.guidance);
        let expected = format!("0 to {MOST_GUIDANCE}");
        require(guidance, "sar.guidance", self.guidance, &expected)?;
        check_top_k("sar.top_k", self.top_k)?;
        require((0.0..=1.0).contains(&self.top_p), "sar.top_p", self.top_p, "between 0 and 1")
    }
}

impl Default for SarConfig {
    fn default() -> Self {
        Self::preset(Preset::default())
    }
}

/// The section as written: a key that is absent takes the preset's value.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    preset: Preset,
    #[serde(with = "text::optional")]
    extent: Option<Extent>,
    #[serde(with = "text::optional")]
    target: Option<StudentTarget>,
    decode: Option<Decode>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    guidance: Option<f64>,
    sigma: Option<f64>,
}

impl From<Keys> for SarConfig {
    fn from(keys: Keys) -> Self {
        let base = Self::preset(keys.preset);
        Self {
            preset: keys.preset,
            extent: keys.extent.unwrap_or(base.extent),
            target: keys.target.unwrap_or(base.target),
            decode: keys.decode.unwrap_or(base.decode),
            top_k: keys.top_k.unwrap_or(base.top_k),
            top_p: keys.top_p.unwrap_or(base.top_p),
            guidance: keys.guidance.unwrap_or(base.guidance),
            sigma: keys.sigma.unwrap_or(base.sigma),
        }
    }
}
