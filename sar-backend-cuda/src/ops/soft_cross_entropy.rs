//! Cross-entropy of tokens against the softmax of a teacher.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::cross_entropy::RowLosses;
use crate::storage::Storage;
use sar_math::backend::LossDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits: Address<S>,
    teacher: Address<S>,
    out: RowLosses,
    teacher_lse: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits_to_dlogits: Address<S>,
    teacher: Address<S>,
    lse: Address<f32>,
    teacher_lse: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
