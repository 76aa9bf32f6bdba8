//! What a check finds, and how near is near enough.

use crate::Real;
use crate::backend::Buffers;
use alloc::string::String;
use core::fmt;

/// A property that a backend does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// The op, by its method name.
    pub op: &'static str,
    /// The property and the operand: `"gradient of x"`.
    pub property: String,
    /// What was expected and what was found.
    pub fault: Fault,
}

/// The two ways in which a check fails.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// A number that differs.
    Element {
        /// Where in the flat tensor.
        index: usize,
        /// What the formula gives.
        expected: f64,
        /// What the backend gave.
        found: f64,
        /// Largest difference that would have passed; 0 asks for the same bits.
        tolerance: f64,
    },
    /// An error where a result was due, or the other way round.
    Outcome {
        /// What the contract asks for.
        expected: String,
        /// What the backend did.
        found: String,
    },
}

impl Mismatch {
    pub(super) fn outcome(
        op: &'static str,
        property: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        let fault = Fault::Outcome { expected: expected.into(), found: found.into() };
        Self { op, property: property.into(), fault }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.op, self.property)?;
        match &self.fault {
            Fault::Element { index, expected, found, tolerance } => write!(
                f,
                "element {index}: expected {expected:e}, found {found:e} (tolerance {tolerance:e})"
            ),
            Fault::Outcome { expected, found } => write!(f, "expected {expected}, found {found}"),
        }
    }
}

impl core::error::Error for Mismatch {}

/// Largest errors allowed, relative to the largest element of the tensor compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// For forward values.
    pub value: f64,
    /// For gradients.
    pub gradient: f64,
    /// Largest relative rounding of an accumulation buffer, where one rounding matters.
    pub rounding: f64,
    /// Whether activations are stored narrower than the host's numbers.
    pub narrow: bool,
}

/// Rounding of f64 is 1e-16; a few hundred terms and one exponential leave 1e-14. Gradients are
/// compared with fourth-order differences, which are good to about 1e-10.
const F64: Tolerance =
    Tolerance { value: 1e-12, gradient: 1e-8, rounding: f64::EPSILON / 2.0, narrow: false };
/// Rounding of f32 is 6e-8; sums of a hundred terms, two exponentials in a row and a
/// cancellation of one digit leave 1e-5, and a gradient passes through twice as many steps.
const F32: Tolerance = Tolerance { value: 2e-5, gradient: 1e-4, rounding: 6e-8, narrow: false };
/// Storage of eight significant bits rounds every tensor by up to 4e-3, and a gradient meets several
/// rounded tensors on its way.
const NARROW: Tolerance = Tolerance { value: 2e-2, gradient: 6e-2, rounding: 6e-8, narrow: true };

impl Tolerance {
    /// The tolerance for a backend, which follows from its host type and from whether its
    /// activations hold a third as exactly as the host does.
    ///
    /// # Errors
    /// The backend's error, if it cannot hold one number.
    pub fn of<B: Buffers>(backend: &B) -> Result<Self, B::Error> {
        let third = [B::Host::of(1.0 / 3.0)];
        let mut held = [B::Host::of(0.0)];
        let mut buffer = backend.activation(1)?;
        backend.upload(&third, &mut buffer, 0)?;
        backend.download(&buffer, 0, &mut held)?;
        Ok(match (held == third, B::Host::NAME) {
            (false, _) => NARROW,
            (true, "f64") => F64,
            (true, _) => F32,
        })
    }
}

/// What the check of one op found: the largest errors, all within tolerance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// The op, by its method name.
    pub op: &'static str,
    /// Largest relative error of a forward value.
    pub value_error: f64,
    /// Largest relative error of a gradient; `None` where the op has no backward.
    pub gradient_error: Option<f64>,
    /// What they were compared with.
    pub tolerance: Tolerance,
}

/// A line of [`super::run_all`].
#[derive(Clone, Debug, PartialEq)]
pub struct OpReport {
    /// The op, by its method name.
    pub op: &'static str,
    /// What was measured, or what is wrong.
    pub outcome: Result<Report, Mismatch>,
}

impl OpReport {
    /// Whether every property holds.
    pub fn pass(&self) -> bool {
        self.outcome.is_ok()
    }
}
