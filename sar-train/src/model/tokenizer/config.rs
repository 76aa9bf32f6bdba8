//! The shape of a tokenizer.

use documented::DocumentedFields;
use sar_math::sampling::MAX_VOCAB;
use serde::{Deserialize, Serialize};

/// Widths and depths of encoder and decoder, and the size of the codebook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerConfig {
    /// Channels at full resolution. Default 16 (published: 128).
    pub ch: usize,
    /// Factor of `ch` at each level; every level but the first halves the resolution. Default
    /// `[1, 2, 2]` (published: `[1, 1, 2, 2, 4]`).
    pub ch_mult: Vec<usize>,
    /// Residual blocks of an encoder level; the decoder has one more. Default 1 (published: 2).
    pub num_res_blocks: usize,
    /// Channels between encoder and `quant_conv`. Default 32 (published: 256).
    pub z_channels: usize,
    /// Latent channels K, the width of a code. Default 8 (published: 32).
    pub latent_channels: usize,
    /// Codebook size V. Default 512 (published: 8912).
    pub vocab: usize,
    /// Groups of the norms; divides the channels of every level. Default 8 (published: 32).
    pub groups: usize,
    /// Convolutions φ through which the maps of all scales add up to the latent, as in VAR's tokenizer (there 4);
    /// with them go its 3×3 convolutions around the quantizer, codes looked up by distance and the names of its
    /// tensors. Default 0: each scale stands for the latent itself, as in FlexVAR's. Others are read, not trained.
    #[serde(skip_serializing_if = "is_zero")]
    pub residual: usize,
}

/// Whether a number has the value that files from before the setting existed imply, and that is
/// left out.
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Default for TokenizerConfig {
    /// Trains on 32×32 glyphs in a minute and a half on two cores; 8×8 latents.
    fn default() -> Self {
        Self {
            ch: 16,
            ch_mult: vec![1, 2, 2],
            num_res_blocks: 1,
            z_channels: 32,
            latent_channels: 8,
            vocab: 512,
            groups: 8,
            residual: 0,
        }
    }
}

/// A tokenizer that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerConfigError {
    /// A dimension of zero.
    #[error("tokenizer: {field} is 0, expected at least 1")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// A codebook without a choice.
    #[error(
        "tokenizer: vocab is {found}, expected at least 2: of one code there is nothing to predict"
    )]
    OneCode {
        /// Number of codes.
        found: usize,
    },
    /// No levels, or more than an image can be halved.
    #[error("tokenizer: ch_mult has {found} levels, expected 1 to {MAX_LEVELS}")]
    Levels {
        /// Number of levels.
        found: usize,
    },
    /// Groups that do not divide the channels of a level.
    #[error(
        "tokenizer: {groups} groups do not divide the {channels} channels of level {level}; \
         choose groups that divide ch times every entry of ch_mult"
    )]
    Groups {
        /// Number of groups of the norms.
        groups: usize,
        /// Channels of the level.
        channels: usize,
        /// The level, counted from 0 at full resolution.
        level: usize,
    },
    /// Sizes whose product no machine can hold.
    #[error("tokenizer: {field} is {found}, expected at most {most}")]
    TooLarge {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// The largest.
        most: usize,
    },
}

/// Most levels: with more, one position would span more than 32 thousand pixels per side.
const MAX_LEVELS: usize = 16;
/// A bound that keeps every product of two widths far from overflow.
const MAX_WIDTH: usize = 1 << 16;
/// As many as there can be scales.
const MAX_RESIDUAL: usize = sar_math::MAX_SCALES;

impl TokenizerConfig {
    /// The published tokenizer: 72 M parameters, 256 px to 16×16.
    pub fn published() -> Self {
        Self {
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            z_channels: 256,
            latent_channels: 32,
            vocab: 8912,
            groups: 32,
            residual: 0,
        }
    }

    /// VAR's tokenizer: 109 M parameters, 256 px to 16×16.
    pub fn published_var() -> Self {
        let (ch, z_channels, vocab) = (160, 32, 4096);
        Self { ch, z_channels, vocab, residual: 4, ..Self::published() }
    }

    /// Checks that a tokenizer of this shape can be built.
    ///
    /// # Errors
    /// [`TokenizerConfigError`], which names the invalid field.
    pub fn validate(&self) -> Result<(), TokenizerConfigError> {
        for (field, value, most) in [
            ("ch", self.ch, MAX_WIDTH),
            ("num_res_blocks", self.num_res_blocks, MAX_WIDTH),
            ("z_channels", self.z_channels, MAX_WIDTH),
            ("latent_channels", self.latent_channels, MAX_WIDTH),
            ("vocab", self.vocab, MAX_VOCAB),
            ("groups", self.groups, MAX_WIDTH),
        ] {
            at_most(field, value, most)?;
        }
        if self.residual > MAX_RESIDUAL {
            let (field, found, most) = ("residual", self.residual, MAX_RESIDUAL);
            return Err(TokenizerConfigError::TooLarge { field, found, most });
        }
        if self.vocab < 2 {
            return Err(TokenizerConfigError::OneCode { found: self.vocab });
        }
        if self.ch_mult.is_empty() || self.ch_mult.len() > MAX_LEVELS {
            return Err(TokenizerConfigError::Levels { found: self.ch_mult.len() });
        }
        for (level, &factor) in self.ch_mult.iter().enumerate() {
            at_most("an entry of ch_mult", factor, MAX_WIDTH)?;
            let channels = self.ch * factor;
            at_most("ch times an entry of ch_mult", channels, MAX_WIDTH)?;
            if !channels.is_multiple_of(self.groups) {
                return Err(TokenizerConfigError::Groups { groups: self.groups, channels, level });
            }
        }
        // The first convolution's width is not that of any level unless `ch_mult` begins with 1.
        if !self.ch.is_multiple_of(self.groups) {
            let (groups, channels) = (self.groups, self.ch);
            return Err(TokenizerConfigError::Groups { groups, channels, level: 0 });
        }
        Ok(())
    }

    /// Number of channels of a level, counted from 0 at full resolution.
    pub(super) fn channels(&self, level: usize) -> usize {
        self.ch * self.ch_mult.get(level).copied().unwrap_or(1)
    }

    /// Pixels along an image side per position of the latent.
    pub fn downsample_factor(&self) -> usize {
        1 << (self.ch_mult.len().max(1) - 1)
    }
}

fn at_most(field: &'static str, found: usize, most: usize) -> Result<(), TokenizerConfigError> {
    match found {
        0 => Err(TokenizerConfigError::Zero { field }),
        _ if found > most => Err(TokenizerConfigError::TooLarge { field, found, most }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_wrong_values_are_named() {
        TokenizerConfig::default().validate().unwrap();
        TokenizerConfig::published().validate().unwrap();
        TokenizerConfig::published_var().validate().unwrap();
        let message = |change: fn(&mut TokenizerConfig)| {
            let mut config = TokenizerConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(message(|c| c.ch = 0).contains("ch is 0"));
        assert!(message(|c| c.groups = 7).contains("7 groups"));
        assert!(message(|c| c.ch_mult = vec![]).contains("0 levels"));
        assert!(message(|c| c.vocab = usize::MAX).contains("vocab"));
        assert!(message(|c| c.vocab = 1).contains("at least 2"));
        assert!(message(|c| c.residual = 33).contains("residual is 33"));
        assert!(message(|c| c.ch_mult = vec![usize::MAX]).contains("ch_mult"));
        assert!(toml::from_str::<TokenizerConfig>("chanels = 3").is_err());
    }
}
