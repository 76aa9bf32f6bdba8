//! Cross-entropy of tokens against the softmax of a teacher.
//!
//! Like the hard one, with two rows at a time. Floor: 4 (bf16) or 8 bytes per logit forward, 6 or 12
//! backward.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::cross_entropy::{RowLosses, rows, threads, weights};
use crate::storage::Storage;
use sar_math::backend::LossDims;

const FORWARD: Kernel = Kernel { file: "soft_cross_entropy", name: "soft_cross_entropy_forward" };
const BACKWARD: Kernel = Kernel { file: "soft_cross_entropy", name: "soft_cross_entropy_backward" };

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits: Address<S>,
    teacher: Address<S>,
    out: RowLosses,
    teacher_lse: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn crate::KernelArg; 10] = [
        &out.loss,
        &out.hits,
        &out.lse,
        &teacher_lse,
        &logits,
        &teacher,
        &(dims.vocab as i32),
        &(dims.schedule.tokens() as i32),
        &(dims.targets.tokens as i32),
        &(dims.targets.shift as i32),
    ];
    // SAFETY: parameters as declared; one block per row; all rows, the teacher's too, were checked on entry.
    unsafe { gpu.launch(FORWARD, [rows(dims), 1, 1], threads::<S>(dims.vocab), 0, &args) }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits_to_dlogits: Address<S>,
    teacher: Address<S>,
    lse: Address<f32>,
    teacher_lse: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn crate::KernelArg; 9] = [
        &logits_to_dlogits,
        &teacher,
        &lse,
        &teacher_lse,
        &ScaleTable::new(&dims.schedule),
        &weights(dims),
        &(dims.vocab as i32),
        &(dims.targets.tokens as i32),
        &(dims.targets.shift as i32),
    ];
    // SAFETY: as in `forward`; rows are changed in place, each by its own block.
    unsafe { gpu.launch(BACKWARD, [rows(dims), 1, 1], threads::<S>(dims.vocab), 0, &args) }
}
