//! The kind of a device failure.

use crate::ShapeError;

/// What sort of failure a backend reports, for callers that act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An operand of the wrong size: a bug in the caller.
    Shape,
    /// The device or host has no room for the buffer asked for.
    OutOfMemory,
    /// The device failed; what it held may be lost.
    Device,
    /// A kernel could not be built.
    Compile,
    /// The backend cannot do this, and says so instead of doing something else.
    Unsupported,
    /// Anything else.
    Other,
}

/// A backend's error, which can be displayed and has a kind.
pub trait BackendError: core::error::Error + From<ShapeError> + Send + Sync + 'static {
    /// What sort of failure it is.
    fn kind(&self) -> ErrorKind;
}
