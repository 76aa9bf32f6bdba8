//! The shape of a generator.

use sar_math::ScaleSchedule;

/// Ratio of the FFN's width to the model's, in the published models.
pub const MLP_RATIO: usize = 4;
/// ε under the root of every layer norm, in the published models.
pub const NORM_EPS: f64 = 1e-6;
/// Side of the learned position table of the published models.
pub const POSITION_SIDE: usize = 32;

/// Depth, width and tables of a generator (`docs/method.md`: inputs, transformer block).
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorShape {
    /// Transformer blocks d.
    pub depth: usize,
    /// Width C.
    pub width: usize,
    /// Attention heads H; divides the width.
    pub heads: usize,
    /// Codebook size V.
    pub vocab: usize,
    /// Latent channels K.
    pub channels: usize,
    /// Number of classes; class number `classes` is the unconditional one.
    pub classes: usize,
    /// Side of the learned position table, if positions come from one.
    pub pos_side: usize,
    /// The schedule with a learned vector for each token and each scale (VAR), instead of a resized
    /// table.
    pub levels: Option<ScaleSchedule>,
    /// Ratio of the FFN's width to the model's.
    pub mlp_ratio: usize,
    /// ε under the root of every layer norm.
    pub norm_eps: f64,
    /// Factor on the initial rows of γ1 and γ2 (published `alng`): 1e-3; 1e-4 from depth 24 on,
    /// 1e-5 from 30.
    pub alng: f64,
}

/// A generator that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeneratorError {
    /// A dimension of zero.
    #[error("generator: {field} is 0, expected at least 1")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// A number of heads that does not divide the width.
    #[error(
        "generator: width {width} is not a multiple of {heads} heads; choose heads that divide it"
    )]
    Heads {
        /// Width C.
        width: usize,
        /// Heads H.
        heads: usize,
    },
    /// A number of weights that does not fit the generator.
    #[error("generator: {found} weights, expected {expected}")]
    Weights {
        /// Number of weights given.
        found: usize,
        /// Number of weights in the layout.
        expected: usize,
    },
}

impl GeneratorShape {
    /// Returns a published-style shape: width 64·depth, heads = depth.
    pub fn of_depth(depth: usize, vocab: usize, channels: usize, classes: usize) -> Self {
        Self {
            depth,
            width: 64 * depth,
            heads: depth,
            vocab,
            channels,
            classes,
            pos_side: POSITION_SIDE,
            levels: None,
            mlp_ratio: MLP_RATIO,
            norm_eps: NORM_EPS,
            alng: match depth {
                0..24 => 1e-3,
                24..30 => 1e-4,
                _ => 1e-5,
            },
        }
    }

    /// Checks that a generator of this shape can be built.
    ///
    /// # Errors
    /// [`GeneratorError`], which names the invalid field.
    pub fn validate(&self) -> Result<(), GeneratorError> {
        for (field, value) in [
            ("depth", self.depth),
            ("width", self.width),
            ("heads", self.heads),
            ("vocab", self.vocab),
            ("channels", self.channels),
            ("classes", self.classes),
            ("pos_side", self.pos_side),
            ("mlp_ratio", self.mlp_ratio),
        ] {
            if value == 0 {
                return Err(GeneratorError::Zero { field });
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            return Err(GeneratorError::Heads { width: self.width, heads: self.heads });
        }
        Ok(())
    }

    /// Number of columns of the widest rows in a block: the FFN's hidden layer, or q, k and v
    /// together.
    pub fn widest(&self) -> usize {
        self.mlp_ratio.max(3) * self.width
    }

    /// Size of one head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads.max(1)
    }
}
