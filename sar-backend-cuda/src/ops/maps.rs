//! What the ops on maps share: grids, packs of sixteen bytes, pieces of scratch, and numbers as kernels
//! take them.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::ShapeError;

/// Threads of a block.
pub(crate) const THREADS: usize = 256;
/// Warps of a block.
pub(crate) const WARPS: usize = THREADS / 32;
/// Bytes that pieces of scratch are aligned to.
const ALIGN: usize = 256;

/// Elements that a thread takes at once if `run` elements lie one after the other: as many as sixteen
/// bytes hold, or one if the run is not a multiple of that.
pub(crate) const fn step<S: Storage>(run: usize) -> usize {
    let pack = 16 / size_of::<S>();
    if run.is_multiple_of(pack) { pack } else { 1 }
}

/// The grid that has room for `threads` threads.
pub(crate) const fn blocks(threads: usize) -> [usize; 3] {
    [threads.div_ceil(THREADS), 1, 1]
}

/// The grid that has room for `warps` warps.
pub(crate) const fn warp_blocks(warps: usize) -> [usize; 3] {
    [warps.div_ceil(WARPS), 1, 1]
}

/// Converts a number that kernels count in 32 bits; an error if it is too large.
pub(crate) fn narrow(op: &'static str, operand: &'static str, n: usize) -> Result<u32, ShapeError> {
    ShapeError::at_least(op, operand, n, i32::MAX as usize)?;
    Ok(n as u32)
}

/// Scratch in pieces of the given numbers of bytes, each aligned to 256 bytes.
pub(crate) fn pieces<S: Storage, D: Device, const N: usize>(
    gpu: &CudaBackend<S, D>,
    bytes: [usize; N],
) -> Result<[Address<u32>; N], CudaError> {
    let padded = bytes.map(|bytes| bytes.next_multiple_of(ALIGN));
    let base = gpu.scratch(padded.iter().sum())?;
    let mut at = 0;
    Ok(padded.map(|bytes| {
        let piece = base.at(at / size_of::<u32>());
        at += bytes;
        piece
    }))
}
