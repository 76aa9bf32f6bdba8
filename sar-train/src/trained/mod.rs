//! Trained models, opened from a run folder, a checkpoint in it, or a file.
//!
//! ```no_run
//! use sar_backend_cpu::CpuBackend;
//! use sar_train::config::SampleConfig;
//! use sar_train::sample::Painter;
//! use sar_train::trained::TrainedGenerator;
//! use std::path::Path;
//!
//! let backend = CpuBackend::<f32>::new();
//! let trained = TrainedGenerator::open(Path::new("runs/letters"), false)?;
//! let tokenizer = trained.tokenizer(&backend)?;
//! let params = trained.params(&backend)?;
//! let (model, schedule) = (&trained.generator, trained.section.schedule);
//! let mut painter = Painter::new(&backend, model, tokenizer.decoder(), &schedule, 4, true)?;
//! let settings = SampleConfig::default().settings(7);
//! let painted = painter.paint(&params, &[0, 1, 2, 3], 0, &settings, 0)?;
//! let (height, width) = painter.size(schedule.len() - 1);
//! assert_eq!(painted.images.len(), 4 * 3 * height * width);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod generator;
mod tokenizer;

pub use error::TrainedError;
pub use generator::TrainedGenerator;
pub use tokenizer::TrainedTokenizer;

use crate::checkpoint::{CheckpointError, Header, Kind, read_header};
use crate::config::Config;
use crate::run_files::CONFIG;
use std::path::Path;

/// Reads the header of a file of weights, which must be of this kind of model.
fn header_of(file: &Path, kind: Kind) -> Result<Header, TrainedError> {
    let Some(header) = read_header(file)? else {
        return Err(TrainedError::NoConfiguration { path: file.to_owned(), kind });
    };
    if header.kind != kind {
        let (path, found) = (file.to_owned(), header.kind);
        return Err(CheckpointError::WrongKind { path, expected: kind, found }.into());
    }
    Ok(header)
}

/// Reads the configuration of the run in a folder, if it has one.
///
/// # Errors
/// The configuration cannot be read, or has unknown keys or invalid values.
pub fn config_of(run: &Path) -> Result<Option<Config>, TrainedError> {
    let path = run.join(CONFIG);
    Ok(path.is_file().then(|| Config::load(&path)).transpose()?)
}

#[cfg(test)]
mod tests;
