//! Takes the tokens of some scales from another buffer.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::ScaleSchedule;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    batch: usize,
    schedule: &ScaleSchedule,
    from_other: &[bool],
    other: Address<u32>,
    ids: Address<u32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
