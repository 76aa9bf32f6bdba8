//! From classes, codes and positions to the tokens of a pass, forward and backward.
//!
//! Shape suffixes: b batch, l tokens, c width, k latent channels.

use super::{Buffers, Linear, Slot};
use crate::ScaleSchedule;
use core::ops::Range;

/// Parameters of [`EmbeddingOps::token_embedding`].
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingSlots {
    /// `[C, K]` and `[C]`.
    pub word: Linear,
    /// `[C]`, added to the class token; `None` in a student pass.
    pub pos_start: Option<Slot>,
}

/// Dimensions of [`EmbeddingOps::token_embedding`].
#[derive(Clone, Debug)]
pub struct EmbeddingDims {
    /// Samples B of x.
    pub batch: usize,
    /// Samples of the inputs. B must be a multiple of this number, and sample b reads inputs
    /// `b % input_batch` (sampling with guidance runs each image twice on the same inputs).
    pub input_batch: usize,
    /// Which tokens of the schedule x holds. If the span starts at 0, its first token is the class
    /// token and the inputs hold only the others.
    pub span: Range<usize>,
    /// Width C.
    pub width: usize,
    /// Latent channels K.
    pub channels: usize,
}

impl EmbeddingDims {
    /// Number of class tokens in a sample: 1 where the span holds the first token, else 0.
    pub fn class_tokens(&self) -> usize {
        usize::from(self.span.start == 0 && !self.span.is_empty())
    }
}

/// Embeddings of classes and tokens, and their positions.
///
/// Each forward has its backward, and neither has a default body.
pub trait EmbeddingOps: Buffers {
    /// `cond[b, c] = table[labels_b, c]`; the table is `[classes+1, C]`, and its last row is the
    /// unconditional class. Other tables of vectors are read in the same way, such as those of
    /// positions, where each token has its own.
    ///
    /// # Errors
    /// A shape error; a device fault may surface here or later. The same holds for all methods
    /// below.
    fn class_embedding(
        &self,
        batch: usize,
        width: usize,
        labels: &Self::Ids,
        params: &Self::Params,
        table: Slot,
        cond_bc: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// `dtable[labels_b] += dcond_b`.
    fn class_embedding_backward(
        &self,
        batch: usize,
        width: usize,
        labels: &Self::Ids,
        dcond_bc: &Self::Activation,
        table: Slot,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// `pos[l, c]`: the learned table `[1, C, side, side]` (square; side from its length),
    /// area-resized to every scale.
    fn positions(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        params: &Self::Params,
        table: Slot,
        pos_lc: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`EmbeddingOps::positions`].
    fn positions_backward(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        dpos_lc: &Self::Activation,
        table: Slot,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// Tokens of a pass: the class token `cond_b + pos_start + pos_0`, others
    /// `word(inputs) + pos`, for the tokens in `dims.span`.
    ///
    /// `inputs` is `[input_batch, m, K]`, where m is the number of tokens of the span other than
    /// the class token; `pos_lc` covers the whole schedule; `x` is `[b, span, c]`.
    fn token_embedding(
        &self,
        dims: &EmbeddingDims,
        cond_bc: &Self::Activation,
        inputs: &Self::Activation,
        params: &Self::Params,
        slots: EmbeddingSlots,
        pos_lc: &Self::Activation,
        x: &mut Self::Activation,
    ) -> Result<(), Self::Error>;
    /// Backward of [`EmbeddingOps::token_embedding`] for a span that is a whole schedule and
    /// `input_batch == batch`. `dcond` and `dpos` are overwritten; inputs take no gradient.
    fn token_embedding_backward(
        &self,
        dims: &EmbeddingDims,
        dx: &Self::Activation,
        inputs: &Self::Activation,
        slots: EmbeddingSlots,
        dcond_bc: &mut Self::Activation,
        dpos_lc: &mut Self::Activation,
        grads: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
}
