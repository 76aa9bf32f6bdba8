//! The norm of all gradients.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    grads: Address<f32>,
    norm: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
