//! Tokenising, rolling out and sampling: steps without gradients, and so without backwards.

use super::{AttentionSlots, Buffers};
use crate::{MAX_SCALES, ScaleSchedule};
use core::ops::Range;

/// What remains of a distribution before it is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filter {
    /// Keep the k largest (ties with the k-th stay); 0 is off, 1 is greedy.
    pub top_k: usize,
    /// Drop the ascending tail of cumulative probability ≤ 1−p; 0 is off.
    pub top_p: f64,
}

/// Names the random numbers of a draw: independent of batch, thread and machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKeys {
    /// The run's seed.
    pub seed: u64,
    /// Number of the first image of the ids; sample b of them is image `first_image + b`.
    pub first_image: u64,
}

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The largest logit, lowest index on ties.
    ///
    /// NaN counts as −∞; where no logit is above that, the id is 0, by argmax and by draw.
    Argmax,
    /// A draw from the filtered softmax.
    Draw(Filter, DrawKeys),
}

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

/// Dimensions of [`RolloutOps::area_tokens`].
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
    /// `tokens[b, T, k]`: the latent `[b, k, h, w]` area-downsampled to every scale, token-major.
    ///
    /// # Errors
    /// Shape; likewise for all below.
    fn area_tokens(
        &self,
        dims: LatentDims,
        schedule: &ScaleSchedule,
        latent_bkhw: &Self::Activation,
        tokens_btk: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// `ids[r]`: the row of `codebook[v, k]` (L2-normalised) nearest to `z[r, k]` after z is
    /// L2-normalised; lowest index on ties. Computed in f32 or wider whatever z is stored in.
    fn nearest_code(
        &self,
        rows: usize,
        vocab: usize,
        channels: usize,
        z_rk: &Self::Activation,
        codebook_vk: &Self::Accum,
        ids_r: &mut Self::Ids,
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

    /// `map[b, k, h, w]`: the codes of one scale as a channel-first map, for the decoder.
    fn code_map(
        &self,
        dims: &RolloutDims,
        scale: usize,
        ids_bt: &Self::Ids,
        codebook_vk: &Self::Accum,
        map_bkhw: &mut Self::Activation,
    ) -> Result<(), Self::Error>;

    /// Guidance, filter and draw; writes the columns of `dims.scales` of `ids[first_sample + b, T]`.
    ///
    /// The logits are not changed. Ids are the same on every backend given the same logits.
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

    /// Takes the tokens of the scales for which `from_other` holds from `other`.
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
