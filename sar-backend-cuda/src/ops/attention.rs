//! L2-normalised, block-causal attention and its backward.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::AttentionDims;

/// Biases and log-scales of the heads, or their gradients.
#[derive(Clone, Copy)]
pub(crate) struct HeadParams {
    /// `[C]`.
    pub(crate) q_bias: Address<f32>,
    /// `[C]`.
    pub(crate) v_bias: Address<f32>,
    /// `[H]`.
    pub(crate) scale_mul: Address<f32>,
}

/// What the backward is given of the forward.
pub(crate) struct Saved<S> {
    pub(crate) d_out: Address<S>,
    pub(crate) out: Address<S>,
    pub(crate) qkv: Address<S>,
    pub(crate) inverse_norms: Address<f32>,
    pub(crate) lse: Address<f32>,
    pub(crate) params: HeadParams,
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: AttentionDims,
    qkv: Address<S>,
    params: HeadParams,
    inverse_norms: Address<f32>,
    lse: Address<f32>,
    out: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}

pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: AttentionDims,
    saved: &Saved<S>,
    dqkv: Address<S>,
    gradients: &HeadParams,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
