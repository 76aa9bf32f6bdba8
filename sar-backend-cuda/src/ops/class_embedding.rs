//! Rows of the class table.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

/// `[batch, width, rows]` with the rows of the table.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [batch, width, rows]: [usize; 3],
    labels: Address<u32>,
    table: Address<f32>,
    cond: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [batch, width, rows]: [usize; 3],
    labels: Address<u32>,
    dcond: Address<S>,
    dtable: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
