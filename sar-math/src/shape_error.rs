//! An operand of the wrong size.

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
