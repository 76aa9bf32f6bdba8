//! Residual, gate, layer norm and modulation in one pass over each row.
//!
//! A forward moves x, branch, sum and y once: 4 activations. A backward moves dy, the norm's input, branch,
//! dx (both ways) and dbranch: 6, since a sum that was not kept is added up again from the branch, which is
//! read anyway. Gradients of the modulation are partial sums over [`CHUNK`] tokens, which are then added in
//! order. The gradient of the branch's bias is one more such sum, followed by a sum over samples: a separate
//! pass would read dbranch once more. Widths that are not whole vectors take kernels that go element by
//! element.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::memory::Address;
use crate::ops::elementwise::{THREADS, vector};
use crate::ops::linear::add_partials;
use crate::ops::maps::pieces;
use crate::storage::Storage;
use sar_math::backend::{Modulation, TokenDims, Write};

/// The matrix of ada-linear outputs, and the columns of this norm.
#[derive(Clone, Copy)]
pub(crate) struct Ada<S> {
    pub(crate) values: Address<S>,
    pub(crate) at: Modulation,
}

/// The branch that joins the residual stream.
#[derive(Clone, Copy)]
pub(crate) struct BranchAt<S> {
    pub(crate) value: Address<S>,
    /// Column offset of the gate.
    pub(crate) gate: usize,
    /// Drop path, `[b]`.
    pub(crate) keep: Option<Address<f32>>,
}

/// Inputs of the backward: the gradient of the output, and what the forward used and saved.
pub(crate) struct Saved<S> {
    pub(crate) dy: Address<S>,
    /// The norm's input; or, if that is to be added up `again`, what the branch was added to.
    pub(crate) seen: Address<S>,
    pub(crate) again: bool,
    pub(crate) stats: Address<f32>,
    pub(crate) branch: Option<BranchAt<S>>,
    pub(crate) ada: Ada<S>,
}

/// Threads of a block of the forward kernels, which give a warp to a row.
const FORWARD_THREADS: usize = 128;
/// Rows of such a block.
const FORWARD_ROWS: usize = FORWARD_THREADS / 32;
/// Tokens whose gradients of modulation and bias one block sums, whatever the batch: a sample's sums do not
/// depend on the other samples. Partial sums are then a twenty-fourth of the traffic, and 64 samples of 680
/// tokens give ten blocks per multiprocessor.
const CHUNK: usize = 32;
/// Most threads of a block of the backward, one per vector of columns; the kernels are compiled for this number.
const BACKWARD_THREADS: usize = 512;
/// Threads of a block of the kernels that take any width.
const ANY_THREADS: usize = 256;

/// The forward kernels that hold a row in registers, each with its number of elements per lane.
const IN_REGISTERS: [(usize, Kernel); 5] = [
    (8, kernel("residual_norm_8")),
    (16, kernel("residual_norm_16")),
    (32, kernel("residual_norm_32")),
    (48, kernel("residual_norm_48")),
    (64, kernel("residual_norm_64")),
];
const FORWARD_ANY: Kernel = kernel("residual_norm_any");
/// Kernels for widths of whole vectors, then for any width; each from the sum, then from x and a branch.
const RENORM: [[Kernel; 2]; 2] = [
    [kernel("renorm_vectors"), kernel("renorm_branch_vectors")],
    [kernel("renorm_any"), kernel("renorm_branch_any")],
];
const BACKWARD: Kernel = kernel("residual_norm_backward");
const BACKWARD_ANY: Kernel = kernel("residual_norm_backward_any");
const ADA: Kernel = kernel("residual_norm_ada");

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "residual_norm", name }
}

/// Whether every row, and every column offset of the modulation, is a whole number of vectors.
fn whole_vectors<S: Storage>(width: usize, at: Modulation, gate: usize) -> bool {
    [width, at.stride, at.scale, at.shift, gate].iter().all(|n| n % vector::<S>() == 0)
}

/// The forward kernel for a width.
fn forward_kernel(width: usize, whole: bool) -> Kernel {
    let fitting = IN_REGISTERS.iter().find(|(elements, _)| whole && width <= 32 * elements);
    fitting.map_or(FORWARD_ANY, |&(_, kernel)| kernel)
}

/// Blocks of the forward kernels: none spans two samples, and each token has a warp.
fn forward_grid(dims: TokenDims) -> [usize; 3] {
    [dims.batch * dims.tokens.div_ceil(FORWARD_ROWS), 1, 1]
}

/// The branch as kernels take it: value and keep, null where there is none, and the gate's column.
fn branch_args<S>(branch: Option<BranchAt<S>>) -> (Address<S>, Address<f32>, usize) {
    branch.map_or((Address::NULL, Address::NULL, 0), |branch| {
        (branch.value, branch.keep.unwrap_or(Address::NULL), branch.gate)
    })
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: TokenDims,
    eps: f64,
    x: Address<S>,
    branch: Option<BranchAt<S>>,
    ada: Ada<S>,
    sum: Address<S>,
    y: Address<S>,
    stats: Address<f32>,
) -> Result<(), CudaError> {
    let TokenDims { tokens, width, .. } = dims;
    if dims.is_empty() {
        return Ok(());
    }
    let Modulation { stride, scale, shift } = ada.at;
    let (value, keep, gate) = branch_args(branch);
    let kernel = forward_kernel(width, whole_vectors::<S>(width, ada.at, gate));
    gpu.expect(dims.len() * if branch.is_some() { 4 } else { 2 }, 0, 0);
    // SAFETY: parameters as declared; lengths were checked on entry, and where there is no branch
    // the kernel leaves sum alone.
    unsafe {
        gpu.launch(
            kernel,
            forward_grid(dims),
            FORWARD_THREADS,
            0,
            &[
                &y,
                &sum,
                &stats,
                &x,
                &value,
                &keep,
                &ada.values,
                &(tokens as i32),
                &(width as i32),
                &(stride as i32),
                &(scale as i32),
                &(shift as i32),
                &(gate as i32),
                &(eps as f32),
            ],
        )
    }
}

pub(crate) fn renorm<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: TokenDims,
    x: Address<S>,
    branch: Option<BranchAt<S>>,
    stats: Address<f32>,
    ada: Ada<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    let TokenDims { tokens, width, .. } = dims;
    if dims.is_empty() {
        return Ok(());
    }
    let Modulation { stride, scale, shift } = ada.at;
    let (value, keep, gate) = branch_args(branch);
    let any = usize::from(!whole_vectors::<S>(width, ada.at, gate));
    let kernel = RENORM[any][usize::from(branch.is_some())];
    gpu.expect(dims.len() * if branch.is_some() { 3 } else { 2 }, 0, 0);
    // SAFETY: parameters as declared; lengths were checked on entry.
    unsafe {
        gpu.launch(
            kernel,
            forward_grid(dims),
            FORWARD_THREADS,
            0,
            &[
                &y,
                &x,
                &value,
                &keep,
                &stats,
                &ada.values,
                &(tokens as i32),
                &(width as i32),
                &(stride as i32),
                &(scale as i32),
                &(shift as i32),
                &(gate as i32),
            ],
        )
    }
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: TokenDims,
    saved: &Saved<S>,
    write: Write,
    dx: Address<S>,
    dbranch: Address<S>,
    d_ada: Address<S>,
    dbias: Option<Address<f32>>,
) -> Result<(), CudaError> {
    let TokenDims { batch, tokens, width } = dims;
    let Modulation { stride, scale, shift } = saved.ada.at;
    let (value, keep, gate) = branch_args(saved.branch);
    let kinds = 2 + usize::from(saved.branch.is_some()) + usize::from(dbias.is_some());
    let chunks = tokens.div_ceil(CHUNK);
    let sums = if dbias.is_some() { batch * width * 4 } else { 0 };
    let [partials, sums] = pieces(gpu, [batch * chunks * kinds * width * 4, sums])?;
    let (partials, sums) = (partials.cast::<f32>(), sums.cast::<f32>());
    let vectors = width.div_ceil(vector::<S>());
    let fits = whole_vectors::<S>(width, saved.ada.at, gate) && vectors <= BACKWARD_THREADS;
    let (kernel, threads) = if fits {
        (BACKWARD, vectors.next_multiple_of(32))
    } else {
        (BACKWARD_ANY, width.next_multiple_of(32).min(ANY_THREADS))
    };
    let (width_arg, stride, scale) = (width as i32, stride as i32, scale as i32);
    let (shift, gate) = (shift as i32, gate as i32);
    // SAFETY: parameters as declared; lengths were checked on entry, `partials` holds `kinds` rows of
    // sums for every chunk of every sample, and `sums` one for every sample where there are four kinds.
    unsafe {
        if !dims.is_empty() {
            let branch = if saved.branch.is_some() { 2 } else { 0 };
            let before = usize::from(write == Write::Accumulate);
            gpu.expect(dims.len() * (3 + before + branch), 0, 0);
            gpu.launch(
                kernel,
                [batch * chunks, 1, 1],
                threads,
                0,
                &[
                    &dx,
                    &dbranch,
                    &partials,
                    &saved.dy,
                    &saved.seen,
                    &saved.stats,
                    &value,
                    &keep,
                    &saved.ada.values,
                    &(tokens as i32),
                    &width_arg,
                    &(CHUNK as i32),
                    &stride,
                    &scale,
                    &gate,
                    &i32::from(write == Write::Accumulate),
                    &i32::from(saved.again && saved.branch.is_some()),
                    &(kinds as i32),
                ],
            )?;
        }
        gpu.launch(
            ADA,
            [batch * (kinds * width).div_ceil(THREADS), 1, 1],
            THREADS,
            0,
            &[
                &d_ada,
                &sums,
                &partials,
                &(chunks as i32),
                &(kinds as i32),
                &width_arg,
                &stride,
                &scale,
                &shift,
                &gate,
            ],
        )?;
    }
    match dbias {
        None => Ok(()),
        Some(dbias) => add_partials(gpu, batch, width, sums, dbias),
    }
}
