//! Inputs of a scale, resized bicubically from the codes of the scale before: one thread per output, all
//! scales in one launch. Floor: 16 rows of the codebook per output token, from the L2 cache.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::RolloutDims;

const ROLLOUT_INPUTS: Kernel = Kernel { file: "rollout_inputs", name: "rollout_inputs" };

/// Threads of a block; each has one output.
const THREADS: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &RolloutDims,
    ids: Address<u32>,
    codebook: Address<f32>,
    inputs: Address<S>,
) -> Result<(), CudaError> {
    let span = dims.schedule.span(dims.scales.clone());
    let outputs = dims.batch * span.len() * dims.channels;
    let args: [&dyn crate::KernelArg; 9] = [
        &inputs,
        &ids,
        &codebook,
        &ScaleTable::new(&dims.schedule),
        &(outputs as u64),
        &(span.start as i32),
        &(span.len() as i32),
        &(dims.channels as i32),
        &(dims.vocab as i32),
    ];
    // SAFETY: parameters as declared; operands checked on entry, ids by the kernel.
    unsafe { gpu.launch(ROLLOUT_INPUTS, [outputs.div_ceil(THREADS), 1, 1], THREADS, 0, &args) }
}
