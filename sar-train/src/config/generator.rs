//! The generator's shape.

use super::{ConfigError, require, text};
use sar_math::ScaleSchedule;
use serde::{Deserialize, Serialize};

/// Section `[generator]`. Everything a checkpoint must agree with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorConfig {
    /// Transformer blocks. Default 4.
    pub depth: usize,
    /// Width C of a token; a multiple of `heads`. Default 256 (published: 64·depth).
    pub width: usize,
    /// Attention heads H. Default 4 (published: depth).
    pub heads: usize,
    /// Codebook size V, as the tokenizer's. Default 512 (published: 8912).
    pub vocab: usize,
    /// Latent channels K, as the tokenizer's. Default 8 (published: 32).
    pub channels: usize,
    /// Classes, without the unconditional one. Default 10.
    pub classes: usize,
    /// Grids from coarse to fine, `1_2_4_8`; non-square as `2x3`. Default `1_2_4_8`.
    #[serde(with = "text")]
    pub schedule: ScaleSchedule,
    /// Initial scale of the blocks' γ rows (published `alng`): 1e-3, or 1e-4 at depth 24.
    pub gamma_init: f64,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        Self {
            depth: 4,
            width: 256,
            heads: 4,
            vocab: 512,
            channels: 8,
            classes: 10,
            schedule: four_scales(),
            gamma_init: 1e-3,
        }
    }
}

/// `1_2_4_8`. Built from constants, so the fallback is never taken; it only avoids a panic path.
fn four_scales() -> ScaleSchedule {
    ScaleSchedule::from_sides(&[1, 2, 4, 8]).unwrap_or_else(|_| ScaleSchedule::published_256())
}

impl GeneratorConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("generator.depth", self.depth),
            ("generator.width", self.width),
            ("generator.heads", self.heads),
            ("generator.channels", self.channels),
            ("generator.classes", self.classes),
        ] {
            require(value >= 1, key, value, "at least 1")?;
        }
        require(self.vocab >= 2, "generator.vocab", self.vocab, "at least 2 codes")?;
        require(
            self.width.is_multiple_of(self.heads),
            "generator.width",
            self.width,
            &format!("a multiple of generator.heads = {}", self.heads),
        )?;
        require(
            self.gamma_init.is_finite() && self.gamma_init >= 0.0,
            "generator.gamma_init",
            self.gamma_init,
            "a number of at least 0",
        )
    }
}
