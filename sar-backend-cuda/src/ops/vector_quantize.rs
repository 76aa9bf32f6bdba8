//! Straight-through quantisation to the nearest code.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{MapDims, QuantizeWeights};

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
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

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
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
