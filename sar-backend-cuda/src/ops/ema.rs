//! Running average of the weights. Floor: 12 bytes per parameter.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

const EMA: Kernel = Kernel { file: "ema", name: "ema" };

/// Threads of a block; each has four parameters.
const THREADS: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    decay: f64,
    params: Address<f32>,
    average: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn crate::KernelArg; 5] =
        [&average, &params, &(len as u64), &(decay as f32), &((1.0 - decay) as f32)];
    // SAFETY: parameters as declared; both buffers were checked on entry.
    unsafe { gpu.launch(EMA, [len.div_ceil(4 * THREADS), 1, 1], THREADS, 0, &args) }
}
