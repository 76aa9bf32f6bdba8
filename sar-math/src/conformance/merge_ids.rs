//! `merge_ids`: takes the tokens of some scales from another set of ids.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::RolloutOps;
use alloc::vec::Vec;

struct Operands {
    batch: usize,
    schedule: ScaleSchedule,
    from_other: Vec<bool>,
    other: Vec<u32>,
    ids: Vec<u32>,
}

impl Operands {
    fn draw(n: &mut Numbers, batch: usize, schedule: ScaleSchedule) -> Self {
        let len = batch * schedule.tokens();
        Self {
            batch,
            schedule,
            from_other: (0..schedule.len()).map(|_| n.flip()).collect(),
            other: n.ids(len, 1 << 20),
            ids: n.ids(len, 1 << 20),
        }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["merge_ids"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let mut out = Outputs::default();
        let other = rig.ids("other", &self.other)?;
        let mut ids = rig.ids("ids", &self.ids)?;
        rig.backend.merge_ids(self.batch, &self.schedule, &self.from_other, &other, &mut ids)?;
        out.push("ids", rig.read_ids("ids", &ids, self.ids.len())?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let tokens = self.schedule.tokens();
        let merged = self.ids.iter().zip(&self.other).enumerate().map(|(i, (&own, &other))| {
            let scale = self.schedule.scale_of(i % tokens);
            f64::from(if scale.is_some_and(|s| self.from_other[s]) { other } else { own })
        });
        alloc::vec![Expected::exact("ids", merged.collect())]
    }
}

fn choices_missing<B: RolloutOps>(backend: &B) -> Result<(), B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    backend.merge_ids(1, &schedule, &[true], &backend.ids(5)?, &mut backend.ids(5)?)
}

/// Checks `merge_ids`, and that there must be as many choices as scales.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "merge_ids", case)?;
    let mut n = case.numbers("merge_ids");
    for _ in 0..3 {
        let (batch, schedule) = (n.between(1, 3), n.schedule());
        verifier.verify(&Operands::draw(&mut n, batch, schedule))?;
    }
    shape_error(&["merge_ids"], "a choice for one of two scales", choices_missing(backend))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples of 150 tokens.
///
/// # Errors
/// A second run gives other ids.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("merge_ids"), 3, mid_schedule()))
}
