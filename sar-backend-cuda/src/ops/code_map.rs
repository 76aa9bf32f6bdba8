//! Codes of one scale as a channel-first map of any size: one thread per output.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::Scale;
use sar_math::backend::RolloutDims;

const CODE_MAP: Kernel = Kernel { file: "code_map", name: "code_map" };
const CODE_MAP_RESIZED: Kernel = Kernel { file: "code_map", name: "code_map_resized" };

/// Threads of a block; each has one output.
const THREADS: usize = 256;
/// Longest side of a map: `kernels/bicubic.cuh` computes positions of taps in 32 bits.
pub(crate) const MAX_SIDE: usize = i32::MAX as usize / (2 * sar_math::schedule::MAX_SIDE + 1);

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &RolloutDims,
    scale: usize,
    size: Scale,
    ids: Address<u32>,
    codebook: Address<f32>,
    map: Address<S>,
) -> Result<(), CudaError> {
    let (grid, range) = (dims.schedule.scales()[scale], dims.schedule.range(scale));
    let outputs = dims.batch * dims.channels * size.height * size.width;
    let blocks = [outputs.div_ceil(THREADS), 1, 1];
    let outputs = outputs as u64;
    let (tokens, first) = (dims.schedule.tokens() as i32, range.start as i32);
    let (channels, vocab) = (dims.channels as i32, dims.vocab as i32);
    if grid == size {
        let positions = range.len() as i32;
        let args: [&dyn crate::KernelArg; 9] =
            [&map, &ids, &codebook, &outputs, &tokens, &first, &positions, &channels, &vocab];
        // SAFETY: parameters as declared; operands checked on entry, ids by the kernel.
        return unsafe { gpu.launch(CODE_MAP, blocks, THREADS, 0, &args) };
    }
    let args: [&dyn crate::KernelArg; 12] = [
        &map,
        &ids,
        &codebook,
        &outputs,
        &tokens,
        &first,
        &(grid.height as i32),
        &(grid.width as i32),
        &(size.height as i32),
        &(size.width as i32),
        &channels,
        &vocab,
    ];
    // SAFETY: as above; taps lie within the grid.
    unsafe { gpu.launch(CODE_MAP_RESIZED, blocks, THREADS, 0, &args) }
}
