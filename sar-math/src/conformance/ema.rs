//! `ema`: average = decay·average + (1−decay)·params.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::OptimizerOps;
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    decay: f64,
    params: Vec<f64>,
    average: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, len: usize, decay: f64) -> Self {
        Self { decay, params: n.values(len), average: n.values(len) }
    }
}

impl<B: OptimizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["ema"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.params.len();
        let mut out = Outputs::default();
        let params = rig.params("params", &self.params)?;
        let mut average = rig.accum("average", &self.average)?;
        rig.backend.ema(len, self.decay, &params, &mut average)?;
        out.push("average", rig.read_accum("average", &average, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let mean = |(a, p): (&f64, &f64)| self.decay * a + (1.0 - self.decay) * p;
        vec![Expected::near("average", self.average.iter().zip(&self.params).map(mean).collect())]
    }
}

/// Checks `ema`: published decays, and decays of 0 and 1.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: OptimizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "ema", case)?;
    let mut n = case.numbers("ema");
    for decay in [0.9999, 0.5, 0.0, 1.0] {
        let len = n.between(1, 30);
        verifier.verify(&Operands::draw(&mut n, len, decay))?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 100,000 parameters.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: OptimizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("ema"), 100_000, 0.999))
}
