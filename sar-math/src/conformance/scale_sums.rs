//! `scale_sums`: sums over the batch and the tokens of each scale.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::loss_rows::wide_dims;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::LossOps;
use alloc::vec::Vec;

struct Operands {
    batch: usize,
    schedule: ScaleSchedule,
    values: Vec<f64>,
    offset: usize,
}

impl Operands {
    fn draw(n: &mut Numbers, batch: usize, schedule: ScaleSchedule, offset: usize) -> Self {
        Self { batch, schedule, values: n.values(batch * schedule.tokens()), offset }
    }
}

impl<B: LossOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["scale_sums"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.offset + self.schedule.len();
        let mut out = Outputs::default();
        let values = rig.accum("values", &self.values)?;
        let mut sums = rig.blank_accum("sums", len)?;
        rig.backend.scale_sums(self.batch, &self.schedule, &values, &mut sums, self.offset)?;
        let sums = rig.read_accum("sums", &sums, len)?;
        let before = sums[..self.offset].iter().map(|v| v - rig.garbage).collect();
        out.push("change of sums before the offset", before);
        out.push("sums", sums[self.offset..].to_vec());
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let tokens = self.schedule.tokens();
        let sum = |scale| {
            let sample = |b: usize| self.schedule.range(scale).map(move |l| b * tokens + l);
            (0..self.batch).flat_map(sample).map(|row| self.values[row]).sum()
        };
        alloc::vec![
            Expected::near("sums", (0..self.schedule.len()).map(sum).collect()),
            Expected::exact("change of sums before the offset", alloc::vec![0.0; self.offset]),
        ]
    }
}

/// Checks `scale_sums` with and without an offset.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: LossOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "scale_sums", case)?;
    let mut n = case.numbers("scale_sums");
    for offset in [0, n.between(1, 5)] {
        let (batch, schedule) = (n.between(1, 4), n.schedule());
        verifier.verify(&Operands::draw(&mut n, batch, schedule, offset))?;
    }
    Ok(verifier.report())
}

/// All bits of two mid-size runs: 64 samples × 150 tokens, and 67 samples of as many scales as there may be.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: LossOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("scale_sums");
    let mut bits = repeatable(backend, &Operands::draw(&mut n, 64, mid_schedule(), 2))?;
    let schedule = wide_dims(&mut n).schedule;
    bits.extend(repeatable(backend, &Operands::draw(&mut n, 67, schedule, 0))?);
    Ok(bits)
}
