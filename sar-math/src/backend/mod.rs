//! The traits a backend implements, and the contract they share.
//!
//! Each method is a step named by the paper or the model. These rules hold for all of them:
//!
//! - **Outputs are the caller's.** Ops write to `&mut` buffers and allocate nothing that outlives
//!   them. Buffers are flat; dimensions come with the call and a buffer may be longer than needed.
//! - **Parameter gradients accumulate (`+=`), activation gradients overwrite (`=`)**, unless a
//!   [`Write`] argument says otherwise.
//! - **Accumulate in f32 or wider**, whatever activations are stored in.
//! - **Work may be asynchronous.** `download*` and `synchronize` are the only calls that wait, and
//!   the ones where a device fault of earlier work may surface.
//! - **Same inputs, same bits** on one backend, whatever the thread count; a row of a forward op does
//!   not depend on how many other rows there are.
//! - **Shapes are checked once, at the door**, and errors are a [`ShapeError`]; no op panics on bad
//!   input. Checks that do not depend on the backend are in [`checks`].
//! - **Pairs have no default bodies**: a missing gradient is a compile error.

mod buffers;
pub mod checks;
mod embedding;
mod error;
mod loss;
mod optimizer;
mod rollout;
mod tokenizer;
mod transformer;

pub use crate::ShapeError;
pub use crate::sampling::{Choice, DrawKeys, Filter};
#[cfg(target_has_atomic = "ptr")]
pub use buffers::next_replay_key;
pub use buffers::{Buffers, Slot};
pub use embedding::{EmbeddingDims, EmbeddingOps, EmbeddingSlots};
pub use error::{BackendError, ErrorKind};
pub use loss::{LossDims, LossOps, TargetRows, TokenLoss};
pub use optimizer::{AdamW, OptimizerOps};
pub use rollout::{
    CachedAttentionDims, ChooseDims, CodeDims, Distance, RolloutDims, RolloutOps, TokenSpan,
};
pub use tokenizer::{Conv, ConvDims, GroupNorm, MapDims, QuantizeWeights, TokenizerOps};
pub use transformer::{
    AttentionDims, AttentionSlots, Branch, Linear, LinearDims, Modulation, NORMALIZE_EPS,
    SCALE_MUL_MAX, Seen, TokenDims, TransformerOps, Write,
};

/// Everything a trainer needs from a backend.
pub trait Backend:
    TransformerOps + EmbeddingOps + LossOps + RolloutOps + TokenizerOps + OptimizerOps
{
}

impl<T: TransformerOps + EmbeddingOps + LossOps + RolloutOps + TokenizerOps + OptimizerOps> Backend
    for T
{
}
