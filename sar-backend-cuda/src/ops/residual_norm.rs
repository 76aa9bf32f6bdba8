//! Residual, gate, layer norm and modulation in one pass.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
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

/// What the backward is given of the forward.
pub(crate) struct Saved<S> {
    pub(crate) dy: Address<S>,
    pub(crate) sum: Address<S>,
    pub(crate) stats: Address<f32>,
    pub(crate) branch: Option<BranchAt<S>>,
    pub(crate) ada: Ada<S>,
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
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn renorm<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: TokenDims,
    sum: Address<S>,
    stats: Address<f32>,
    ada: Ada<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: TokenDims,
    saved: &Saved<S>,
    write: Write,
    dx: Address<S>,
    dbranch: Address<S>,
    d_ada: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
