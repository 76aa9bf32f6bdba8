//! Errors of checkpoints.

use super::{FORMAT, Kind};
use std::path::PathBuf;

/// Why weights or state cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Writing failed; nothing was left under the final name.
    #[error("cannot write {}; {advice}", path.display())]
    Write {
        /// The file or folder that was to be written.
        path: PathBuf,
        /// What has been kept, and what to do.
        advice: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file ends too early.
    #[error(
        "{} is truncated: {found} bytes, expected {expected}; copy it again or use an earlier \
         checkpoint", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length that its header implies.
        expected: u64,
    },
    /// The file is longer than it should be.
    #[error(
        "{} is too long: {found} bytes, expected {expected}; another program wrote to it: copy it \
         again or use an earlier checkpoint", path.display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length that its header or record implies.
        expected: u64,
    },
    /// Not a safetensors file.
    #[error("{} is not a safetensors file: {reason}", path.display())]
    NotSafetensors {
        /// The file.
        path: PathBuf,
        /// Why not, and what it looks like.
        reason: String,
    },
    /// A header or state file that cannot be read.
    #[error("{}: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file written by a newer version of the format.
    #[error(
        "{} has format {found}, this program reads up to {FORMAT}; it was written by sar \
         {program}: update sar", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Version of the program that wrote it.
        program: String,
    },
    /// The weights of another kind of model.
    #[error("{} holds a {found}, expected a {expected}", path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: Kind,
        /// What was requested.
        expected: Kind,
    },
    /// The weights of a model of another shape.
    #[error("{} does not fit: {cause} ({detail})", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// What differs, in the configuration's terms.
        cause: String,
        /// The first tensor that differs.
        detail: String,
    },
    /// Tensors are missing.
    #[error("{} lacks {count} tensors, the first is `{first}`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The first in the order of the layout.
        first: String,
        /// Number of missing tensors.
        count: usize,
    },
    /// Tensors that the model does not have.
    #[error("{} has {count} tensors that the model lacks, the first is `{first}`", path.display())]
    Extra {
        /// The file.
        path: PathBuf,
        /// The first by name.
        first: String,
        /// Number of extra tensors.
        count: usize,
    },
    /// A tensor of another shape.
    #[error("{}: `{name}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Its shape in the model.
        expected: Vec<usize>,
    },
    /// A tensor of an unsupported number format.
    #[error("{}: `{name}` is {found}, expected F32, F16, BF16 or F64", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its format.
        found: String,
    },
    /// A weight that is not a finite number.
    #[error(
        "{}: `{name}` holds {count} values that are not finite; the run that wrote it had \
         diverged, use an earlier checkpoint", path.display()
    )]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The first tensor with such values.
        name: String,
        /// Number of such values in it.
        count: usize,
    },
    /// A file differs from what its checkpoint recorded.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// No usable checkpoint.
    #[error("{} {reason}", path.display())]
    None {
        /// Where a checkpoint was looked for.
        path: PathBuf,
        /// What was found and what to do.
        reason: String,
    },
    /// A buffer that does not have the layout's length.
    #[error("{what}: {found} values, expected {expected}")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length of the layout.
        expected: usize,
    },
}

impl CheckpointError {
    /// Creates the error of a failed write, with advice that fits the cause.
    pub(super) fn write(path: impl Into<PathBuf>, source: std::io::Error, kept: &str) -> Self {
        let advice = if source.kind() == std::io::ErrorKind::StorageFull {
            format!("the disk is full, free some space; {kept}")
        } else {
            kept.to_owned()
        };
        Self::Write { path: path.into(), advice, source }
    }

    /// Creates the error of a failed read.
    pub(super) fn read(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Read { path: path.into(), source }
    }
}
