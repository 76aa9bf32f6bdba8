//! A run: its folder, its logs, its progress, and how it stops.
//!
//! ```text
//! config.toml      the resolved configuration
//! began.toml       the same, which tells whether somebody has edited it
//! classes.json     names of the classes, in the order of their labels
//! images.txt       how many images there were
//! held-out.txt     which of them are held out
//! trained-on.txt   which are trained on
//! started.json     the weights that the run started from, if they were not new
//! computed.txt     the backend and type of numbers that compute it
//! tokenizer.safetensors  the tokenizer of a generator's run
//! tokenizer.txt    checksum of its weights
//! latents.txt      whether the run trains on its images or on latents of them
//! log.jsonl        one object per record, `step` in each
//! tensorboard/     the log's numbers as TensorBoard events, and sample grids
//! samples/         PNGs
//! checkpoints/     step-N, see [`crate::checkpoint`]
//! eval.json        results of `sar eval`; those of the demo: summary.json
//! report.html      the page of `sar report`
//! run.lock         held while a process writes to the folder
//! ```

mod begin;
mod error;
mod folder;
mod log;
pub mod memory;
mod non_finite;
mod origin;
mod progress;
mod signals;
mod tensorboard;

pub use error::RunError;
pub(crate) use folder::RUN_TOKENIZER;
pub use folder::{Recorded, RunFolder, class_names, recorded};
pub use log::Log;
pub use non_finite::{NonFinite, NonFiniteError};
pub use origin::Origin;
pub use progress::Progress;
pub(crate) use progress::{duration, rate};
pub use signals::{Interrupt, Interrupted, survive_file_limits};
pub use tensorboard::TensorBoard;

/// Name of the file of results that `sar eval` writes to a run folder, where `sar report` looks for
/// it.
pub const EVAL_FILE: &str = "eval.json";

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
