//! The CPU backend's error.

use sar_math::backend::{BackendError, ErrorKind, ShapeError};

/// What can go wrong on the CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuError {
    /// An operand that does not fit its op.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A buffer that the host has no room for.
    #[error("out of memory: {bytes} bytes asked for")]
    OutOfMemory {
        /// Size of the buffer.
        bytes: usize,
    },
    /// An id outside its table.
    #[error("{op}: id {id} at position {position} is outside a table of {rows} rows")]
    IdOutOfRange {
        /// The op.
        op: &'static str,
        /// Where in the id buffer.
        position: usize,
        /// The id.
        id: u32,
        /// Rows of the table.
        rows: usize,
    },
}

impl BackendError for CpuError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Shape(_) | Self::IdOutOfRange { .. } => ErrorKind::Shape,
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
        }
    }
}
