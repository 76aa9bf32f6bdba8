//! What all ops on single elements share, and the addition of `Buffers`.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;

const ADD: Kernel = Kernel { file: "elementwise", name: "add" };

/// Threads of a block of an elementwise kernel.
pub(crate) const THREADS: usize = 256;

/// Number of elements in 16 bytes, the most that a thread reads at once: `VECTOR` of `kernels/vector.cuh`.
pub(crate) const fn vector<S>() -> usize {
    16 / size_of::<S>()
}

/// Blocks for `len` elements with one vector per thread.
pub(crate) fn vector_blocks<S>(len: usize) -> [usize; 3] {
    blocks(len.div_ceil(vector::<S>()))
}

/// Blocks for `len` elements with one element per thread.
pub(crate) fn blocks(len: usize) -> [usize; 3] {
    [len.div_ceil(THREADS), 1, 1]
}

/// `to += from`.
pub(crate) fn add<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    len: usize,
    from: Address<S>,
    to: Address<S>,
) -> Result<(), CudaError> {
    // SAFETY: the parameters of `add`; both hold `len` elements, which were checked on entry.
    unsafe { gpu.launch(ADD, blocks(len), THREADS, 0, &[&to, &from, &(len as u64)]) }
}
