//! Codes of one scale as a channel-first map: one thread an output.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use core::ops::Range;
use sar_math::backend::RolloutDims;

const CODE_MAP: Kernel = Kernel { file: "code_map", name: "code_map" };

/// Threads of a block; each has one output.
const THREADS: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &RolloutDims,
    range: Range<usize>,
    ids: Address<u32>,
    codebook: Address<f32>,
    map: Address<S>,
) -> Result<(), CudaError> {
    let outputs = dims.batch * dims.channels * range.len();
    let args: [&dyn crate::KernelArg; 9] = [
        &map,
        &ids,
        &codebook,
        &(outputs as u64),
        &(dims.schedule.tokens() as i32),
        &(range.start as i32),
        &(range.len() as i32),
        &(dims.channels as i32),
        &(dims.vocab as i32),
    ];
    // SAFETY: parameters as declared; operands checked at the door, ids by the kernel.
    unsafe { gpu.launch(CODE_MAP, [outputs.div_ceil(THREADS), 1, 1], THREADS, 0, &args) }
}
