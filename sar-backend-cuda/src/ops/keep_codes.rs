//! Replaces chosen codes by given ones.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use std::ops::Range;

const KEEP_CODES: Kernel = Kernel { file: "keep_codes", name: "keep_codes" };

/// Threads of a block; each has one token.
const THREADS: usize = 256;

/// Writes the given codes of a span of tokens back at the places where codes are kept.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [batch, tokens]: [usize; 2],
    span: Range<usize>,
    kept: Address<u32>,
    given: Address<u32>,
    ids: Address<u32>,
) -> Result<(), CudaError> {
    let len = batch * span.len();
    let (tokens, first, width) = (tokens as i32, span.start as i32, span.len() as i32);
    let args: [&dyn crate::KernelArg; 7] =
        [&ids, &kept, &given, &(len as u64), &tokens, &first, &width];
    // SAFETY: parameters as declared; all three buffers were checked on entry, and ids, which is
    // borrowed mutably there, is neither of the others.
    unsafe { gpu.launch(KEEP_CODES, [len.div_ceil(THREADS), 1, 1], THREADS, 0, &args) }
}
