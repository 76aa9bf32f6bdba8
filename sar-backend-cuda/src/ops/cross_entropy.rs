//! Cross-entropy of tokens against hard targets.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::LossDims;

/// What a loss writes for every token.
pub(crate) struct RowLosses {
    /// The loss, not weighted.
    pub(crate) loss: Address<f32>,
    /// 1 where the largest logit is the target's.
    pub(crate) hits: Address<f32>,
    /// Log-sum-exp of the logits.
    pub(crate) lse: Address<f32>,
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits: Address<S>,
    targets: Address<u32>,
    out: RowLosses,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits_to_dlogits: Address<S>,
    targets: Address<u32>,
    lse: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
