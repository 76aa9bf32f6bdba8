//! Events of a stream, and the time on the device between two of them.

use super::failed;
use crate::error::CudaError;
use crate::libraries::Library;
use cudarc::driver::{result, sys};
use libloading::Library as Handle;

/// `cuEventElapsedTime` as every driver since CUDA 11 has it; cudarc's bindings for CUDA 13 have only
/// the later version, of driver 570.
type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

/// A place in the work of a stream, destroyed when dropped.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new() -> Result<Self, CudaError> {
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
        result::event::create(flags).map(Self).map_err(failed("cuEventCreate"))
    }

    /// Places the event behind all work issued to the stream so far.
    pub(super) fn record(&self, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the event is alive, and the stream in use.
        unsafe { result::event::record(self.0, stream).map_err(failed("cuEventRecord")) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. A failure stems from earlier work.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Reads the time between events.
pub(super) struct Clock {
    driver: Handle,
}

impl Clock {
    pub(super) fn new() -> Result<Self, CudaError> {
        let path = Library::Driver.open()?;
        // SAFETY: the driver's library, which is open already.
        let driver = unsafe { Handle::new(&path) }.map_err(|e| CudaError::device("libcuda", e))?;
        Ok(Self { driver })
    }

    /// Seconds between two events that were recorded; waits for the second.
    pub(super) fn seconds(&self, [start, end]: &[Event; 2]) -> Result<f64, CudaError> {
        // SAFETY: the driver's function has this type.
        let elapsed = unsafe { self.driver.get::<Elapsed>(b"cuEventElapsedTime\0") }
            .map_err(|e| CudaError::device("cuEventElapsedTime", e))?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and were recorded.
        unsafe {
            result::event::synchronize(end.0).map_err(failed("cuEventSynchronize"))?;
            elapsed(&mut milliseconds, start.0, end.0)
                .result()
                .map_err(failed("cuEventElapsedTime"))?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }
}
