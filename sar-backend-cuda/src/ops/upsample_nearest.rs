//! Nearest ×2 in both directions: five elements are moved for each element of the small map.

use super::maps::{THREADS, blocks, narrow};
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::MapDims;

const FORWARD: Kernel = Kernel { file: "upsample_nearest", name: "upsample_forward" };
const BACKWARD: Kernel = Kernel { file: "upsample_nearest", name: "upsample_backward" };

/// Writes `y[b, c, 2h, 2w]`; `dims` are those of x.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    let width = narrow("upsample_nearest", "width", dims.width)?;
    // SAFETY: one thread per element of x, which writes its four elements of y.
    unsafe {
        let args: [&dyn crate::KernelArg; 4] = [&y, &x, &(dims.len() as u64), &width];
        gpu.launch(FORWARD, blocks(dims.len()), THREADS, 0, &args)
    }
}

/// Sums each 2×2 block of dy; `dims` are those of x.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    dy: Address<S>,
    dx: Address<S>,
) -> Result<(), CudaError> {
    let width = narrow("upsample_nearest_backward", "width", dims.width)?;
    // SAFETY: one thread per element of dx, which reads its four elements of dy.
    unsafe {
        let args: [&dyn crate::KernelArg; 4] = [&dx, &dy, &(dims.len() as u64), &width];
        gpu.launch(BACKWARD, blocks(dims.len()), THREADS, 0, &args)
    }
}
