//! The learned position table, area-resized to every scale.
//!
//! The table is stored by channel, tokens by position: the forward first transposes the table into scratch
//! memory, so that all averages read neighbouring channels; the backward transposes its sums as it writes
//! them.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::THREADS;
use crate::storage::Storage;
use sar_math::ScaleSchedule;

const BY_CELL: Kernel = Kernel { file: "positions", name: "positions_by_cell" };
const FORWARD: Kernel = Kernel { file: "positions", name: "positions" };
const BACKWARD: Kernel = Kernel { file: "positions", name: "positions_backward" };

/// Side of the tiles that are transposed; also the channels of a block.
const TILE: usize = 32;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    table: Address<f32>,
    pos: Address<S>,
) -> Result<(), CudaError> {
    let area = side * side;
    let cells = gpu.scratch(area * width * 4)?.cast::<f32>();
    let (scales, width_arg) = (ScaleTable::new(schedule), width as i32);
    let tiles = [area.div_ceil(TILE), width.div_ceil(TILE), 1];
    let tokens = [schedule.tokens() * width.div_ceil(TILE), 1, 1];
    // SAFETY: parameters as declared; `cells` is as large as the table, and lengths were checked on
    // entry.
    unsafe {
        let args: [&dyn KernelArg; 4] = [&cells, &table, &(area as i32), &width_arg];
        gpu.launch(BY_CELL, tiles, THREADS, 0, &args)?;
        let args: [&dyn KernelArg; 5] = [&pos, &cells, &scales, &(side as i32), &width_arg];
        gpu.launch(FORWARD, tokens, THREADS, 0, &args)
    }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    dpos: Address<S>,
    dtable: Address<f32>,
) -> Result<(), CudaError> {
    let tiles = [(side * side).div_ceil(TILE), width.div_ceil(TILE), 1];
    let scales = ScaleTable::new(schedule);
    let args: [&dyn KernelArg; 5] = [&dtable, &dpos, &scales, &(side as i32), &(width as i32)];
    // SAFETY: parameters as declared; lengths were checked on entry.
    unsafe { gpu.launch(BACKWARD, tiles, THREADS, 0, &args) }
}
