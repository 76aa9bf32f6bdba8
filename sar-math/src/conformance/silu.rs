//! `silu`: y = x·σ(x).

use super::case::Case;
use super::math::exp;
use super::pointwise::{self, Function};
use super::verdict::{Mismatch, Report};
use crate::backend::TransformerOps;
use alloc::vec::Vec;

fn formula(x: f64) -> f64 {
    x / (1.0 + exp(-x))
}

fn function<B: TransformerOps>() -> Function<B> {
    Function {
        ops: &["silu"],
        formula,
        forward: B::silu,
        backward: |backend, made, x, dy, _| backend.silu_backward(made.len(), x, dy),
        again: None,
        biased: false,
    }
}

/// Checks `silu` and `silu_backward`, also where the exponential over- or underflows.
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
