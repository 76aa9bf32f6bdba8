//! `gelu`: y = ½x(1+tanh(√(2/π)(x+0.044715x³))).

use super::case::Case;
use super::math::{sqrt, tanh};
use super::pointwise::{self, Function, Made};
use super::verdict::{Mismatch, Report};
use crate::backend::TransformerOps;
use alloc::vec::Vec;

fn formula(x: f64) -> f64 {
    let inner = sqrt(core::f64::consts::FRAC_2_PI) * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + tanh(inner))
}

fn slope(x: f64) -> f64 {
    let c = sqrt(core::f64::consts::FRAC_2_PI);
    let t = tanh(c * (x + 0.044_715 * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044_715 * x * x)
}

fn regelu_backward<B: TransformerOps>(
    backend: &B,
    Made { rows, columns, bias }: Made,
    x: &mut B::Activation,
    dy: &mut B::Activation,
    grads: &mut B::Accum,
) -> Result<(), B::Error> {
    backend.regelu_backward(rows, columns, bias, x, dy, grads)
}

fn function<B: TransformerOps>() -> Function<B> {
    Function {
        ops: &["gelu", "regelu_backward"],
        formula,
        forward: B::gelu,
        backward: |backend, Made { rows, columns, bias }, x, dy, grads| {
            backend.gelu_backward(rows, columns, x, bias, dy, grads)
        },
        again: Some((regelu_backward, slope)),
        biased: true,
    }
}

/// Checks `gelu`, `gelu_backward` and `regelu_backward`, also where the exponential over- or underflows.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TransformerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    pointwise::check(backend, &function(), case)
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
///
/// # Errors
/// A second run, or an element on its own, gives other bits.
pub fn fingerprint<B: TransformerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    pointwise::fingerprint(backend, &function(), case)
}
