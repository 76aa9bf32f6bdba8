//! The latent at scales, token-major: one thread per output, all of them in one launch.
//! Floor: the latent once and the tokens once, some MB per batch; no step waits for it.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, ScaleTable};
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{MapDims, TokenSpan};

const AREA_TOKENS: Kernel = Kernel { file: "area_tokens", name: "area_tokens" };

/// Threads of a block; each has one output.
const THREADS: usize = 256;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    span: &TokenSpan,
    latent: Address<S>,
    tokens: Address<S>,
) -> Result<(), CudaError> {
    let (held, written) =
        (span.schedule.span(span.held.clone()), span.schedule.span(span.scales.clone()));
    let outputs = dims.batch * written.len() * dims.channels;
    let args: [&dyn crate::KernelArg; 11] = [
        &tokens,
        &latent,
        &ScaleTable::new(&span.schedule),
        &(outputs as u64),
        &(written.start as i32),
        &(written.len() as i32),
        &(held.start as i32),
        &(held.len() as i32),
        &(dims.channels as i32),
        &(dims.height as i32),
        &(dims.width as i32),
    ];
    // SAFETY: parameters as declared; every output and the latent were checked on entry.
    unsafe { gpu.launch(AREA_TOKENS, [outputs.div_ceil(THREADS), 1, 1], THREADS, 0, &args) }
}
