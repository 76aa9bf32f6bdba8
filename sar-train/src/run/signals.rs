//! Stopping on Ctrl-C without losing work.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A run that stopped because the user asked it to. Its state is saved; the exit code is 130.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted at step {step}; its state is saved, continue with --resume")]
pub struct Interrupted {
    /// The step from which the run can continue.
    pub step: u64,
}

/// Signals within this time count as one: a batch system and a script that forwards its signal both
/// send it.
const ONE_WISH: Duration = Duration::from_secs(1);

/// Whether the user has asked to stop.
///
/// The first Ctrl-C sets a flag, which the training loop turns into a saved checkpoint and
/// [`Interrupted`]; one that comes more than a second later ends the process at once, with exit
/// code 130. The same holds for SIGTERM, SIGUSR1 and SIGUSR2, with which batch systems announce
/// that time is running out, and for the end of the terminal unless the process was started with
/// `nohup`.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    asked: Arc<AtomicU32>,
}

impl Interrupt {
    /// Starts to listen for the signals. To be called once per process.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        Self::listen_and_say(
            "\nstopping after this step; a second Ctrl-C (or signal) stops at once\n",
            "stopped at once: what was not saved is lost\n",
        )
    }

    /// Like [`Interrupt::listen`], for a rank whose run another process stops and reports on; `quiet` if that process
    /// has the same terminal.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen_as_rank(quiet: bool) -> std::io::Result<Self> {
        let first = "\nthe run is to stop; a second Ctrl-C (or signal) ends this rank at once\n";
        Self::listen_and_say(if quiet { "" } else { first }, "")
    }

    fn listen_and_say(first: &'static str, second: &'static str) -> std::io::Result<Self> {
        let interrupt = Self::default();
        let asked = Arc::clone(&interrupt.asked);
        let mut wished: Option<Instant> = None;
        on_signal(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            if let Some(when) = wished {
                if when.elapsed() < ONE_WISH {
                    return;
                }
                crate::files::remove_unfinished();
                let _ = write!(std::io::stderr(), "{second}");
                std::process::exit(130);
            }
            wished = Some(Instant::now());
            let _ = write!(std::io::stderr(), "{first}");
        })?;
        Ok(interrupt)
    }

    /// Creates one that no signal reaches, for library use and tests; [`Interrupt::ask`] still
    /// works.
    pub fn none() -> Self {
        Self::default()
    }

    /// Asks to stop, as a first Ctrl-C does.
    pub fn ask(&self) {
        self.asked.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the user has asked to stop.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst) > 0
    }
}

/// Makes writing beyond the process's file size limit fail with an error, like a full disk, instead
/// of ending the process.
///
/// # Errors
/// The handler cannot be installed.
#[cfg(unix)]
pub fn survive_file_limits() -> std::io::Result<()> {
    let seen = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen).map(drop)
}

/// Does nothing: there is no such signal on this system.
///
/// # Errors
/// Never fails.
#[cfg(not(unix))]
pub fn survive_file_limits() -> std::io::Result<()> {
    Ok(())
}

/// Calls `act` at every signal that asks to stop.
#[cfg(unix)]
fn on_signal(mut act: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    let hang_up = (!outlives_the_terminal()).then_some(SIGHUP);
    let wanted = [SIGINT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().chain(hang_up);
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || signals.forever().for_each(|_| act()))?;
    Ok(())
}

/// Whether the process was started with SIGHUP ignored, as by `nohup`; only Linux reports it.
#[cfg(unix)]
fn outlives_the_terminal() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit n−1 is signal n; SIGHUP is 1.
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(not(unix))]
fn on_signal(act: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    ctrlc::set_handler(act).map_err(std::io::Error::other)
}
