//! Weights and training state on disk.
//!
//! Weights are safetensors files under the published tensor names; a small JSON in the header
//! describes them ([`Header`]). A training checkpoint is a folder `step-N` with the weights, their
//! running average, the optimiser's moments and the state of the loop ([`Checkpoints`]). An
//! incomplete file never has its final name: files are written under a temporary one, synced and
//! renamed.

mod error;
mod facts;
mod folder;
mod locate;
mod pth;
mod reader;
mod record;
mod storage;
mod weights;

pub use error::CheckpointError;
pub use facts::Facts;
pub use folder::{Checkpoints, Found, Resumed, Saved, Snapshot, latest_in};
pub(crate) use folder::{any_in, clean};
pub use locate::{Located, locate};
pub use pth::{RawTensor, read_pth};
pub use record::Purpose;
pub use storage::{Disk, Sink, Storage};
pub(crate) use weights::check_length;
pub use weights::{Weights, arrange, load_weights, read_header, read_shapes, save_weights};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// Format version that is written, and the newest that can be read.
pub const FORMAT: u32 = 1;

/// Kind of model that weights belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A next-scale generator.
    Generator,
    /// A convolutional VQ tokenizer.
    Tokenizer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generator => "generator",
            Self::Tokenizer => "tokenizer",
        })
    }
}

/// Description of a file, stored as JSON under the key `sar` of the safetensors metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// Kind of model that the weights belong to.
    pub kind: Kind,
    /// Number of optimiser steps taken.
    pub step: u64,
    /// Version of the program that wrote it.
    pub program: String,
    /// The model's configuration, so that it can be rebuilt from the file alone.
    pub config: serde_json::Value,
    /// Names of a generator's classes, if known, because the file may be used without its run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

/// Refuses records of a newer program before their fields are read, as these may have changed.
fn check_format(path: &Path, record: &serde_json::Value) -> Result<(), CheckpointError> {
    let found = record.get("format").and_then(serde_json::Value::as_u64).unwrap_or(0);
    if found <= u64::from(FORMAT) {
        return Ok(());
    }
    let program = record.get("program").and_then(|p| p.as_str()).unwrap_or("?").to_owned();
    Err(CheckpointError::Newer { path: path.to_owned(), found, program })
}

impl Header {
    /// Creates a header of this program's version.
    ///
    /// # Errors
    /// The configuration cannot be written as JSON.
    pub fn new(kind: Kind, step: u64, config: &impl Serialize) -> Result<Self, CheckpointError> {
        let config = serde_json::to_value(config)
            .map_err(|e| CheckpointError::State { path: "header".into(), reason: e.to_string() })?;
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { format: FORMAT, kind, step, program, config, classes: Vec::new() })
    }

    /// Returns the configuration as its type.
    ///
    /// # Errors
    /// [`CheckpointError::State`], which names the key, if it is not of this type.
    pub fn config<C: serde::de::DeserializeOwned>(&self) -> Result<C, CheckpointError> {
        C::deserialize(&self.config).map_err(|e| CheckpointError::State {
            path: "header".into(),
            reason: format!("the {} configuration cannot be read: {e}", self.kind),
        })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
