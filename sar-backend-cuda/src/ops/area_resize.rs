//! Adaptive average pooling.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::MapDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    (height, width): (usize, usize),
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    (height, width): (usize, usize),
    dy: Address<S>,
    dx: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
