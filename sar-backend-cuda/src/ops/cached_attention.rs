//! Attention of one scale on all before it, with keys and values kept.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::attention::HeadParams;
use crate::storage::Storage;
use sar_math::backend::CachedAttentionDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: CachedAttentionDims,
    qkv: Address<S>,
    params: HeadParams,
    cache: Address<S>,
    out: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
