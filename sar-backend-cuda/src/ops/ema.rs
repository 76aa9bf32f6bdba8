//! Running average of the weights.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    decay: f64,
    params: Address<f32>,
    average: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
