//! The shape of a generator.

use serde::{Deserialize, Serialize};

/// Depth, width and tables of a generator (DESIGN: transformer block, inputs).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Transformer blocks d.
    pub depth: usize,
    /// Width C; 0 stands for 64·depth, as published.
    #[serde(default)]
    pub width: usize,
    /// Attention heads H; 0 stands for depth, as published. Divides the width.
    #[serde(default)]
    pub heads: usize,
    /// Codebook size V.
    pub vocab: usize,
    /// Latent channels K.
    pub channels: usize,
    /// Classes; class number `classes` is the unconditional one.
    pub classes: usize,
    /// Side of the learned position table.
    #[serde(default = "published_pos_side")]
    pub pos_side: usize,
    /// Factor on the initial rows of γ1, γ2: 1e-3; 1e-4 for depth 24.
    #[serde(default = "published_alng")]
    pub alng: f64,
}

fn published_pos_side() -> usize {
    32
}

fn published_alng() -> f64 {
    1e-3
}

/// A generator that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeneratorError {
    /// A dimension of zero.
    #[error("generator: {field} is 0, expected at least 1")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// Heads that do not divide the width.
    #[error(
        "generator: width {width} is not a multiple of {heads} heads; choose heads that divide it"
    )]
    Heads {
        /// Width C.
        width: usize,
        /// Heads H.
        heads: usize,
    },
}

impl GeneratorConfig {
    /// A published-style generator: width 64·depth, heads = depth.
    pub fn of_depth(depth: usize, vocab: usize, channels: usize, classes: usize) -> Self {
        Self {
            depth,
            width: 0,
            heads: 0,
            vocab,
            channels,
            classes,
            pos_side: published_pos_side(),
            alng: if depth >= 24 { 1e-4 } else { published_alng() },
        }
    }

    /// The same with width and heads filled in.
    ///
    /// # Errors
    /// [`GeneratorError`] naming the field at fault.
    pub fn resolved(&self) -> Result<Self, GeneratorError> {
        let mut c = self.clone();
        if c.width == 0 {
            c.width = 64 * c.depth;
        }
        if c.heads == 0 {
            c.heads = c.depth;
        }
        for (field, value) in [
            ("depth", c.depth),
            ("width", c.width),
            ("heads", c.heads),
            ("vocab", c.vocab),
            ("channels", c.channels),
            ("classes", c.classes),
            ("pos_side", c.pos_side),
        ] {
            if value == 0 {
                return Err(GeneratorError::Zero { field });
            }
        }
        if c.width % c.heads != 0 {
            return Err(GeneratorError::Heads { width: c.width, heads: c.heads });
        }
        Ok(c)
    }

    /// Size of one head, of a resolved configuration.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Published drop path rate of the deepest block: 0.1·d/24.
    pub fn published_drop_path(&self) -> f64 {
        0.1 * self.depth as f64 / 24.0
    }
}
