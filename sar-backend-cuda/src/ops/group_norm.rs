//! Group norm, followed by SiLU if asked for.
//!
//! Forward reads x for the statistics and again to apply them (from the cache where it fits) and
//! writes y. Backward reads x and dy twice and writes dx.

use super::maps::{THREADS, blocks, narrow, pieces, step, warp_blocks};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{MapDims, Write};

const SEGMENTS: Kernel = Kernel { file: "group_norm", name: "group_norm_segments" };
const COMBINE: Kernel = Kernel { file: "group_norm", name: "group_norm_combine" };
const APPLY: Kernel = Kernel { file: "group_norm", name: "group_norm_apply" };
const PLANE_SUMS: Kernel = Kernel { file: "group_norm", name: "group_norm_plane_sums" };
const GROUP_SUMS: Kernel = Kernel { file: "group_norm", name: "group_norm_group_sums" };
const PARAMS: Kernel = Kernel { file: "group_norm", name: "group_norm_params" };
const DX: Kernel = Kernel { file: "group_norm", name: "group_norm_dx" };

/// Elements that a warp sums: 64 per lane, a multiple of what a warp reads at once, and few enough that
/// the largest groups (256×256×4) have a hundred warps.
const SEGMENT: usize = 2048;

/// Dimensions and settings of a norm.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) dims: MapDims,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    pub(crate) silu: bool,
}

/// A norm's sizes as kernels take them.
struct Sizes {
    /// Groups of all samples.
    groups: u32,
    channels: u32,
    /// Channels of a group.
    width: u32,
    /// Elements of a plane.
    area: u32,
    /// Elements of a group.
    len: u32,
}

impl Norm {
    fn sizes(self, op: &'static str) -> Result<Sizes, CudaError> {
        let MapDims { batch, channels, height, width } = self.dims;
        let (area, of_group) = (height * width, channels / self.groups);
        Ok(Sizes {
            groups: narrow(op, "groups of all samples", batch * self.groups)?,
            channels: narrow(op, "channels", channels)?,
            width: of_group as u32,
            area: narrow(op, "elements of a plane", area)?,
            len: narrow(op, "elements of a group", of_group * area)?,
        })
    }
}

/// Writes `y[b, c, h, w]`, and mean and 1/σ to `stats[b, groups, 2]`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    norm: Norm,
    x: Address<S>,
    weight: Address<f32>,
    bias: Address<f32>,
    y: Address<S>,
    stats: Address<f32>,
) -> Result<(), CudaError> {
    if norm.dims.is_empty() {
        return Ok(());
    }
    let Sizes { groups, channels, width, area, len } = norm.sizes("group_norm")?;
    let segments = (len as usize).div_ceil(SEGMENT);
    let warps = groups as usize * segments;
    let [partials] = pieces(gpu, [warps * 8])?.map(Address::cast::<f32>);
    let (segments, segment) = (segments as u32, SEGMENT as u32);
    let of_group = step::<S>(len as usize) as i32;
    let of_plane = step::<S>(area as usize);
    let steps = norm.dims.len() / of_plane;
    // SAFETY: parameters as declared; two numbers for every segment, and for every group in `stats`.
    unsafe {
        let args: [&dyn KernelArg; 7] =
            [&partials, &x, &(warps as u64), &segments, &len, &segment, &of_group];
        gpu.launch(SEGMENTS, warp_blocks(warps), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 7] =
            [&stats, &partials, &groups, &segments, &len, &segment, &(norm.eps as f32)];
        gpu.launch(COMBINE, warp_blocks(groups as usize), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 11] = [
            &y,
            &x,
            &stats,
            &weight,
            &bias,
            &(steps as u64),
            &channels,
            &width,
            &area,
            &i32::from(norm.silu),
            &(of_plane as i32),
        ];
        gpu.launch(APPLY, blocks(steps), THREADS, 0, &args)
    }
}

/// Backward of [`forward`]: writes `dx` as `write` says, and adds to `dweight[c]` and `dbias[c]`.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    norm: Norm,
    dy: Address<S>,
    x: Address<S>,
    stats: Address<f32>,
    weight: Address<f32>,
    bias: Address<f32>,
    write: Write,
    dx: Address<S>,
    dweight: Address<f32>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    if norm.dims.is_empty() {
        return Ok(());
    }
    let Sizes { groups, channels, width, area, .. } = norm.sizes("group_norm_backward")?;
    let segments = (area as usize).div_ceil(SEGMENT);
    let planes = norm.dims.batch * norm.dims.channels;
    let warps = planes * segments;
    let [partials, sums, means] =
        pieces(gpu, [warps * 8, planes * 8, groups as usize * 8])?.map(Address::cast::<f32>);
    let of_plane = step::<S>(area as usize);
    let steps = norm.dims.len() / of_plane;
    let (silu, accumulate) = (i32::from(norm.silu), i32::from(write == Write::Accumulate));
    let (segments, pack) = (segments as u32, of_plane as i32);
    let (warps_arg, segment) = (warps as u64, SEGMENT as u32);
    // SAFETY: parameters as declared; two sums for every segment, plane and group.
    unsafe {
        let args: [&dyn KernelArg; 14] = [
            &partials, &dy, &x, &stats, &weight, &bias, &warps_arg, &segments, &channels, &width,
            &area, &segment, &silu, &pack,
        ];
        gpu.launch(PLANE_SUMS, warp_blocks(warps), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 10] = [
            &sums, &means, &partials, &stats, &weight, &groups, &segments, &channels, &width, &area,
        ];
        gpu.launch(GROUP_SUMS, warp_blocks(groups as usize), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 5] =
            [&dweight, &dbias, &sums, &(norm.dims.batch as u32), &channels];
        gpu.launch(PARAMS, blocks(channels as usize), THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 14] = [
            &dx,
            &dy,
            &x,
            &stats,
            &weight,
            &bias,
            &means,
            &(steps as u64),
            &channels,
            &width,
            &area,
            &silu,
            &accumulate,
            &pack,
        ];
        gpu.launch(DX, blocks(steps), THREADS, 0, &args)
    }
}
