//! Sums over the batch and the tokens of each scale: one block per scale, in f64.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::ScaleSchedule;

const SUMS: Kernel = Kernel { file: "scale_sums", name: "scale_sums" };

/// Threads of a block: there are few blocks, and therefore many threads in each.
const THREADS: usize = 1024;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    batch: usize,
    schedule: &ScaleSchedule,
    values: Address<f32>,
    sums: Address<f32>,
) -> Result<(), CudaError> {
    let table = ScaleTable::new(schedule);
    let args: [&dyn crate::KernelArg; 4] = [&sums, &values, &table, &(batch as u64)];
    // SAFETY: parameters as declared; one block per scale; values and sums were checked on entry.
    unsafe { gpu.launch(SUMS, [schedule.len(), 1, 1], THREADS, 0, &args) }
}
