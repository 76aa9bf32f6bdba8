//! The norm of all gradients, summed in f64 in two stages: chunks of a fixed size, then the chunks.
//! Floor: 4 bytes per gradient.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

const SUM_SQUARES: Kernel = Kernel { file: "grad_norm", name: "sum_squares" };
const NORM_OF_PARTIALS: Kernel = Kernel { file: "grad_norm", name: "norm_of_partials" };

/// Gradients of one partial sum.
const CHUNK: usize = 1 << 16;
/// Threads of a block of the first stage, and of the one block of the second.
const THREADS: [usize; 2] = [256, 1024];

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    grads: Address<f32>,
    norm: Address<f32>,
) -> Result<(), CudaError> {
    let chunks = len.div_ceil(CHUNK);
    let partials = gpu.scratch(chunks * size_of::<f64>())?.cast::<f64>();
    let args: [&dyn crate::KernelArg; 4] = [&partials, &grads, &(len as u64), &(CHUNK as u64)];
    gpu.expect(0, len * size_of::<f32>(), 0);
    // SAFETY: parameters as declared; `partials` holds a sum for every chunk.
    unsafe { gpu.launch(SUM_SQUARES, [chunks, 1, 1], THREADS[0], 0, &args)? };
    let args: [&dyn crate::KernelArg; 3] = [&norm, &partials, &(chunks as u64)];
    // SAFETY: as above, and `norm` holds one number.
    unsafe { gpu.launch(NORM_OF_PARTIALS, [1, 1, 1], THREADS[1], 0, &args) }
}
