//! The learned position table, area-resized to every scale.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::ScaleSchedule;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    table: Address<f32>,
    pos: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    dpos: Address<S>,
    dtable: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
