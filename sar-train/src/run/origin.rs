//! The weights that a run started from.

use super::{RunError, RunFolder};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the record in a run folder; there is none if the weights were new.
pub(super) const ORIGIN: &str = "started.json";

/// The weights that a run started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Their file at that time.
    pub weights: PathBuf,
    /// Number of optimiser steps that they had been trained for.
    pub step: u64,
    /// Whether they were the averaged ones (EMA).
    pub ema: bool,
    /// SHA-256 of the weights, as 32-bit floats in the order of the file's tensors.
    pub sha256: String,
}

impl Origin {
    /// Reads the origin of a run, if it has one that can be read.
    pub fn of(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(ORIGIN)).ok()?).ok()
    }
}

impl RunFolder {
    /// Records what the run started from.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn keep_origin(&self, origin: &Origin) -> Result<(), RunError> {
        let text = serde_json::to_vec_pretty(origin).map_err(std::io::Error::from);
        let text = text.map_err(RunError::write(self.path().join(ORIGIN)))?;
        self.write(ORIGIN, &text).map(drop)
    }
}
