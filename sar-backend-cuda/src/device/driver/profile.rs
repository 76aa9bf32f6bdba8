//! Time on the device of every launch, while a profile is taken: an event before it and one after.

use super::failed;
use crate::error::CudaError;
use crate::libraries::Library;
use crate::work::{Tallies, Tally, Work};
use cudarc::driver::{result, sys};
use libloading::Library as Handle;

/// `cuEventElapsedTime` as every driver since CUDA 11 has it; cudarc's bindings of CUDA 13 know only
/// the later one of driver 570.
type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;

struct Span {
    name: String,
    work: Work,
    events: [sys::CUevent; 2],
}

/// Launches since the profile was begun.
pub(super) struct Profile {
    driver: Handle,
    spans: Vec<Span>,
}

impl Profile {
    pub(super) fn begin() -> Result<Self, CudaError> {
        let path = Library::Driver.open()?;
        // SAFETY: the driver's library, which is open already.
        let driver = unsafe { Handle::new(&path) }.map_err(|e| CudaError::device("libcuda", e))?;
        Ok(Self { driver, spans: Vec::new() })
    }

    /// Gives work to the stream between two events.
    pub(super) fn span(
        &mut self,
        stream: sys::CUstream,
        name: String,
        work: Work,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            result::event::create(flags).map_err(failed("cuEventCreate"))
        };
        let span = Span { name, work, events: [event()?, event()?] };
        let [start, end] = span.events;
        self.spans.push(span);
        // SAFETY: events that were just made, destroyed once the profile ends, and a stream in use.
        unsafe { result::event::record(start, stream).map_err(failed("cuEventRecord"))? };
        launch()?;
        // SAFETY: as above.
        unsafe { result::event::record(end, stream).map_err(failed("cuEventRecord")) }
    }

    /// Waits for the last launch and adds up all of them.
    pub(super) fn finish(mut self) -> Result<Vec<Tally>, CudaError> {
        // SAFETY: the type of this function of the driver.
        let elapsed = unsafe { self.driver.get::<Elapsed>(b"cuEventElapsedTime\0") }
            .map_err(|e| CudaError::device("cuEventElapsedTime", e))?;
        let mut tallies = Tallies::default();
        for span in &self.spans {
            let [start, end] = span.events;
            let mut milliseconds = 0.0;
            // SAFETY: both events were recorded.
            unsafe {
                result::event::synchronize(end).map_err(failed("cuEventSynchronize"))?;
                elapsed(&mut milliseconds, start, end)
                    .result()
                    .map_err(failed("cuEventElapsedTime"))?;
            }
            tallies.add(&span.name, span.work, f64::from(milliseconds) / 1e3);
        }
        self.clear();
        Ok(tallies.finish())
    }

    fn clear(&mut self) {
        for event in self.spans.drain(..).flat_map(|span| span.events) {
            // SAFETY: made by `span`, destroyed once. A failure is one of earlier work.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.clear();
    }
}
