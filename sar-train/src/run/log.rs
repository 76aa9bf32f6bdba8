//! `log.jsonl`: one JSON object per line.

use super::RunError;
use crate::files::write_whole;
use serde::Serialize;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An append-only log. Every record has been handed to the system when [`Log::record`] returns.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of a run that has reached `step`.
    ///
    /// Records of later steps are removed, and so is a last line that a killed process left
    /// unfinished, so that curves have no duplicates and no gaps.
    ///
    /// # Errors
    /// The log cannot be read or written.
    pub fn open(path: &Path, step: u64) -> Result<Self, RunError> {
        match File::open(path) {
            Ok(file) => keep_until(path, file, step)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(RunError::read(path)(e)),
        }
        let file = File::options().append(true).create(true).open(path);
        Ok(Self { path: path.to_owned(), file: file.map_err(RunError::write(path))? })
    }

    /// Appends `values`, which must serialise as an object, preceded by `step`, `kind` (`train`,
    /// `eval`, …) and `time` (seconds since 1970). Numbers that are not finite become `null`.
    ///
    /// # Errors
    /// [`RunError::Record`] if the values are not an object, [`RunError::Write`].
    pub fn record(
        &mut self,
        step: u64,
        kind: &str,
        values: &impl Serialize,
    ) -> Result<(), RunError> {
        let bad = |reason: String| RunError::Record { path: self.path.clone(), reason };
        let fields = match serde_json::to_value(values).map_err(|e| bad(e.to_string()))? {
            Value::Object(fields) => fields,
            other => return Err(bad(format!("{other} is no object"))),
        };
        let mut record = serde_json::Map::new();
        record.insert("step".into(), step.into());
        record.insert("kind".into(), kind.into());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        record.insert("time".into(), now.map_or(0, |now| now.as_secs()).into());
        record.extend(fields);
        let mut line = Value::Object(record).to_string();
        line.push('\n');
        // One write per record: other readers see whole lines, also after the process is killed.
        self.file.write_all(line.as_bytes()).map_err(RunError::write(&self.path))
    }

    /// Whether the log at a path contains no record of a training step, or does not exist.
    pub(super) fn has_only_begun(path: &Path) -> bool {
        let of_start = |line: &[u8]| {
            let record = serde_json::from_slice::<Value>(line);
            record.is_ok_and(|record| record["step"] == 0)
        };
        match std::fs::read(path) {
            Ok(text) => text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).all(of_start),
            Err(e) => e.kind() == ErrorKind::NotFound,
        }
    }

    /// Whether there is a record of a kind at a step.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn has(&self, step: u64, kind: &str) -> Result<bool, RunError> {
        Ok(self.records(kind)?.iter().any(|record| record["step"] == step))
    }

    /// Returns step and value of a key in all records of a kind, in order.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn values(&self, kind: &str, key: &str) -> Result<Vec<(u64, f64)>, RunError> {
        let value = |record: &Value| Some((record["step"].as_u64()?, record[key].as_f64()?));
        Ok(self.records(kind)?.iter().filter_map(value).collect())
    }

    fn records(&self, kind: &str) -> Result<Vec<Value>, RunError> {
        let text = std::fs::read(&self.path).map_err(RunError::read(&self.path))?;
        let lines = text.split(|byte| *byte == b'\n');
        let records = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        Ok(records.filter(|record| record["kind"] == kind).collect())
    }
}

fn keep_until(path: &Path, file: File, step: u64) -> Result<(), RunError> {
    let mut kept = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(RunError::read(path))?;
        let record: Option<Value> = serde_json::from_slice(&line).ok();
        let at = record.as_ref().and_then(|r| r.get("step")).and_then(Value::as_u64);
        if at.is_some_and(|at| at <= step) {
            kept.extend_from_slice(&line);
            kept.push(b'\n');
        }
    }
    write_whole(path, &kept).map_err(RunError::write(path))
}
