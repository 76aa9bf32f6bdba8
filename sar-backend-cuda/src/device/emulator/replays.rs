//! Holds the emulator's callers to the contract of `Device::replay`.
//!
//! A device that records runs a key's work unrecorded the first time, records it the second time, and
//! from the third time on replays the recording, whatever the work would issue by then. The emulator has
//! nothing to replay; it runs the work each time and compares.

use crate::error::CudaError;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is known about every key, and the work that is being recorded or compared.
#[derive(Debug, Default)]
pub(super) struct Replays {
    /// Hash of what the work of each key issued to the device; `None` if the work has run only once.
    known: HashMap<(u64, u64), Option<u64>>,
    running: Running,
}

/// The work of a key that runs now.
#[derive(Debug, Default)]
enum Running {
    #[default]
    Nothing,
    /// Work that runs for the first time and may do anything.
    Unrecorded,
    /// Work that must keep to the contract.
    Recorded(DefaultHasher),
}

impl Replays {
    /// Begins the work of a key.
    pub(super) fn begin(&mut self, key: (u64, u64)) -> Result<(), CudaError> {
        if !matches!(self.running, Running::Nothing) {
            return Err(CudaError::device("replay", "within work that may be replayed"));
        }
        self.running = match self.known.get(&key) {
            None => Running::Unrecorded,
            Some(_) => Running::Recorded(DefaultHasher::new()),
        };
        Ok(())
    }

    /// Ends the work of a key, which must be the same as the time before.
    pub(super) fn end(&mut self, key: (u64, u64)) -> Result<(), CudaError> {
        let known = self.known.entry(key).or_default();
        let Running::Recorded(running) = std::mem::take(&mut self.running) else { return Ok(()) };
        let found = running.finish();
        if known.is_some_and(|known| known != found) {
            let what = format!("other work under key {key:?} than the time before");
            return Err(CudaError::device("replay", what));
        }
        *known = Some(found);
        Ok(())
    }

    /// Ends work that failed, and forgets it.
    pub(super) fn abandon(&mut self) {
        self.running = Running::Nothing;
    }

    /// Notes a piece of work.
    pub(super) fn note(&mut self, work: impl Hash) {
        if let Running::Recorded(running) = &mut self.running {
            work.hash(running);
        }
    }

    /// Fails inside work that may be replayed, because `what` cannot be.
    pub(super) fn refuse(&self, what: &'static str) -> Result<(), CudaError> {
        match self.running {
            Running::Recorded(_) => {
                Err(CudaError::device(what, "within work that may be replayed"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_must_stay_what_it_was_and_move_nothing() {
        let mut replays = Replays::default();
        let mut run = |key, work: &str| {
            replays.begin(key).unwrap();
            let moved = replays.refuse("read");
            replays.note(work);
            (moved.is_ok(), replays.end(key).is_ok())
        };
        // The first run is not recorded: it may allocate, and differ.
        assert_eq!(run((1, 0), "first"), (true, true));
        assert_eq!(run((1, 0), "a"), (false, true));
        assert_eq!(run((1, 0), "a"), (false, true));
        assert_eq!(run((1, 0), "b"), (false, false));
        assert_eq!(run((2, 0), "b"), (true, true));
        assert!(replays.refuse("read").is_ok(), "outside of any work");
    }

    #[test]
    fn failed_work_is_as_if_it_had_not_been() {
        let mut replays = Replays::default();
        replays.begin((1, 0)).unwrap();
        assert!(replays.begin((2, 0)).is_err(), "one within another");
        replays.abandon();
        replays.begin((1, 0)).unwrap();
        assert!(replays.refuse("read").is_ok(), "still the first time");
        replays.end((1, 0)).unwrap();
        replays.begin((1, 0)).unwrap();
        replays.note("half");
        replays.abandon();
        for _ in 0..2 {
            replays.begin((1, 0)).unwrap();
            replays.note("whole");
            replays.end((1, 0)).unwrap();
        }
    }
}
