//! Errors every backend shares: a wrong shape, and the kind of a device failure.

use core::fmt;

/// An operand that does not fit the op it was given to.
///
/// `Copy` and free of allocation, so that a `no_std` backend can return it from a hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// The op, by its method name: `"linear"`.
    pub op: &'static str,
    /// The operand or dimension at fault: `"x (rows*inputs)"`.
    pub operand: &'static str,
    /// What the op needs: a length, a count or a divisor, as `operand` says.
    pub expected: usize,
    /// What it was given.
    pub found: usize,
}

impl ShapeError {
    /// Succeeds where `found == expected`.
    ///
    /// # Errors
    /// The mismatch otherwise.
    #[inline]
    pub fn equal(
        op: &'static str,
        operand: &'static str,
        expected: usize,
        found: usize,
    ) -> Result<(), Self> {
        if found == expected { Ok(()) } else { Err(Self { op, operand, expected, found }) }
    }

    /// Succeeds where a buffer of `found` elements holds at least `expected`.
    ///
    /// # Errors
    /// The mismatch otherwise.
    #[inline]
    pub fn at_least(
        op: &'static str,
        operand: &'static str,
        expected: usize,
        found: usize,
    ) -> Result<(), Self> {
        if found >= expected { Ok(()) } else { Err(Self { op, operand, expected, found }) }
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.op, self.operand, self.expected, self.found)
    }
}

impl core::error::Error for ShapeError {}

/// What sort of failure a backend reports, for callers that act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An operand of the wrong size: a bug of the caller.
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

/// A backend's error: displayable, and of a kind.
pub trait BackendError: core::error::Error + From<ShapeError> + Send + Sync + 'static {
    /// What sort of failure it is.
    fn kind(&self) -> ErrorKind;
}
