//! `squared_error`: mean (x−target)², and its gradient times a weight.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::TokenizerOps;
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    x: Vec<f64>,
    target: Vec<f64>,
    weight: f64,
}

impl Operands {
    fn draw(n: &mut Numbers, len: usize, weight: f64) -> Self {
        Self { x: n.values(len), target: n.values(len), weight }
    }

    fn formula(&self, x: &[f64]) -> f64 {
        let square = |(x, t): (&f64, &f64)| (x - t) * (x - t);
        x.iter().zip(&self.target).map(square).sum::<f64>() / x.len() as f64
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["squared_error"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.x.len();
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let target = rig.activation("target", &self.target)?;
        let mut loss = rig.blank_accum("loss", 1)?;
        let mut dx = rig.blank("dx", len)?;
        rig.backend.squared_error(len, &x, &target, self.weight, &mut loss, &mut dx)?;
        out.push("loss", rig.read_accum("loss", &loss, 1)?);
        out.push("x", rig.read("dx", &dx, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        vec![Expected::near("loss", vec![self.formula(&self.x)])]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::activation("x", &self.x)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        self.weight * self.formula(&at[0])
    }
}

/// Checks `squared_error`: one element, many, no difference, a weight of zero.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "squared_error", case)?;
    let mut n = case.numbers("squared_error");
    // The mean divides by the length: a weight of its order makes gradients of order 1.
    for (len, weight) in [(1, 0.75), (n.between(2, 30), 12.0), (5, 0.0)] {
        verifier.verify(&Operands::draw(&mut n, len, weight))?;
    }
    let mut equal = Operands::draw(&mut n, 6, 1.0);
    equal.target.clone_from(&equal.x);
    verifier.verify(&equal)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 images of 3×64×64.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("squared_error"), 36_864, 1.0))
}
