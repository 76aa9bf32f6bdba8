//! The configuration of a run: one TOML file, every key documented with its unit and default.
//!
//! Absent sections and keys have their defaults; an unknown key is an error that names the nearest
//! ones. The resolved configuration of a run is written to its folder and reads back equal.

mod error;
mod eval;
mod explain;
mod generator;
mod overrides;
mod sample;
mod sar;
mod text;
mod tokenizer_train;
mod train;

pub use error::ConfigError;
pub use eval::EvalConfig;
pub use generator::{GeneratorSection, Positions};
pub use sample::{Published, Ramp, SampleConfig};
pub use sar::{Decode, Preset, SarConfig};
pub use tokenizer_train::TokenizerTrainConfig;
pub use train::{Mode, TrainConfig};

use crate::data::DataConfig;
use crate::model::tokenizer::TokenizerConfig;
use documented::DocumentedFields;
use sar_math::ScaleSchedule;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Maximum number of images of a batch or of a sampling; products with it stay far below overflow.
const MOST_IMAGES: usize = 1 << 24;
/// Maximum number of tokens that a filter keeps: more than there are codes, and far below what TOML
/// can hold.
const MOST_TOP_K: usize = 1 << 24;
/// Maximum guidance, beyond which f32 logits would overflow; published values are 1 to 4.
const MOST_GUIDANCE: f64 = 1e6;

/// Everything that decides what a run does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the images are and how they are cut. Checked when they are opened.
    pub data: DataConfig,
    /// The tokenizer's shape.
    pub tokenizer: TokenizerConfig,
    /// How a tokenizer is trained.
    pub tokenizer_train: TokenizerTrainConfig,
    /// The generator's shape.
    pub generator: GeneratorSection,
    /// How it is trained.
    pub train: TrainConfig,
    /// Self-autoregressive refinement, used where `train.mode` is `ssr`.
    pub sar: SarConfig,
    /// How images are sampled.
    pub sample: SampleConfig,
    /// How a generator is measured.
    pub eval: EvalConfig,
}

impl Config {
    /// The schedule that images are sampled in: the sampler's own, or else the generator's.
    pub fn sampled_schedule(&self) -> ScaleSchedule {
        self.sample.schedule.unwrap_or(self.generator.schedule)
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read; or as for [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, &path.display().to_string())
    }

    /// Reads a configuration from `text`; `origin` names it in errors.
    ///
    /// # Errors
    /// The text is not TOML, a key is unknown, or a value has the wrong type or is out of range;
    /// each error names the key and the line.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, origin))?;
        config.generator.resolve();
        config.validate().map_err(|e| e.at(text, origin))?;
        Ok(config)
    }

    /// Overrides this configuration with the keys that a file names.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn with_file(self, path: &Path) -> Result<Self, ConfigError> {
        self.with_text(&read(path)?, path)
    }

    /// Like [`Config::with_file`], given the file's text.
    pub(crate) fn with_text(self, text: &str, path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        // Checks keys and types first, to report the line; values are checked with the rest.
        if let Err(error) = toml::from_str::<Self>(text) {
            return Err(ConfigError::from_toml(&error, text, &origin));
        }
        overrides::overlay(&self, text, &origin)
    }

    /// Applies `section.key=value` settings in order, presets before the keys that they stand for.
    /// Values are checked after all are applied, since some depend on each other.
    ///
    /// # Errors
    /// As for [`Config::parse`], naming the setting.
    pub fn set(self, settings: &[String]) -> Result<Self, ConfigError> {
        let (presets, keys): (Vec<_>, Vec<_>) =
            settings.iter().partition(|setting| overrides::is_preset(setting));
        let mut ordered = presets.into_iter().chain(keys);
        let set = ordered.try_fold(self, |config, setting| overrides::apply(&config, setting))?;
        if settings.is_empty() {
            return Ok(set);
        }
        set.validate().map_err(|error| overrides::blame(error, settings))?;
        Ok(set)
    }

    /// Returns the configuration as TOML; [`Config::parse`] reads it back equal.
    ///
    /// # Errors
    /// TOML cannot hold a value.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(|e| ConfigError::Write { reason: e.to_string() })
    }

    /// Checks every value against its range.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the first key at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.tokenizer_train.validate()?;
        self.generator.validate()?;
        let fixed = self.generator.positions == Positions::Levels;
        require(
            !(fixed && self.train.random_schedules),
            "train.random_schedules",
            true,
            "false, since generator.positions = \"levels\" has positions for one schedule",
        )?;
        self.train.validate()?;
        self.sar.validate()?;
        self.sample.validate()?;
        self.eval.validate()
    }
}

/// Reads the text of a configuration file.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Checks the number of tokens that a filter keeps.
fn check_top_k(key: &str, top_k: usize) -> Result<(), ConfigError> {
    require(top_k <= MOST_TOP_K, key, top_k, &format!("0 (all) to {MOST_TOP_K}"))
}

/// Returns an error with the key and its allowed values unless `holds`.
pub(crate) fn require(
    holds: bool,
    key: &str,
    found: impl ToString,
    expected: &str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value {
        place: String::new(),
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.to_owned(),
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
