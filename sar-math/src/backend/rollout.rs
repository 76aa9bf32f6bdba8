//! Tokenising, rolling out and sampling: steps without gradients, and so without backwards.

use super::{AttentionSlots, Buffers};
use crate::sampling::Choice;
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// Operands of [`RolloutOps::choose_codes`].
#[derive(Clone, Debug)]
pub struct ChooseDims {
    /// Images B of which there are logits.
    pub batch: usize,
    /// Sample of the ids that is the first of the logits.
    pub first_sample: usize,
    /// The whole schedule; ids are `[b, T]`.
    pub schedule: ScaleSchedule,
    /// Which scales the logits hold: `[b or 2b, tokens of these, v]`.
    pub scales: Range<usize>,
    /// Vocabulary V.
    pub vocab: usize,
    /// Guidance t of each scale of the schedule, where logits hold a second, unconditional half:
    /// `(1+t)·c − t·u`. Without it the logits hold B samples only.
    pub guidance: Option<[f64; MAX_SCALES]>,
    /// How to choose.
    pub choice: Choice,
}

/// Some tokens of sequences: those of `scales`, in rows that hold the tokens of the scales `held`.
///
/// What an op writes is held so; what it reads, it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// The whole schedule.
    pub schedule: ScaleSchedule,
    /// Scales whose tokens a row holds.
    pub held: Range<usize>,
    /// Scales whose tokens are meant; within `held`.
    pub scales: Range<usize>,
}

impl TokenSpan {
    /// All tokens of rows that hold all.
    pub fn whole(schedule: &ScaleSchedule) -> Self {
        let scales = 0..schedule.len();
        Self { schedule: *schedule, held: scales.clone(), scales }
    }

    /// The tokens of one scale, in rows that hold no other.
    pub fn one(schedule: &ScaleSchedule, scale: usize) -> Self {
        let scales = scale..scale.saturating_add(1);
        Self { schedule: *schedule, held: scales.clone(), scales }
    }

    /// Tokens of a row.
    pub fn row(&self) -> usize {
        self.schedule.span(self.held.clone()).len()
    }

    /// Where in a row the tokens lie that are meant.
    pub fn columns(&self) -> Range<usize> {
        let first = self.schedule.span(self.held.clone()).start;
        let meant = self.schedule.span(self.scales.clone());
        meant.start.saturating_sub(first)..meant.end.saturating_sub(first)
    }
}

/// Which code is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// The one of the least angle; codes are L2-normalised, and so is what is looked up.
    Cosine,
    /// The one of the least `|z − e|`. A row of the codebook is a code e and, behind it, `−|e|²/2`: the nearest
    /// is the code of the largest `z·e − |e|²/2`.
    Euclidean,
}

/// Dimensions of the codebook that [`RolloutOps::nearest_code`] looks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeDims {
    /// Codes V.
    pub vocab: usize,
    /// Channels K of what is looked up.
    pub channels: usize,
    /// Which is the nearest.
    pub distance: Distance,
}

impl CodeDims {
    /// Numbers of a row of the codebook.
    pub const fn columns(self) -> usize {
        match self.distance {
            Distance::Cosine => self.channels,
            Distance::Euclidean => self.channels.saturating_add(1),
        }
    }
}

/// Dimensions of the latents of [`RolloutOps::area_tokens`].
#[derive(Clone, Copy, Debug)]
pub struct LatentDims {
    /// Samples B.
    pub batch: usize,
    /// Latent channels K.
    pub channels: usize,
    /// Rows of the latent.
    pub height: usize,
    /// Columns of the latent.
    pub width: usize,
}

/// Dimensions of [`RolloutOps::rollout_inputs`].
#[derive(Clone, Debug)]
pub struct RolloutDims {
    /// Samples B.
    pub batch: usize,
    /// Schedule of the ids, `[b, T]`.
    pub schedule: ScaleSchedule,
    /// Which scales to make inputs for, each from the scale before it; 1 at least.
    pub scales: Range<usize>,
    /// Latent channels K.
    pub channels: usize,
    /// Vocabulary V.
    pub vocab: usize,
}

/// Dimensions of [`RolloutOps::cached_attention`].
#[derive(Clone, Copy, Debug)]
pub struct CachedAttentionDims {
    /// Samples B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Head size D.
    pub head_dim: usize,
    /// Tokens already in the cache.
    pub past: usize,
    /// Tokens of this scale; each sees the past and all of these.
    pub tokens: usize,
    /// Tokens the cache has room for.
    pub capacity: usize,
}

/// Steps that take no gradient.
pub trait RolloutOps: Buffers {
    /// The latent `[b, k, h, w]` area-downsampled to the grids of `span.scales`: those columns of
    /// `tokens[b, tokens of span.held, k]`.
    ///
    /// # Errors
    /// Shape; likewise for all below.
    fn area_tokens(
        &self,
        dims: LatentDims,
        span: &TokenSpan,
        latent_bkhw: &Self::Activation,
        tokens_btk: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// The row of `codebook[v, columns]` nearest to each of `z[b, tokens of span.scales, k]`, lowest index on
    /// ties: the columns of `span.scales` of `ids[b, tokens of span.held]`. Rows of z hold no other scales, unlike
    /// those that `area_tokens` writes. Computed in f32 or wider whatever z is stored in.
    fn nearest_code(
        &self,
        batch: usize,
        span: &TokenSpan,
        codes: CodeDims,
        z_btk: &Self::Activation,
        codebook: &Self::Accum,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Inputs of the scales `dims.scales`: the codes of the scale before, bicubic to this grid.
    ///
    /// `inputs` is `[b, tokens of these scales, k]`.
    fn rollout_inputs(
        &self,
        dims: &RolloutDims,
        ids_bt: &Self::Ids,
        codebook_vk: &Self::Accum,
        inputs: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// `map[b, k, height, width]`: the codes of `scale` as a channel-first map, bicubic to this size where the
    /// scale's grid has another. `dims.scales` is not looked at.
    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        size: (usize, usize),
        ids_bt: &Self::Ids,
        codebook_vk: &Self::Accum,
        map_bkhw: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Guidance, filter and draw; writes the columns of `dims.scales` of `ids[first_sample + b, T]`.
    ///
    /// The logits are not changed. Ids are the same on every backend given the same logits. A vocabulary beyond
    /// [`sampling::MAX_VOCAB`](crate::sampling::MAX_VOCAB) is an error, whatever the choice.
    fn choose_codes(
        &self,
        dims: &ChooseDims,
        logits: &Self::Activation,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Guidance before a linear head: `x[i]` becomes `(1+t)·x[i] − t·x[len+i]` for `i < len`.
    ///
    /// x holds features of samples and, behind them, of their unconditional twins. What is linear in them,
    /// bias included since the weights add up to 1, takes guided features to guided logits with half the
    /// work and half the logits of guiding behind it.
    fn guide(&self, len: usize, t: f64, x: &mut Self::Activation) -> Result<(), Self::Error>;

    /// Takes the tokens of the scales for which `from_other`, as long as the schedule, holds from `other`.
    fn merge_ids(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        from_other: &[bool],
        other_bt: &Self::Ids,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Puts given codes back: `ids[b, t]` becomes `given[b, t]` where `kept[b, t]` is not 0, for the tokens t
    /// of `scales`.
    fn keep_codes(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        kept_bt: &Self::Ids,
        given_bt: &Self::Ids,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Attention of one scale on all before it, with keys and values kept in `cache`
    /// (`2·b·capacity·h·d` elements, in the backend's own order).
    ///
    /// `qkv[b, tokens, 3, h, d]` comes without biases; normalisation as in
    /// [`super::TransformerOps::attention`]. `out` is `[b, tokens, h, d]`.
    fn cached_attention(
        &self,
        dims: CachedAttentionDims,
        qkv: &mut Self::Activation,
        params: &Self::Params,
        slots: AttentionSlots,
        cache: &mut Self::Activation,
        out: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
}
