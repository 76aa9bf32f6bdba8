//! Group norm, with SiLU after it where asked for.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{MapDims, Write};

/// Dimensions and settings of a norm.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) dims: MapDims,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    pub(crate) silu: bool,
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    norm: Norm,
    x: Address<S>,
    weight: Address<f32>,
    bias: Address<f32>,
    y: Address<S>,
    stats: Address<f32>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

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
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
