//! SiLU and its backward: they move 2 and 3 activations, 16 bytes per thread at once.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::{THREADS, vector_blocks};
use crate::storage::Storage;

const FORWARD: Kernel = Kernel { file: "silu", name: "silu" };
const BACKWARD: Kernel = Kernel { file: "silu", name: "silu_backward" };

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    // SAFETY: parameters as declared; both hold `len` elements, which was checked on entry.
    unsafe { gpu.launch(FORWARD, vector_blocks::<S>(len), THREADS, 0, &[&y, &x, &(len as u64)]) }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    x: Address<S>,
    dy_to_dx: Address<S>,
) -> Result<(), CudaError> {
    let blocks = vector_blocks::<S>(len);
    // SAFETY: as in `forward`.
    unsafe { gpu.launch(BACKWARD, blocks, THREADS, 0, &[&dy_to_dx, &x, &(len as u64)]) }
}
