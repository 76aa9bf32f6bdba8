//! Mean squared error and its gradient: x and the target are read once, dx is written once.

use super::maps::{THREADS, narrow, pieces};
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

const CHUNKS: Kernel = Kernel { file: "squared_error", name: "squared_error_chunks" };
const MEAN: Kernel = Kernel { file: "squared_error", name: "squared_error_mean" };

/// Elements that a block sums; a multiple of what sixteen bytes hold.
const CHUNK: usize = 8192;
/// Threads of the one block that sums the blocks' sums.
const MEAN_THREADS: usize = 1024;

/// `loss[0] = mean (x−target)²`; `dx = weight·2(x−target)/len`. The mean of nothing is 0.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    target: Address<S>,
    weight: f64,
    loss: Address<f32>,
    dx: Address<S>,
) -> Result<(), CudaError> {
    if len == 0 {
        // SAFETY: the loss has an element.
        return unsafe { gpu.zero(loss, 1) };
    }
    let chunks = len.div_ceil(CHUNK);
    let count = narrow("squared_error", "chunks", chunks)?;
    let [partials] = pieces(gpu, [chunks * 4])?.map(Address::cast::<f32>);
    let factor = (2.0 * weight / len as f64) as f32;
    // SAFETY: parameters as declared; a sum for every chunk.
    unsafe {
        let args: [&dyn crate::KernelArg; 7] =
            [&partials, &dx, &x, &target, &(len as u64), &(CHUNK as u32), &factor];
        gpu.launch(CHUNKS, [chunks, 1, 1], THREADS, 0, &args)?;
        let args: [&dyn crate::KernelArg; 4] = [&loss, &partials, &count, &(len as f32)];
        gpu.launch(MEAN, [1, 1, 1], MEAN_THREADS, 0, &args)
    }
}
