//! The properties that all ops share, checked on a [`Subject`]: an op with its operands.

use super::case::Case;
use super::math::central_gradient;
use super::rig::{Layout, Rig};
use super::verdict::{Fault, Mismatch, Report, Tolerance};
use crate::backend::{BackendError, Buffers, ErrorKind, Slot};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

/// Step of the central differences, for an op that amplifies its operands by 1. Truncation is then
/// step⁴/30 = 3e-14 of a fifth derivative, which may be some hundred, and rounding about
/// 1e-16/step = 1e-13 of a term.
pub(super) const STEP: f64 = 1e-3;

/// A difference quotient has a rounding error of about this times the largest number in it, divided
/// by the step: 16 roundings of f64. The error shows where operands are extreme.
const DIFFERENCE_NOISE: f64 = 16.0 * f64::EPSILON;

/// Operands are of order 1, so where the largest element of a tensor is smaller than this, its
/// terms have cancelled, and errors are compared with this instead.
pub(super) const LEAST_SCALE: f64 = 1e-2;

/// What a run of an op left behind.
#[derive(Default)]
pub(super) struct Outputs {
    tensors: Vec<(&'static str, Vec<f64>)>,
    /// The flat gradient buffer.
    pub(super) grads: Vec<f64>,
}

impl Outputs {
    pub(super) fn push(&mut self, name: &'static str, tensor: Vec<f64>) {
        self.tensors.push((name, tensor));
    }

    /// The tensor of this name; empty if there is none, which no comparison accepts.
    pub(super) fn get(&self, name: &str) -> &[f64] {
        self.tensors.iter().find(|(n, _)| *n == name).map_or(&[], |(_, t)| t)
    }

    /// Every bit of every tensor.
    pub(super) fn bits(&self) -> Vec<u64> {
        let tensors = self.tensors.iter().flat_map(|(_, t)| t);
        tensors.chain(&self.grads).map(|v| v.to_bits()).collect()
    }
}

/// What the formula gives for one output.
pub(super) struct Expected {
    name: &'static str,
    values: Vec<f64>,
    exact: bool,
}

impl Expected {
    /// An output that must agree within the tolerance of values.
    pub(super) fn near(name: &'static str, values: Vec<f64>) -> Self {
        Self { name, values, exact: false }
    }

    /// An output that must be the same number: ids, flags, and what must not have been touched.
    pub(super) fn exact(name: &'static str, values: Vec<f64>) -> Self {
        Self { name, values, exact: true }
    }
}

/// An operand that takes a gradient.
pub(super) struct Variable {
    pub(super) name: &'static str,
    pub(super) at: Vec<f64>,
    pub(super) slot: Option<Slot>,
}

impl Variable {
    /// An operand whose gradient is the output `name`.
    pub(super) fn activation(name: &'static str, at: &[f64]) -> Self {
        Self { name, at: at.to_vec(), slot: None }
    }

    /// An operand whose gradient is added to the flat gradient buffer.
    pub(super) fn parameter(name: &'static str, layout: &Layout, slot: Slot) -> Self {
        Self { name, at: layout.get(slot), slot: Some(slot) }
    }
}

/// An op with its operands: how to run it on a backend, and its formula.
pub(super) trait Subject<B: Buffers> {
    /// Method names of the op; the first is the op's own.
    fn ops(&self) -> &'static [&'static str];

    /// Runs forward and backward. Gradients of parameters start from `start`, laid out like the
    /// parameters.
    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error>;

    /// The outputs by the formula.
    fn values(&self) -> Vec<Expected>;

    /// The operands that take gradients, in the order in which `objective` takes them. Empty where
    /// the op has no backward or the formula has no derivative.
    fn variables(&self) -> Vec<Variable> {
        Vec::new()
    }

    /// The formula's outputs contracted with the cotangents.
    fn objective(&self, _at: &[Vec<f64>]) -> f64 {
        0.0
    }

    /// The flat parameters, where the op has any.
    fn layout(&self) -> Option<&Layout> {
        None
    }

    /// The factor by which the op multiplies a rounding error of its operands.
    fn amplification(&self) -> f64 {
        1.0
    }

    /// The largest number that an output is a difference of, or that the backward reads back from
    /// an accumulation buffer: its rounding causes an error of the outputs that is not relative to
    /// them.
    fn stored(&self) -> f64 {
        0.0
    }

    /// Number of rows (or samples) that must not depend on one another.
    fn rows(&self) -> usize {
        0
    }

    /// Row `row` alone.
    fn row(&self, _row: usize) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Names of the outputs that are a concatenation of rows.
    fn by_row(&self) -> &'static [&'static str] {
        &[]
    }
}

/// Collects the results of the subjects of one op.
pub(super) struct Verifier<'a, B: Buffers> {
    pub(super) backend: &'a B,
    pub(super) tolerance: Tolerance,
    case: Case,
    report: Report,
}

impl<'a, B: Buffers> Verifier<'a, B> {
    pub(super) fn new(backend: &'a B, op: &'static str, case: Case) -> Result<Self, Mismatch> {
        let tolerance = Tolerance::of(backend).map_err(|e| refused(op, &e))?;
        let report = Report { op, value_error: 0.0, gradient_error: None, tolerance };
        Ok(Self { backend, tolerance, case, report })
    }

    /// Largest errors of all subjects so far.
    pub(super) fn report(self) -> Report {
        self.report
    }

    /// Checks every shared property of a subject.
    pub(super) fn verify<S: Subject<B>>(&mut self, subject: &S) -> Result<(), Mismatch> {
        let len = subject.layout().map_or(0, |l| l.values.len());
        let zero = vec![0.0; len];
        let slack = (self.case.seed % 4) as usize;
        let first = run(self.backend, subject, slack, 7.5, &zero)?;
        self.values(subject, &first)?;
        self.gradients(subject, &first)?;
        finite(subject, &first)?;
        self.accumulates(subject, &first, slack)?;
        same_bits(
            subject.ops()[0],
            "same bits twice",
            &first.bits(),
            &run(self.backend, subject, slack, 7.5, &zero)?.bits(),
        )?;
        rows_alone(self.backend, subject, &first)?;
        too_short(self.backend, subject, &zero)
    }

    /// Compares the outputs of a subject with the formula.
    pub(super) fn values<S: Subject<B>>(
        &mut self,
        subject: &S,
        found: &Outputs,
    ) -> Result<(), Mismatch> {
        let amplification = subject.amplification();
        for Expected { name, values, exact } in subject.values() {
            let tolerance = if exact { 0.0 } else { self.tolerance.value * amplification };
            let error = compare(
                subject.ops()[0],
                || format!("value of {name}"),
                &values,
                found.get(name),
                (tolerance, if exact { 0.0 } else { self.tolerance.rounding * subject.stored() }),
            )?;
            self.report.value_error = self.report.value_error.max(error / amplification);
        }
        Ok(())
    }

    fn gradients<S: Subject<B>>(&mut self, subject: &S, found: &Outputs) -> Result<(), Mismatch> {
        let variables = subject.variables();
        let mut at: Vec<Vec<f64>> = variables.iter().map(|v| v.at.clone()).collect();
        if variables.is_empty() {
            return Ok(());
        }
        let amplification = subject.amplification();
        let operands = at.iter().flatten();
        // Amplified numbers, such as scores, lie between the operands and the objective.
        let least = subject.objective(&at).abs().max(amplification);
        let magnitude = operands.fold(least, |a: f64, operand| a.max(operand.abs()));
        for (which, Variable { name, slot, .. }) in variables.iter().enumerate() {
            let step = STEP / amplification;
            let expected = central_gradient(&mut at, which, step, |at| subject.objective(at));
            let noise =
                DIFFERENCE_NOISE * magnitude / step + self.tolerance.rounding * subject.stored();
            let found = slot.map_or(found.get(name), |s| &found.grads[s.range()]);
            let tolerance = self.tolerance.gradient * amplification;
            let error = compare(
                subject.ops()[0],
                || format!("gradient of {name}"),
                &expected,
                found,
                (tolerance, noise),
            )?;
            let worst = self.report.gradient_error.unwrap_or(0.0).max(error / amplification);
            self.report.gradient_error = Some(worst);
        }
        Ok(())
    }

    /// Parameter gradients are added to what is there; all other outputs do not depend on what
    /// they held; elements outside the op's slots are not touched.
    fn accumulates<S: Subject<B>>(
        &self,
        subject: &S,
        first: &Outputs,
        slack: usize,
    ) -> Result<(), Mismatch> {
        let op = subject.ops()[0];
        let len = subject.layout().map_or(0, |l| l.values.len());
        let start = self.case.numbers("start of gradients").values(len);
        let second = run(self.backend, subject, slack, -3.25, &start)?;
        for ((name, before), (_, after)) in first.tensors.iter().zip(&second.tensors) {
            let (before, after) = (bits(before), bits(after));
            same_bits(op, &format!("{name} does not depend on what it held"), &before, &after)?;
        }
        let Some(layout) = subject.layout() else { return Ok(()) };
        for index in (0..len).filter(|&i| !layout.owns(i)) {
            let (expected, found) = (start[index], second.grads[index]);
            if expected.to_bits() != found.to_bits() {
                let fault = Fault::Element { index, expected, found, tolerance: 0.0 };
                let property = "gradients outside the op's slots are not touched".into();
                return Err(Mismatch { op, property, fault });
            }
        }
        let sum: Vec<f64> = start.iter().zip(&first.grads).map(|(a, b)| a + b).collect();
        // One addition of two numbers, rounded once more than in the first run.
        let tolerance = self.tolerance.value.min(F32_ADDITION) * subject.amplification();
        compare(op, || "gradients accumulate".into(), &sum, &second.grads, (tolerance, 0.0))
            .map(drop)
    }
}

/// Checks that outputs are finite even where no formula is compared with them, because the op has
/// no derivative there.
fn finite<B: Buffers, S: Subject<B>>(subject: &S, found: &Outputs) -> Result<(), Mismatch> {
    let (values, variables) = (subject.values(), subject.variables());
    let named = values.iter().map(|v| v.name).chain(variables.iter().map(|v| v.name));
    let compared: Vec<&str> = named.collect();
    for (name, tensor) in found.tensors.iter().filter(|(name, _)| !compared.contains(name)) {
        if let Some(index) = tensor.iter().position(|v| !v.is_finite()) {
            let property = format!("element {index} of {name} is finite");
            let found = format!("{}", tensor[index]);
            return Err(Mismatch::outcome(subject.ops()[0], property, "a number", found));
        }
    }
    Ok(())
}

/// The tolerance of one addition that is rounded at a different point of a sum. Gradients are f32
/// or wider on every backend.
const F32_ADDITION: f64 = 1e-5;

/// Runs the op with operands that are longer by `slack`, over outputs that hold `garbage` and
/// gradients that hold `start`.
pub(super) fn run<B: Buffers, S: Subject<B>>(
    backend: &B,
    subject: &S,
    slack: usize,
    garbage: f64,
    start: &[f64],
) -> Result<Outputs, Mismatch> {
    let op = subject.ops()[0];
    let rig = Rig::new(backend, slack, garbage);
    let outputs = subject.run(&rig, start).map_err(|e| refused(op, &e))?;
    match rig.spilled() {
        None => Ok(outputs),
        Some(name) => Err(Mismatch::outcome(
            op,
            format!("{name}: elements past the end"),
            "to be left alone",
            "to have been written",
        )),
    }
}

/// Checks that the first, the last and a middle row give the same bits alone as among the others.
pub(super) fn rows_alone<B: Buffers, S: Subject<B>>(
    backend: &B,
    subject: &S,
    all: &Outputs,
) -> Result<(), Mismatch> {
    let rows = subject.rows();
    let mut wanted = vec![0, rows / 2, rows.saturating_sub(1)];
    wanted.dedup();
    for row in wanted.into_iter().filter(|&r| r < rows) {
        let Some(alone) = subject.row(row) else { continue };
        let zero = vec![0.0; subject.layout().map_or(0, |l| l.values.len())];
        let found = run(backend, &alone, 0, 7.5, &zero)?;
        for name in subject.by_row() {
            let among = all.get(name);
            let len = among.len() / rows;
            let property = format!("row {row} of {name} does not depend on the number of rows");
            let among = bits(&among[row * len..(row + 1) * len]);
            same_bits(subject.ops()[0], &property, &among, &bits(found.get(name)))?;
        }
    }
    Ok(())
}

/// Makes each operand in turn one element too short, which must be an error that names the op, and
/// no panic.
fn too_short<B: Buffers, S: Subject<B>>(
    backend: &B,
    subject: &S,
    zero: &[f64],
) -> Result<(), Mismatch> {
    for number in 0.. {
        let rig = Rig::shortening(backend, number);
        let outcome = subject.run(&rig, zero).map(drop);
        let Some(operand) = rig.shortened() else { break };
        shape_error(subject.ops(), &format!("{operand} too short"), outcome)?;
    }
    Ok(())
}

/// Checks that an outcome is a shape error naming one of `ops`.
pub(super) fn shape_error<E: BackendError>(
    ops: &'static [&'static str],
    property: &str,
    outcome: Result<(), E>,
) -> Result<(), Mismatch> {
    let found = match outcome {
        Ok(()) => "success".to_string(),
        Err(e) if e.kind() != ErrorKind::Shape => format!("an error of kind {:?}: {e}", e.kind()),
        Err(e) => {
            let text = e.to_string();
            if ops.iter().any(|op| text.contains(op)) {
                return Ok(());
            }
            format!("\"{text}\", which does not name the op")
        }
    };
    Err(Mismatch::outcome(ops[0], property, "an error of kind Shape that names the op", found))
}

/// Reports a backend's error where there should have been none.
pub(super) fn refused(op: &'static str, error: &impl core::fmt::Display) -> Mismatch {
    Mismatch::outcome(op, "runs on valid operands", "success", format!("\"{error}\""))
}

fn bits(tensor: &[f64]) -> Vec<u64> {
    tensor.iter().map(|v| v.to_bits()).collect()
}

pub(super) fn same_bits(
    op: &'static str,
    property: &str,
    expected: &[u64],
    found: &[u64],
) -> Result<(), Mismatch> {
    same_length(op, property, expected.len(), found.len())?;
    match expected.iter().zip(found).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(index) => {
            let (expected, found) = (f64::from_bits(expected[index]), f64::from_bits(found[index]));
            let fault = Fault::Element { index, expected, found, tolerance: 0.0 };
            Err(Mismatch { op, property: property.into(), fault })
        }
    }
}

/// Returns the largest error relative to the largest element, or a mismatch at the first element
/// out of tolerance. `noise` is an absolute error that is allowed in addition, unless it is
/// negligible.
pub(super) fn compare(
    op: &'static str,
    property: impl Fn() -> String,
    expected: &[f64],
    found: &[f64],
    (tolerance, noise): (f64, f64),
) -> Result<f64, Mismatch> {
    same_length(op, &property(), expected.len(), found.len())?;
    let scale = expected.iter().fold(LEAST_SCALE, |a, b| a.max(b.abs()));
    let noise = if noise < 0.01 * tolerance * scale { 0.0 } else { noise };
    let mut worst: f64 = 0.0;
    for (index, (&e, &f)) in expected.iter().zip(found).enumerate() {
        let error = ((e - f).abs() - noise).max(0.0);
        if (e - f).is_nan() || error > tolerance * scale {
            let tolerance = tolerance * scale + noise;
            let fault = Fault::Element { index, expected: e, found: f, tolerance };
            return Err(Mismatch { op, property: property(), fault });
        }
        worst = worst.max(error / scale);
    }
    Ok(worst)
}

fn same_length(
    op: &'static str,
    property: &str,
    expected: usize,
    found: usize,
) -> Result<(), Mismatch> {
    if expected == found {
        return Ok(());
    }
    let elements = |n: usize| format!("{n} elements");
    Err(Mismatch::outcome(op, property, elements(expected), elements(found)))
}
