//! `keep_codes`: puts given codes back where they are kept.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::RolloutOps;
use alloc::vec::Vec;
use core::ops::Range;

struct Operands {
    batch: usize,
    schedule: ScaleSchedule,
    scales: Range<usize>,
    kept: Vec<u32>,
    given: Vec<u32>,
    ids: Vec<u32>,
}

impl Operands {
    fn draw(n: &mut Numbers, batch: usize, schedule: ScaleSchedule, scales: Range<usize>) -> Self {
        let len = batch * schedule.tokens();
        Self {
            batch,
            schedule,
            scales,
            // Any value other than 0 means kept.
            kept: (0..len).map(|_| if n.flip() { n.between(1, 9) as u32 } else { 0 }).collect(),
            given: n.ids(len, 1 << 20),
            ids: n.ids(len, 1 << 20),
        }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["keep_codes"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let mut out = Outputs::default();
        let kept = rig.ids("kept", &self.kept)?;
        let given = rig.ids("given", &self.given)?;
        let mut ids = rig.ids("ids", &self.ids)?;
        let (schedule, scales) = (&self.schedule, self.scales.clone());
        rig.backend.keep_codes(self.batch, schedule, scales, &kept, &given, &mut ids)?;
        out.push("ids", rig.read_ids("ids", &ids, self.ids.len())?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let tokens = self.schedule.tokens();
        let put_back = |i: usize| {
            let scale = self.schedule.scale_of(i % tokens);
            self.kept[i] != 0 && scale.is_some_and(|scale| self.scales.contains(&scale))
        };
        let value = |i: usize| f64::from(if put_back(i) { self.given[i] } else { self.ids[i] });
        alloc::vec![Expected::exact("ids", (0..self.ids.len()).map(value).collect())]
    }
}

fn scales_missing<B: RolloutOps>(backend: &B) -> Result<(), B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let (kept, given) = (backend.ids(5)?, backend.ids(5)?);
    backend.keep_codes(1, &schedule, 1..3, &kept, &given, &mut backend.ids(5)?)
}

fn codes_missing<B: RolloutOps>(backend: &B) -> Result<(), B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let (kept, given) = (backend.ids(10)?, backend.ids(9)?);
    backend.keep_codes(2, &schedule, 0..1, &kept, &given, &mut backend.ids(10)?)
}

/// Checks `keep_codes` on no scale, some and all of them, and that missing scales or codes are
/// errors.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "keep_codes", case)?;
    let mut n = case.numbers("keep_codes");
    for whole in [true, false, false, false] {
        let (batch, schedule) = (n.between(1, 3), n.schedule());
        let first = if whole { 0 } else { n.between(0, schedule.len() - 1) };
        let end = if whole { schedule.len() } else { n.between(first + 1, schedule.len()) };
        verifier.verify(&Operands::draw(&mut n, batch, schedule, first..end))?;
    }
    verifier.verify(&Operands::draw(&mut n, 2, mid_schedule(), 1..1))?;
    shape_error(&["keep_codes"], "three scales of two", scales_missing(backend))?;
    shape_error(&["keep_codes"], "a code short of two samples", codes_missing(backend))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples of 150 tokens.
///
/// # Errors
/// A second run gives other ids.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let (schedule, mut n) = (mid_schedule(), case.numbers("keep_codes"));
    repeatable(backend, &Operands::draw(&mut n, 3, schedule, 1..schedule.len()))
}
