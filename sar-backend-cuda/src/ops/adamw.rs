//! One AdamW step over flat buffers.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::{AdamW, Slot};

/// The flat buffers of a step.
pub(crate) struct State<S> {
    pub(crate) grads: Address<f32>,
    pub(crate) first: Address<f32>,
    pub(crate) second: Address<f32>,
    pub(crate) params: Address<f32>,
    /// The narrow copy, where there is one.
    pub(crate) narrow: Option<Address<S>>,
}

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    hyper: &AdamW,
    decayed: &[Slot],
    plain: &[Slot],
    norm: Address<f32>,
    state: State<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
