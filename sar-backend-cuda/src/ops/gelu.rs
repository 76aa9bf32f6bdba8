//! GELU (tanh form) and its backward: 2 and 3 activations moved, 4 of both at once, 16 bytes a thread.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::{THREADS, vector_blocks};
use crate::storage::Storage;

const FORWARD: Kernel = Kernel { file: "gelu", name: "gelu" };
const BACKWARD: Kernel = Kernel { file: "gelu", name: "gelu_backward" };
const AGAIN: Kernel = Kernel { file: "gelu", name: "regelu_backward" };

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    gpu.expect(2 * len, 0, 0);
    // SAFETY: parameters as declared; both hold `len` elements, which was checked at the door.
    unsafe { gpu.launch(FORWARD, vector_blocks::<S>(len), THREADS, 0, &[&y, &x, &(len as u64)]) }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    dy_to_dx: Address<S>,
) -> Result<(), CudaError> {
    let blocks = vector_blocks::<S>(len);
    gpu.expect(3 * len, 0, 0);
    // SAFETY: as in `forward`.
    unsafe { gpu.launch(BACKWARD, blocks, THREADS, 0, &[&dy_to_dx, &x, &(len as u64)]) }
}

/// Both, in place.
pub(crate) fn again_backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x_to_y: Address<S>,
    dy_to_dx: Address<S>,
) -> Result<(), CudaError> {
    let blocks = vector_blocks::<S>(len);
    gpu.expect(4 * len, 0, 0);
    // SAFETY: as in `forward`.
    unsafe { gpu.launch(AGAIN, blocks, THREADS, 0, &[&x_to_y, &dy_to_dx, &(len as u64)]) }
}
