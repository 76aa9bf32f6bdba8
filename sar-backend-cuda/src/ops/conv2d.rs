//! Convolution by im2col and matrix products.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::ConvDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    x: Address<S>,
    weight: Address<S>,
    bias: Address<f32>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    dy: Address<S>,
    x: Address<S>,
    weight: Address<S>,
    dx: Option<Address<S>>,
    dweight: Address<f32>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
