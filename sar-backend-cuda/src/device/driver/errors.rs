//! Errors of the driver's calls.

use crate::error::CudaError;
use cudarc::driver::{DriverError, sys};

/// Names the call in a driver's error; lack of memory is reported as such whatever was called.
pub(super) fn failed(call: &str) -> impl Fn(DriverError) -> CudaError + '_ {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::NoRoom { call: call.to_owned() },
        _ => CudaError::device(call, error),
    }
}

/// The value that a call returned, or `None` if it found no room.
pub(super) fn failed_unless_full<T>(
    call: &str,
    outcome: Result<T, DriverError>,
) -> Result<Option<T>, CudaError> {
    match outcome.map_err(failed(call)) {
        Ok(value) => Ok(Some(value)),
        Err(CudaError::NoRoom { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Like [`failed`], for an allocation of `bytes` bytes.
pub(super) fn out_of_memory(bytes: usize, in_use: usize) -> impl Fn(DriverError) -> CudaError {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes, in_use },
        _ => failed("cuMemAllocAsync")(error),
    }
}
