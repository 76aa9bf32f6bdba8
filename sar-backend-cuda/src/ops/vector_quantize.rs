//! Straight-through quantisation to the nearest code.
//!
//! The search is 2·positions·vocab·channels FLOPs in f32 on tiles in shared memory; all else moves a
//! few maps. Codes and positions are normalised into scratch, channel by channel.

use super::maps::{THREADS, blocks, narrow, pieces, warp_blocks};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{MapDims, QuantizeWeights};

const UNITS: Kernel = Kernel { file: "vector_quantize", name: "quantize_units" };
const CODES: Kernel = Kernel { file: "vector_quantize", name: "quantize_codes" };
const SEARCH: Kernel = Kernel { file: "vector_quantize", name: "quantize_search" };
const TAKE: Kernel = Kernel { file: "vector_quantize", name: "quantize_take" };
const DISTANCE: Kernel = Kernel { file: "vector_quantize", name: "quantize_distance" };
const DZ: Kernel = Kernel { file: "vector_quantize", name: "quantize_dz" };
const CODE_SUMS: Kernel = Kernel { file: "vector_quantize", name: "quantize_code_sums" };
const DCODES: Kernel = Kernel { file: "vector_quantize", name: "quantize_dcodes" };

/// Positions and codes of a tile of the search: `TILE` of the kernel.
const TILE: usize = 64;
/// Blocks that the search is split into if there are few positions: some for each multiprocessor.
const SEARCH_BLOCKS: usize = 512;
/// Least number of codes that a block looks through.
const LEAST_SHARE: usize = 256;
/// Positions that a warp looks through for its code, and most segments of positions: the first bounds the
/// time for a code that most positions chose, the second bounds scratch.
const SEGMENT: usize = 2048;
const MOST_SEGMENTS: usize = 16;

/// Sizes as kernels take them.
#[derive(Clone, Copy)]
struct Sizes {
    positions: u32,
    vocab: u32,
    channels: u32,
    area: u32,
}

impl Sizes {
    fn new(op: &'static str, dims: MapDims, vocab: usize) -> Result<Self, CudaError> {
        let area = dims.height * dims.width;
        Ok(Self {
            positions: narrow(op, "positions", dims.batch * area)?,
            vocab: narrow(op, "vocab", vocab)?,
            channels: narrow(op, "channels", dims.channels)?,
            area: area as u32,
        })
    }

    fn positions(self) -> usize {
        self.positions as usize
    }

    /// Bytes of the normalised positions, their norms, the normalised codes, their norms, and half
    /// their squared lengths.
    fn unit_bytes(self) -> [usize; 5] {
        let (positions, vocab) = (self.positions() * 4, self.vocab as usize * 4);
        let channels = self.channels as usize;
        [channels * positions, positions, channels * vocab, vocab, vocab]
    }
}

/// Normalised positions and codes in scratch: `[channels, positions]` and `[channels, vocab]`.
#[derive(Clone, Copy)]
struct Units {
    z: Address<f32>,
    z_norms: Address<f32>,
    codes: Address<f32>,
    code_norms: Address<f32>,
    halves: Address<f32>,
}

impl Units {
    fn compute<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        sizes: Sizes,
        z: Address<S>,
        codebook: Address<f32>,
    ) -> Result<(), CudaError> {
        let Sizes { positions, vocab, channels, area } = sizes;
        // SAFETY: parameters as declared; scratch of `Sizes::unit_bytes`.
        unsafe {
            let args: [&dyn KernelArg; 6] =
                [&self.z, &self.z_norms, &z, &positions, &channels, &area];
            gpu.launch(UNITS, blocks(positions as usize), THREADS, 0, &args)?;
            let args: [&dyn KernelArg; 6] =
                [&self.codes, &self.code_norms, &self.halves, &codebook, &vocab, &channels];
            gpu.launch(CODES, blocks(vocab as usize), THREADS, 0, &args)
        }
    }
}

/// Writes ids and the quantised map; `distance[0] = mean (ẑ−e)²`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    vocab: usize,
    z: Address<S>,
    codebook: Address<f32>,
    ids: Address<u32>,
    quantized: Address<S>,
    distance: Address<f32>,
) -> Result<(), CudaError> {
    if dims.is_empty() {
        // SAFETY: the distance has an element.
        return unsafe { gpu.zero(distance, 1) };
    }
    let sizes = Sizes::new("vector_quantize", dims, vocab)?;
    let tiles = sizes.positions().div_ceil(TILE);
    let wanted = (SEARCH_BLOCKS / tiles).clamp(1, vocab.div_ceil(LEAST_SHARE));
    let share = vocab.div_ceil(wanted).next_multiple_of(TILE);
    let slices = vocab.div_ceil(share);
    let found = slices * sizes.positions() * 4;
    let sums = sizes.positions().div_ceil(THREADS);
    let [a, b, c, d, e] = sizes.unit_bytes();
    let [z_units, z_norms, codes, code_norms, halves, distances, nearest, partials] =
        pieces(gpu, [a, b, c, d, e, found, found, sums * 4])?.map(Address::cast::<f32>);
    let nearest = nearest.cast::<u32>();
    let units = Units { z: z_units, z_norms, codes, code_norms, halves };
    units.compute(gpu, sizes, z, codebook)?;
    let Sizes { positions, vocab, channels, area } = sizes;
    // SAFETY: parameters as declared; a best code for every position and slice.
    unsafe {
        let args: [&dyn KernelArg; 9] = [
            &distances,
            &nearest,
            &units.z,
            &units.codes,
            &units.halves,
            &positions,
            &vocab,
            &channels,
            &(share as u32),
        ];
        gpu.launch(SEARCH, [tiles, slices, 1], THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 12] = [
            &quantized,
            &ids,
            &partials,
            &distances,
            &nearest,
            &units.z,
            &units.codes,
            &positions,
            &vocab,
            &channels,
            &area,
            &(slices as u32),
        ];
        gpu.launch(TAKE, blocks(sizes.positions()), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 4] =
            [&distance, &partials, &(sums as u32), &(dims.len() as f32)];
        gpu.launch(DISTANCE, [1, 1, 1], THREADS, 0, &args)
    }
}

/// Gradients of [`forward`]: `dz` is overwritten, `dcodebook` is added to. An id that is not a code gives
/// NaN in `dz` and moves no code.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    vocab: usize,
    d_quantized: Address<S>,
    z: Address<S>,
    ids: Address<u32>,
    codebook: Address<f32>,
    weights: QuantizeWeights,
    dz: Address<S>,
    dcodebook: Address<f32>,
) -> Result<(), CudaError> {
    const OP: &str = "vector_quantize_backward";
    if dims.is_empty() || vocab == 0 {
        return Ok(());
    }
    let sizes = Sizes::new(OP, dims, vocab)?;
    let segments = sizes.positions().div_ceil(SEGMENT).min(MOST_SEGMENTS);
    let segment = sizes.positions().div_ceil(segments) as u32;
    let warps = segments * vocab;
    let count = narrow(OP, "codes of all segments", warps)?;
    let [a, b, c, d, e] = sizes.unit_bytes();
    let [z_units, z_norms, codes, code_norms, halves, sums] =
        pieces(gpu, [a, b, c, d, e, warps * dims.channels * 4])?.map(Address::cast::<f32>);
    let units = Units { z: z_units, z_norms, codes, code_norms, halves };
    units.compute(gpu, sizes, z, codebook)?;
    let mean = 2.0 / dims.len() as f64;
    let commitment = (weights.commitment * mean) as f32;
    let moving = (weights.codebook * mean) as f32;
    let Sizes { positions, vocab, channels, area } = sizes;
    // SAFETY: parameters as declared; a sum for every segment, code and channel.
    unsafe {
        let args: [&dyn KernelArg; 11] = [
            &dz,
            &d_quantized,
            &ids,
            &units.z,
            &units.z_norms,
            &units.codes,
            &positions,
            &vocab,
            &channels,
            &area,
            &commitment,
        ];
        gpu.launch(DZ, blocks(sizes.positions()), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 9] =
            [&sums, &ids, &units.z, &units.codes, &count, &positions, &vocab, &channels, &segment];
        let [across, _, _] = warp_blocks(warps);
        gpu.launch(CODE_SUMS, [across, dims.channels.div_ceil(32), 1], THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 8] = [
            &dcodebook,
            &sums,
            &units.codes,
            &units.code_norms,
            &vocab,
            &channels,
            &(segments as u32),
            &moving,
        ];
        gpu.launch(DCODES, warp_blocks(vocab as usize), THREADS, 0, &args)
    }
}
