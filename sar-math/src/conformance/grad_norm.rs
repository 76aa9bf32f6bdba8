//! `grad_norm`: the Euclidean norm of all gradients.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::norm;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, refused};
use super::verdict::{Mismatch, Report};
use crate::backend::OptimizerOps;
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    grads: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, len: usize, scale: f64) -> Self {
        Self { grads: n.values(len).iter().map(|g| f64::from((g * scale) as f32)).collect() }
    }
}

impl<B: OptimizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["grad_norm"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let mut out = Outputs::default();
        let grads = rig.accum("grads", &self.grads)?;
        let mut norm = rig.blank_accum("norm", 1)?;
        rig.backend.grad_norm(self.grads.len(), &grads, &mut norm)?;
        out.push("norm", rig.read_accum("norm", &norm, 1)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        vec![Expected::near("norm", vec![norm(&self.grads, 0.0)])]
    }
}

/// The norm of some gradients, one of which is `bad`.
fn norm_with<B: OptimizerOps>(backend: &B, bad: f64) -> Result<f64, B::Error> {
    let rig = Rig::new(backend, 0, 0.0);
    let grads = rig.accum("grads", &[1.0, bad, -2.0])?;
    let mut norm = rig.blank_accum("norm", 1)?;
    backend.grad_norm(3, &grads, &mut norm)?;
    Ok(rig.read_accum("norm", &norm, 1)?[0])
}

/// Checks `grad_norm`: one gradient, many, all zero, large ones, and that infinities and NaN show.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: OptimizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "grad_norm", case)?;
    let mut n = case.numbers("grad_norm");
    for (len, scale) in [(1, 1.0), (n.between(2, 60), 1.0), (9, 0.0), (40, 1e15)] {
        verifier.verify(&Operands::draw(&mut n, len, scale))?;
    }
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let found = norm_with(backend, bad).map_err(|e| refused("grad_norm", &e))?;
        if found.is_finite() {
            let property = alloc::format!("the norm with a gradient of {bad}");
            let found = alloc::format!("{found}");
            return Err(Mismatch::outcome("grad_norm", property, "no finite number", found));
        }
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 100,000 gradients.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: OptimizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("grad_norm"), 100_000, 1.0))
}
