//! One-head attention over all positions of a map.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::MapDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    q: Address<S>,
    k: Address<S>,
    v: Address<S>,
    probabilities: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    dy: Address<S>,
    [q, k, v]: [Address<S>; 3],
    probabilities: Address<S>,
    [dq, dk, dv]: [Address<S>; 3],
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
