//! The latent at every scale, token-major.

use crate::backend::CudaBackend;
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::ScaleSchedule;
use sar_math::backend::LatentDims;

pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: LatentDims,
    schedule: &ScaleSchedule,
    latent: Address<S>,
    tokens: Address<S>,
) -> Result<(), CudaError> {
    Err(CudaError::Unsupported { op: "", what: String::new() })
}
