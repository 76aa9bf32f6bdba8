//! Takes the tokens of some scales from another buffer.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::ScaleSchedule;

const MERGE_IDS: Kernel = Kernel { file: "merge_ids", name: "merge_ids" };

/// Threads of a block; each has one output.
const THREADS: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    batch: usize,
    schedule: &ScaleSchedule,
    from_other: &[bool],
    other: Address<u32>,
    ids: Address<u32>,
) -> Result<(), CudaError> {
    let len = batch * schedule.tokens();
    let bit = |(scale, &take): (usize, &bool)| u32::from(take) << scale;
    let mask: u32 = from_other.iter().enumerate().map(bit).sum();
    let table = ScaleTable::new(schedule);
    let args: [&dyn crate::KernelArg; 5] = [&ids, &other, &table, &(len as u64), &mask];
    // SAFETY: parameters as declared; both buffers were checked on entry.
    unsafe { gpu.launch(MERGE_IDS, [len.div_ceil(THREADS), 1, 1], THREADS, 0, &args) }
}
