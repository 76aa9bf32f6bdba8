//! Tokenising, rolling out and sampling: steps without gradients and therefore without backwards.

use super::{AttentionSlots, Buffers, MapDims};
use crate::sampling::Choice;
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// Operands of [`RolloutOps::choose_codes`].
#[derive(Clone, Debug)]
pub struct ChooseDims {
    /// Number of images B that the logits belong to.
    pub batch: usize,
    /// Index, among the samples of the ids, of the first sample of the logits.
    pub first_sample: usize,
    /// The whole schedule; ids are `[b, T]`.
    pub schedule: ScaleSchedule,
    /// Which scales the logits hold: `[b or 2b, tokens of these, v]`.
    pub scales: Range<usize>,
    /// Vocabulary V.
    pub vocab: usize,
    /// Guidance t of each scale of the schedule, for logits with a second, unconditional half:
    /// `(1+t)·c − t·u`. If `None`, the logits hold only B samples.
    pub guidance: Option<[f64; MAX_SCALES]>,
    /// How to choose.
    pub choice: Choice,
}

/// A selection of tokens of sequences: those of `scales`, in rows that hold the tokens of the
/// scales `held`.
///
/// It describes the rows that an op writes; each op documents the layout of what it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// The whole schedule.
    pub schedule: ScaleSchedule,
    /// Scales whose tokens a row holds.
    pub held: Range<usize>,
    /// Scales whose tokens are selected; they lie within `held`.
    pub scales: Range<usize>,
}

impl TokenSpan {
    /// Selects all tokens, in rows that hold all of them.
    pub fn whole(schedule: &ScaleSchedule) -> Self {
        let scales = 0..schedule.len();
        Self { schedule: *schedule, held: scales.clone(), scales }
    }

    /// Selects the tokens of one scale, in rows that hold no others.
    pub fn one(schedule: &ScaleSchedule, scale: usize) -> Self {
        let scales = scale..scale.saturating_add(1);
        Self { schedule: *schedule, held: scales.clone(), scales }
    }

    /// Number of tokens in a row.
    pub fn row(&self) -> usize {
        self.schedule.span(self.held.clone()).len()
    }

    /// Range of the selected tokens within a row.
    pub fn columns(&self) -> Range<usize> {
        let first = self.schedule.span(self.held.clone()).start;
        let meant = self.schedule.span(self.scales.clone());
        meant.start.saturating_sub(first)..meant.end.saturating_sub(first)
    }
}

/// The measure by which a code is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// The nearest code has the smallest angle. Codes are L2-normalised, and so is the vector
    /// looked up.
    Cosine,
    /// The nearest code has the smallest `|z − e|`. A row of the codebook is a code e followed by
    /// `−|e|²/2`, so the nearest code has the largest `z·e − |e|²/2`.
    Euclidean,
}

/// Dimensions of the codebook that [`RolloutOps::nearest_code`] looks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeDims {
    /// Number of codes V.
    pub vocab: usize,
    /// Number of channels K of the vectors looked up.
    pub channels: usize,
    /// The measure by which a code is the nearest.
    pub distance: Distance,
}

impl CodeDims {
    /// Number of values in a row of the codebook.
    pub const fn columns(self) -> usize {
        match self.distance {
            Distance::Cosine => self.channels,
            Distance::Euclidean => self.channels.saturating_add(1),
        }
    }
}

/// Dimensions of [`RolloutOps::rollout_inputs`].
#[derive(Clone, Debug)]
pub struct RolloutDims {
    /// Samples B.
    pub batch: usize,
    /// Schedule of the ids, `[b, T]`.
    pub schedule: ScaleSchedule,
    /// Scales to make inputs for, each from the scale before it; the range starts at 1 or later.
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
    /// Number of tokens of this scale; each sees the past and all of these.
    pub tokens: usize,
    /// Number of tokens that the cache has room for.
    pub capacity: usize,
}

/// Steps that take no gradient.
pub trait RolloutOps: Buffers {
    /// Area-downsamples the latent `[b, k, h, w]` to the grids of `span.scales` and writes the
    /// result to the columns of these scales in `tokens[b, tokens of span.held, k]`.
    ///
    /// # Errors
    /// A shape error; the same holds for all methods below.
    fn area_tokens(
        &self,
        dims: MapDims,
        span: &TokenSpan,
        latent_bkhw: &Self::Activation,
        tokens_btk: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Finds the row of `codebook[v, columns]` nearest to each vector of
    /// `z[b, tokens of span.scales, k]`, the lowest index on ties, and writes it to the columns of
    /// `span.scales` in `ids[b, tokens of span.held]`. Rows of z hold no other scales, unlike those
    /// that `area_tokens` writes. The computation is in f32 or wider, whatever type z is stored in.
    fn nearest_code(
        &self,
        batch: usize,
        span: &TokenSpan,
        codes: CodeDims,
        z_btk: &Self::Activation,
        codebook: &Self::Accum,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Inputs of the scales `dims.scales`: the codes of the scale before, resized bicubically to
    /// this grid.
    ///
    /// `inputs` is `[b, tokens of these scales, k]`.
    fn rollout_inputs(
        &self,
        dims: &RolloutDims,
        ids_bt: &Self::Ids,
        codebook_vk: &Self::Accum,
        inputs: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// `map[b, k, height, width]`: the codes of `scale` as a channel-first map, resized bicubically
    /// where the scale's grid has another size. `dims.scales` is ignored.
    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        size: (usize, usize),
        ids_bt: &Self::Ids,
        codebook_vk: &Self::Accum,
        map_bkhw: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Applies guidance and filter, and draws; writes the columns of `dims.scales` in
    /// `ids[first_sample + b, T]`.
    ///
    /// The logits are not changed. Ids are the same on every backend given the same logits. A vocabulary beyond
    /// [`sampling::MAX_VOCAB`](crate::sampling::MAX_VOCAB) is an error, whatever the choice.
    fn choose_codes(
        &self,
        dims: &ChooseDims,
        logits: &Self::Activation,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Applies guidance before a linear head: `x[i]` becomes `(1+t)·x[i] − t·x[len+i]` for
    /// `i < len`.
    ///
    /// x holds the features of samples, followed by those of their unconditional twins. A linear
    /// head, bias included since the weights add up to 1, maps guided features to guided logits,
    /// with half the work and half the logits of guidance after the head.
    fn guide(&self, len: usize, t: f64, x: &mut Self::Activation) -> Result<(), Self::Error>;

    /// Replaces the tokens of the scales for which `from_other` is true with those of `other`.
    /// `from_other` is as long as the schedule.
    fn merge_ids(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        from_other: &[bool],
        other_bt: &Self::Ids,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Restores given codes: `ids[b, t]` becomes `given[b, t]` where `kept[b, t]` is not 0, for the
    /// tokens t of `scales`.
    fn keep_codes(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        kept_bt: &Self::Ids,
        given_bt: &Self::Ids,
        ids_bt: &mut Self::Ids,
    ) -> Result<(), Self::Error>;

    /// Attention of the tokens of one scale to each other and to all before them, with keys and
    /// values kept in `cache` (`2·b·capacity·h·d` elements, in the backend's own order).
    ///
    /// `qkv[b, tokens, 3, h, d]` does not include the biases; it is normalised as in
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
