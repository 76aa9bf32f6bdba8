//! `state.json`, the record of a checkpoint, and the checks of the other files against it.

use super::storage::{Sum, sum_of};
use super::{CheckpointError, check_format};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const STATE: &str = "state.json";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// `state.json`: the record that makes a checkpoint complete.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) format: u32,
    pub(super) program: String,
    pub(super) step: u64,
    pub(super) files: BTreeMap<String, Sum>,
    pub(super) run: serde_json::Value,
    /// CRC-32 of this record's text with [`NO_SUM`] in this place; records of older programs have
    /// none. It is checked only after the format, so that a newer format is reported as such.
    #[serde(default)]
    pub(super) own_crc32: Option<String>,
}

/// Placeholder for a record's own checksum while that is computed.
pub(super) const NO_SUM: &str = "00000000";

/// Returns the CRC-32 of a record's text whose checksum is `sum`, and the text with the new
/// checksum.
pub(super) fn summed(text: &str, sum: &str) -> (String, String) {
    let blank = text.replacen(&own(sum), &own(NO_SUM), 1);
    let sum = format!("{:08x}", crc32fast::hash(blank.as_bytes()));
    let text = blank.replacen(&own(NO_SUM), &own(&sum), 1);
    (sum, text)
}

/// Returns the checksum as it is written in the text.
fn own(sum: &str) -> String {
    format!("\"own_crc32\": \"{sum}\"")
}

/// What a checkpoint is needed for, which decides which of its files must be intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To continue training: all files are needed.
    Resume,
    /// To use the weights: the optimiser's moments may have been removed to save space.
    Weights,
}

/// Checks that every file of the checkpoint that the purpose needs is as it was written.
pub(super) fn verify(folder: &Path, purpose: Purpose) -> Result<(), CheckpointError> {
    let files = read_record(folder)?.files.into_iter();
    for (name, expected) in files.filter(|(n, _)| purpose == Purpose::Resume || n != OPTIMIZER) {
        let path = folder.join(&name);
        let found = sum_of(&path).map_err(|e| CheckpointError::read(&path, e))?;
        match (found.bytes, expected.bytes) {
            (found, expected) if found < expected => {
                return Err(CheckpointError::Truncated { path, found, expected });
            }
            (found, expected) if found > expected => {
                return Err(CheckpointError::TooLong { path, found, expected });
            }
            _ => {}
        }
        if found.crc32 != expected.crc32 {
            return Err(changed(path));
        }
    }
    Ok(())
}

fn changed(path: PathBuf) -> CheckpointError {
    let reason = "its content changed after it was written (CRC-32 differs)".to_owned();
    CheckpointError::Damaged { path, reason }
}

pub(super) fn read_record(folder: &Path) -> Result<Record, CheckpointError> {
    let path = folder.join(STATE);
    let text = fs::read_to_string(&path).map_err(|e| CheckpointError::read(&path, e))?;
    let bad = |e: serde_json::Error| CheckpointError::State {
        path: path.clone(),
        reason: format!("cannot be read: {e}"),
    };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(bad)?;
    check_format(&path, &value)?;
    let record: Record = serde_json::from_value(value).map_err(bad)?;
    match &record.own_crc32 {
        Some(sum) if *sum != summed(&text, sum).0 => Err(changed(path)),
        _ => Ok(record),
    }
}
