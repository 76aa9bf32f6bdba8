//! Time on the device of every launch, while a profile is taken: an event before it and one after.

use super::events::{Clock, Event};
use crate::error::CudaError;
use crate::work::{Tallies, Tally, Work};
use cudarc::driver::sys;

struct Span {
    name: String,
    work: Work,
    events: [Event; 2],
}

/// Launches since the profile was begun.
pub(super) struct Profile {
    clock: Clock,
    spans: Vec<Span>,
}

impl Profile {
    pub(super) fn begin() -> Result<Self, CudaError> {
        Ok(Self { clock: Clock::new()?, spans: Vec::new() })
    }

    /// Issues work to the stream between two events.
    pub(super) fn span(
        &mut self,
        stream: sys::CUstream,
        name: String,
        work: Work,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let events = [Event::new()?, Event::new()?];
        events[0].record(stream)?;
        launch()?;
        events[1].record(stream)?;
        self.spans.push(Span { name, work, events });
        Ok(())
    }

    /// Waits for the last launch and adds up all launches by name.
    pub(super) fn finish(self) -> Result<Vec<Tally>, CudaError> {
        let mut tallies = Tallies::default();
        for span in &self.spans {
            tallies.add(&span.name, span.work, self.clock.seconds(&span.events)?);
        }
        Ok(tallies.finish())
    }
}
