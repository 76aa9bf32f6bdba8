//! Cross-entropy of tokens against hard targets.
//!
//! Each block has one row of logits and reads it once, for its largest and its sum together; a backward
//! reads and writes each row in place. Floor: 2 (bf16) or 4 bytes per logit forward, twice that backward.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable, ScaleWeights};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::LossDims;

const FORWARD: Kernel = Kernel { file: "cross_entropy", name: "cross_entropy_forward" };
const BACKWARD: Kernel = Kernel { file: "cross_entropy", name: "cross_entropy_backward" };

/// Most threads of a block, as the kernels' launch bounds say.
const MAX_THREADS: usize = 256;

/// What a loss writes for every token.
pub(crate) struct RowLosses {
    /// The loss, not weighted.
    pub(crate) loss: Address<f32>,
    /// 1 where the largest logit is the target's.
    pub(crate) hits: Address<f32>,
    /// Log-sum-exp of the logits.
    pub(crate) lse: Address<f32>,
}

/// Threads of a block that has a row of `vocab` logits: one per 16 bytes, in whole warps.
///
/// The bits of the sums depend on this number, so it must depend on nothing else.
pub(crate) fn threads<S>(vocab: usize) -> usize {
    let vectors = vocab.div_ceil(16 / size_of::<S>());
    (vectors.div_ceil(32) * 32).min(MAX_THREADS)
}

/// Number of rows of the logits.
pub(crate) fn rows(dims: &LossDims) -> usize {
    dims.batch * dims.schedule.tokens()
}

/// The weights of the scales as kernels take them.
pub(crate) fn weights(dims: &LossDims) -> ScaleWeights {
    ScaleWeights { of_scale: dims.weights.map(|weight| weight as f32) }
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits: Address<S>,
    targets: Address<u32>,
    out: RowLosses,
) -> Result<(), CudaError> {
    let args: [&dyn crate::KernelArg; 11] = [
        &out.loss,
        &out.hits,
        &out.lse,
        &logits,
        &targets,
        &(dims.vocab as i32),
        &(dims.schedule.tokens() as i32),
        &(dims.targets.tokens as i32),
        &(dims.targets.shift as i32),
        &(1.0 - dims.smoothing),
        &(dims.smoothing / dims.vocab as f64),
    ];
    gpu.expect(rows(dims) * dims.vocab, 0, 0);
    // SAFETY: parameters as declared; one block per row, all of which were checked on entry.
    unsafe { gpu.launch(FORWARD, [rows(dims), 1, 1], threads::<S>(dims.vocab), 0, &args) }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &LossDims,
    logits_to_dlogits: Address<S>,
    targets: Address<u32>,
    lse: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn crate::KernelArg; 10] = [
        &logits_to_dlogits,
        &targets,
        &lse,
        &ScaleTable::new(&dims.schedule),
        &weights(dims),
        &(dims.vocab as i32),
        &(dims.targets.tokens as i32),
        &(dims.targets.shift as i32),
        &((1.0 - dims.smoothing) as f32),
        &((dims.smoothing / dims.vocab as f64) as f32),
    ];
    gpu.expect(2 * rows(dims) * dims.vocab, 0, 0);
    // SAFETY: as in `forward`; rows are changed in place, each by its own block.
    unsafe { gpu.launch(BACKWARD, [rows(dims), 1, 1], threads::<S>(dims.vocab), 0, &args) }
}
