//! GELU (tanh form) and its backward: they move 2 and 3 activations, or 4 together, 16 bytes per thread.
//!
//! The backward also sums the columns of what it writes, for the bias gradient of the layer before: a
//! separate pass would read all of it once more.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::{THREADS, vector, vector_blocks};
use crate::ops::linear::{self, LANES, ROWS, SUM_THREADS};
use crate::ops::maps::narrow;
use crate::storage::Storage;

const FORWARD: Kernel = kernel("gelu");
/// Kernels for columns that are whole vectors, and for any.
const BACKWARD: [Kernel; 2] = [kernel("gelu_backward"), kernel("gelu_backward_any")];
const AGAIN: [Kernel; 2] = [kernel("regelu_backward"), kernel("regelu_backward_any")];

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "gelu", name }
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    gpu.expect(2 * len, 0, 0);
    // SAFETY: parameters as declared; both hold `len` elements, which was checked on entry.
    unsafe { gpu.launch(FORWARD, vector_blocks::<S>(len), THREADS, 0, &[&y, &x, &(len as u64)]) }
}

/// Also adds the column sums of dx to `dbias`, if there is one.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    rows: usize,
    columns: usize,
    x: Address<S>,
    dy_to_dx: Address<S>,
    dbias: Option<Address<f32>>,
) -> Result<(), CudaError> {
    gpu.expect(3 * rows * columns, 0, 0);
    backward_by(gpu, BACKWARD, rows, columns, x, dy_to_dx, dbias)
}

/// Computes the GELU again, and its backward, both in place.
pub(crate) fn again_backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    rows: usize,
    columns: usize,
    x_to_y: Address<S>,
    dy_to_dx: Address<S>,
    dbias: Option<Address<f32>>,
) -> Result<(), CudaError> {
    gpu.expect(4 * rows * columns, 0, 0);
    backward_by(gpu, AGAIN, rows, columns, x_to_y, dy_to_dx, dbias)
}

fn backward_by<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [whole, any]: [Kernel; 2],
    rows: usize,
    columns: usize,
    x: Address<S>,
    dy_to_dx: Address<S>,
    dbias: Option<Address<f32>>,
) -> Result<(), CudaError> {
    let across = narrow(whole.name, "columns", columns)?;
    let chunks = rows.div_ceil(ROWS);
    let partials = match dbias {
        None => Address::NULL,
        Some(_) => gpu.scratch(chunks * columns * 4)?.cast::<f32>(),
    };
    let (kernel, step) = match vector::<S>() {
        step if columns.is_multiple_of(step) => (whole, step),
        _ => (any, 1),
    };
    let blocks = chunks * columns.div_ceil(LANES * step);
    let args: [&dyn KernelArg; 6] =
        [&x, &dy_to_dx, &partials, &(rows as u64), &(across as i32), &(ROWS as i32)];
    // SAFETY: parameters as declared; lengths were checked on entry, and `partials` holds a row of
    // sums for every chunk, where sums are asked for.
    unsafe { gpu.launch(kernel, [blocks, 1, 1], SUM_THREADS, 0, &args)? };
    match dbias {
        None => Ok(()),
        Some(dbias) => linear::add_partials(gpu, chunks, columns, partials, dbias),
    }
}
