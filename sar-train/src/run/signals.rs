//! Stopping on Ctrl-C without losing work.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A run that stopped because the user asked it to. Its state is saved; the exit code is 130.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted at step {step}; its state is saved, continue with --resume")]
pub struct Interrupted {
    /// The step the run can continue from.
    pub step: u64,
}

/// Whether the user has asked to stop.
///
/// The first Ctrl-C (or SIGTERM) sets a flag, which the training loop turns into a saved checkpoint
/// and [`Interrupted`]; the second ends the process at once, with exit code 130.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicU32>,
}

impl Interrupt {
    /// Starts to listen for the signals. Call once per process.
    ///
    /// # Errors
    /// The handler cannot be installed, or one already is.
    pub fn listen() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let asked = Arc::clone(&interrupt.asked);
        ctrlc::set_handler(move || {
            if asked.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::exit(130);
            }
            let text = "\nstopping after this step and saving; press Ctrl-C again to stop at once";
            let _ = writeln!(std::io::stderr(), "{text}");
        })?;
        Ok(interrupt)
    }

    /// One that no signal reaches, for library use and tests; [`Interrupt::ask`] still does.
    pub fn none() -> Self {
        Self::default()
    }

    /// Asks to stop, as a first Ctrl-C does.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether to stop.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > 0
    }
}
