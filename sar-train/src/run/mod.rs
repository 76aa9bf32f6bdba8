//! A run: its folder, its logs, its progress, and how it stops.
//!
//! ```text
//! config.toml      what the run resolved to
//! log.jsonl        one object per record, `step` in each
//! tensorboard/     the same numbers as TensorBoard events, and sample grids
//! samples/         PNGs
//! checkpoints/     step-N, see [`crate::checkpoint`]
//! summary.json     report.html
//! run.lock         held while a process writes to the folder
//! ```

mod error;
mod folder;
mod log;
pub mod memory;
mod non_finite;
mod progress;
mod signals;
mod tensorboard;

pub use error::RunError;
pub use folder::RunFolder;
pub use log::Log;
pub use non_finite::{NonFinite, NonFiniteError};
pub use progress::Progress;
pub use signals::{Interrupt, Interrupted, survive_file_limits};
pub use tensorboard::TensorBoard;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
