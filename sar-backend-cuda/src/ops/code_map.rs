//! Codes of one scale as a channel-first map.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use core::ops::Range;
use sar_math::backend::RolloutDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &RolloutDims,
    range: Range<usize>,
    ids: Address<u32>,
    codebook: Address<f32>,
    map: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
