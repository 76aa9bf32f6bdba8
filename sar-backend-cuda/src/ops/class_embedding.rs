//! Rows of the class table, and their gradient in the order of the batch.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::THREADS;
use crate::storage::Storage;

const FORWARD: Kernel = Kernel { file: "class_embedding", name: "class_embedding" };
const BACKWARD: Kernel = Kernel { file: "class_embedding", name: "class_embedding_backward" };

/// Blocks of which none spans two samples, with one thread per column.
fn grid(batch: usize, width: usize) -> [usize; 3] {
    [batch * width.div_ceil(THREADS), 1, 1]
}

/// Writes the table's row for each label to `cond`; NaN if a label is not one of the `rows`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [batch, width, rows]: [usize; 3],
    labels: Address<u32>,
    table: Address<f32>,
    cond: Address<S>,
) -> Result<(), CudaError> {
    let args: [&dyn KernelArg; 5] = [&cond, &labels, &table, &(width as i32), &table_rows(rows)];
    // SAFETY: parameters as declared; lengths were checked on entry, and the kernel checks labels.
    unsafe { gpu.launch(FORWARD, grid(batch, width), THREADS, 0, &args) }
}

/// `dtable[labels_b] += dcond_b`; nothing for a label that is not a row of the table.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    [batch, width, rows]: [usize; 3],
    labels: Address<u32>,
    dcond: Address<S>,
    dtable: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn KernelArg; 6] =
        [&dtable, &labels, &dcond, &(batch as i32), &(width as i32), &table_rows(rows)];
    // SAFETY: as in `forward`.
    unsafe { gpu.launch(BACKWARD, grid(batch, width), THREADS, 0, &args) }
}

/// Rows that a label can name.
fn table_rows(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX)
}
