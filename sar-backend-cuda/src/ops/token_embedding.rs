//! Class token, words and positions.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::EmbeddingDims;

/// Parameters of the embedding.
pub(crate) struct Weights {
    /// `[C, K]`.
    pub(crate) word: Address<f32>,
    /// `[C]`.
    pub(crate) bias: Option<Address<f32>>,
    /// `[C]`.
    pub(crate) pos_start: Option<Address<f32>>,
}

/// Their gradients.
pub(crate) type Gradients = Weights;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &EmbeddingDims,
    cond: Address<S>,
    inputs: Address<S>,
    weights: &Weights,
    pos: Address<S>,
    x: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: &EmbeddingDims,
    dx: Address<S>,
    inputs: Address<S>,
    dcond: Address<S>,
    dpos: Address<S>,
    gradients: &Gradients,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
