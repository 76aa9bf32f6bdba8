//! Checks at sizes at which kernels split their work: beyond a tile, a thread, a lane.

use super::case::Case;
use super::math::sqrt;
use super::subject::{LEAST_SCALE, STEP, Subject, Variable, Verifier, rows_alone, run, same_bits};
use super::verdict::{Fault, Mismatch};
use crate::backend::Buffers;
use alloc::vec::Vec;
use alloc::{format, vec};

/// A slope along ±1 adds the errors of all elements of a gradient, with random signs. It finds what
/// is left out at large sizes, but not errors near a backend's rounding; errors of single elements
/// are for small cases.
const SLOPE_MARGIN: f64 = 10.0;

/// Runs a mid-size subject twice and its rows alone, compares the results with the formula, and
/// returns all bits of its outputs.
///
/// Gradients element by element would need evaluations of the formula for each element; along one
/// direction four suffice.
pub(super) fn repeatable<B: Buffers, S: Subject<B>>(
    backend: &B,
    subject: &S,
) -> Result<Vec<u64>, Mismatch> {
    let op = subject.ops()[0];
    let start =
        Case::new(1).numbers("start").values(subject.layout().map_or(0, |l| l.values.len()));
    let first = run(backend, subject, 0, 7.5, &start)?;
    let bits = first.bits();
    let again = run(backend, subject, 0, 7.5, &start)?.bits();
    same_bits(op, "same bits twice", &bits, &again)?;
    let mut verifier = Verifier::new(backend, op, Case::new(1))?;
    // Values come first: a wrong value says more than that rows differ in it.
    verifier.values(subject, &first)?;
    rows_alone(backend, subject, &first)?;
    let begun = run(backend, subject, 0, 7.5, &vec![0.0; start.len()])?;
    for (which, variable) in subject.variables().iter().enumerate() {
        let gradient = match variable.slot {
            Some(slot) => &begun.grads[slot.range()],
            None => begun.get(variable.name),
        };
        verifier.slope(subject, which, variable, gradient)?;
    }
    Ok(bits)
}

impl<B: Buffers> Verifier<'_, B> {
    /// Checks the gradient of one operand along a direction of ±1 in every element.
    fn slope<S: Subject<B>>(
        &self,
        subject: &S,
        which: usize,
        variable: &Variable,
        gradient: &[f64],
    ) -> Result<(), Mismatch> {
        let Variable { name, at, .. } = variable;
        let amplification = subject.amplification();
        let mut n = Case::new(1).numbers(name);
        let along: Vec<f64> = at.iter().map(|_| if n.flip() { 1.0 } else { -1.0 }).collect();
        let step = STEP / amplification;
        let mut operands: Vec<Vec<f64>> = subject.variables().into_iter().map(|v| v.at).collect();
        let mut expected = 0.0;
        for (steps, weight) in [(-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0)] {
            let moved = at.iter().zip(&along).map(|(x, d)| x + steps * step * d);
            operands[which] = moved.collect();
            expected += weight * subject.objective(&operands) / (12.0 * step);
        }
        let found: f64 = gradient.iter().zip(&along).map(|(g, d)| g * d).sum();
        let norm = sqrt(gradient.iter().map(|g| g * g).sum());
        let tolerance =
            SLOPE_MARGIN * self.tolerance.gradient * amplification * norm.max(LEAST_SCALE);
        // An infinite norm would make the tolerance infinite.
        let numbers = gradient.len() == at.len() && gradient.iter().all(|g| g.is_finite());
        if numbers && (found - expected).abs() <= tolerance {
            return Ok(());
        }
        let property = format!("gradient of {name} at full size, along a direction");
        let fault = Fault::Element { index: 0, expected, found, tolerance };
        Err(Mismatch { op: subject.ops()[0], property, fault })
    }
}
