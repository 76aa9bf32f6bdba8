//! The generator's shape.

use super::{ConfigError, require, text};
use crate::model::generator::{GeneratorShape, MLP_RATIO, NORM_EPS, POSITION_SIDE};
use documented::DocumentedFields;
use sar_math::ScaleSchedule;
use sar_math::sampling::MAX_VOCAB;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the positions of tokens come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// A learned table that is resized to every grid, as in FlexVAR; allows any schedule.
    #[default]
    Grid,
    /// A learned vector for every token of the schedule and one for every scale, as in VAR; allows
    /// no other grids.
    Levels,
}

impl Positions {
    /// Whether positions have the value that files from before the setting existed imply, and that
    /// is left out.
    fn is_grid(&self) -> bool {
        *self == Self::Grid
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Grid => "grid",
            Self::Levels => "levels",
        })
    }
}

/// Section `[generator]`. Everything a checkpoint must agree with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorSection {
    /// Transformer blocks. Default 4.
    pub depth: usize,
    /// Width C of a token; a multiple of `heads`. 0 is 64·depth, as published. Default 256.
    pub width: usize,
    /// Attention heads H. 0 is depth, as published. Default 4.
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
    /// Where positions come from: `grid` (FlexVAR), any schedule; `levels` (VAR), a vector for each token and each
    /// scale of this schedule. Default `grid`.
    #[serde(skip_serializing_if = "Positions::is_grid")]
    pub positions: Positions,
    /// Side of the learned position table of `grid`. Default 32, as published.
    pub pos_side: usize,
    /// Width of the FFN over the model's. Default 4, as published.
    pub mlp_ratio: usize,
    /// ε under the root of every layer norm. Default 1e-6, as published.
    pub norm_eps: f64,
    /// Factor on the initial rows of γ1 and γ2. Default 1e-3 (published: 1e-4 at depth 24).
    pub alng: f64,
}

impl Default for GeneratorSection {
    fn default() -> Self {
        Self {
            depth: 4,
            width: 256,
            heads: 4,
            vocab: 512,
            channels: 8,
            classes: 10,
            schedule: four_scales(),
            positions: Positions::Grid,
            pos_side: POSITION_SIDE,
            mlp_ratio: MLP_RATIO,
            norm_eps: NORM_EPS,
            alng: 1e-3,
        }
    }
}

/// The schedule `1_2_4_8`. Built from constants, so the fallback is never taken; it only avoids a
/// panic path.
fn four_scales() -> ScaleSchedule {
    ScaleSchedule::from_sides(&[1, 2, 4, 8]).unwrap_or_else(|_| ScaleSchedule::published_256())
}

impl GeneratorSection {
    /// Replaces zeros in width and heads by the values that they stand for.
    pub fn resolve(&mut self) {
        if self.width == 0 {
            self.width = self.depth.saturating_mul(64);
        }
        if self.heads == 0 {
            self.heads = self.depth;
        }
    }

    /// Checks that the generator has positions for every grid of a schedule.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names `key` and the first grid without positions.
    pub fn covers(&self, key: &str, schedule: &ScaleSchedule) -> Result<(), ConfigError> {
        let known = self.schedule.scales();
        let other = schedule.scales().iter().find(|scale| !known.contains(scale));
        match other.filter(|_| self.positions == Positions::Levels) {
            None => Ok(()),
            Some(grid) => {
                let found = format!("{schedule}, with a grid of {}x{}", grid.height, grid.width);
                let all = self.schedule;
                let expected =
                    format!("grids of {all}, which the positions of this generator are of");
                require(false, key, found, &expected)
            }
        }
    }

    /// Checks every value of a resolved section.
    ///
    /// # Errors
    /// [`ConfigError::Value`], which names the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        // The limits are far above what is trained, and keep products of these numbers from
        // overflowing.
        for (key, value, most) in [
            ("generator.depth", self.depth, 256),
            ("generator.width", self.width, 1 << 15),
            ("generator.heads", self.heads, 1 << 15),
            ("generator.channels", self.channels, 1 << 12),
            ("generator.classes", self.classes, 1 << 20),
            ("generator.pos_side", self.pos_side, 1 << 10),
            ("generator.mlp_ratio", self.mlp_ratio, 64),
        ] {
            require((1..=most).contains(&value), key, value, &format!("1 to {most}"))?;
        }
        // Drawing tokens supports no larger vocabulary.
        let codes = 2..=MAX_VOCAB;
        require(codes.contains(&self.vocab), "generator.vocab", self.vocab, "2 to 65536 codes")?;
        require(
            self.width.is_multiple_of(self.heads),
            "generator.width",
            self.width,
            &format!("a multiple of generator.heads = {}", self.heads),
        )?;
        require(
            self.norm_eps.is_finite() && self.norm_eps > 0.0,
            "generator.norm_eps",
            self.norm_eps,
            "a number above 0",
        )?;
        require(
            self.alng.is_finite() && self.alng >= 0.0,
            "generator.alng",
            self.alng,
            "a number of at least 0",
        )
    }
}

impl From<&GeneratorSection> for GeneratorShape {
    fn from(c: &GeneratorSection) -> Self {
        Self {
            depth: c.depth,
            width: c.width,
            heads: c.heads,
            vocab: c.vocab,
            channels: c.channels,
            classes: c.classes,
            pos_side: c.pos_side,
            levels: (c.positions == Positions::Levels).then_some(c.schedule),
            mlp_ratio: c.mlp_ratio,
            norm_eps: c.norm_eps,
            alng: c.alng,
        }
    }
}
