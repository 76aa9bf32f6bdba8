//! Adaptive average pooling of the maps of a latent, a few elements per output. The backward gathers.

use super::maps::{THREADS, blocks, narrow};
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::MapDims;

const FORWARD: Kernel = Kernel { file: "area_resize", name: "area_resize_forward" };
const BACKWARD: Kernel = Kernel { file: "area_resize", name: "area_resize_backward" };

/// Rows and columns of x, then of y, as kernels take them.
fn sizes(
    op: &'static str,
    dims: MapDims,
    (height, width): (usize, usize),
) -> Result<[u32; 4], CudaError> {
    narrow(op, "elements of a plane", dims.height * dims.width)?;
    narrow(op, "elements of a plane", height * width)?;
    Ok([dims.height as u32, dims.width as u32, height as u32, width as u32])
}

/// `y[b, c, height, width]`: the mean over each window.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    to: (usize, usize),
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    let [h, w, to_h, to_w] = sizes("area_resize", dims, to)?;
    let len = dims.batch * dims.channels * to.0 * to.1;
    // SAFETY: one thread per element of y; windows lie within a plane of x.
    unsafe {
        let args: [&dyn crate::KernelArg; 7] = [&y, &x, &(len as u64), &h, &w, &to_h, &to_w];
        gpu.launch(FORWARD, blocks(len), THREADS, 0, &args)
    }
}

/// Backward of [`forward`]; `dx` is overwritten.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    to: (usize, usize),
    dy: Address<S>,
    dx: Address<S>,
) -> Result<(), CudaError> {
    let [h, w, to_h, to_w] = sizes("area_resize_backward", dims, to)?;
    // SAFETY: one thread per element of dx; the outputs it gathers lie within a plane of dy.
    unsafe {
        let args: [&dyn crate::KernelArg; 7] =
            [&dx, &dy, &(dims.len() as u64), &h, &w, &to_h, &to_w];
        gpu.launch(BACKWARD, blocks(dims.len()), THREADS, 0, &args)
    }
}
