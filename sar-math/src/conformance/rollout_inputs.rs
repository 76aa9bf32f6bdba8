//! `rollout_inputs`: the codes of the scale before, resized bicubically to the grid of the next.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::bicubic;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{RolloutDims, RolloutOps};
use alloc::vec::Vec;
use core::ops::Range;

#[derive(Clone)]
struct Operands {
    dims: RolloutDims,
    ids: Vec<u32>,
    codebook: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: RolloutDims) -> Self {
        let ids = n.ids(dims.batch * dims.schedule.tokens(), dims.vocab);
        let codebook = n.values(dims.vocab * dims.channels);
        Self { dims, ids, codebook }
    }

    fn formula(&self) -> Vec<f64> {
        let RolloutDims { batch, schedule, ref scales, channels, .. } = self.dims;
        let span = schedule.span(scales.clone());
        let mut inputs = alloc::vec![0.0; batch * span.len() * channels];
        for b in 0..batch {
            for scale in scales.clone() {
                let (from, to) = (schedule.scales()[scale - 1], schedule.scales()[scale]);
                let ids = &self.ids[b * schedule.tokens()..][schedule.range(scale - 1)];
                for k in 0..channels {
                    let code = |&id: &u32| self.codebook[id as usize * channels + k];
                    let map: Vec<f64> = ids.iter().map(code).collect();
                    let map = bicubic(&map, (from.height, from.width), (to.height, to.width));
                    for (token, value) in schedule.range(scale).zip(map) {
                        let row = b * span.len() + token - span.start;
                        inputs[row * channels + k] = value;
                    }
                }
            }
        }
        inputs
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["rollout_inputs"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let tokens = self.dims.schedule.span(self.dims.scales.clone()).len();
        let len = self.dims.batch * tokens * self.dims.channels;
        let mut out = Outputs::default();
        let ids = rig.ids("ids", &self.ids)?;
        let codebook = rig.accum("codebook", &self.codebook)?;
        let mut inputs = rig.blank("inputs", len)?;
        rig.backend.rollout_inputs(&self.dims, &ids, &codebook, &mut inputs)?;
        out.push("inputs", rig.read("inputs", &inputs, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        alloc::vec![Expected::near("inputs", self.formula())]
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let tokens = self.dims.schedule.tokens();
        Some(Self {
            dims: RolloutDims { batch: 1, ..self.dims.clone() },
            ids: self.ids[row * tokens..][..tokens].to_vec(),
            codebook: self.codebook.clone(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["inputs"]
    }
}

/// Scales that cannot have inputs: no scale precedes the first, and none lies past the last.
fn outside<B: RolloutOps>(backend: &B, scales: Range<usize>) -> Result<(), B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let dims = RolloutDims { batch: 1, schedule, scales, channels: 2, vocab: 3 };
    let (ids, codebook) = (backend.ids(64)?, backend.accum(64)?);
    backend.rollout_inputs(&dims, &ids, &codebook, &mut backend.activation(64)?)
}

/// Checks `rollout_inputs`: all scales, the last alone, rectangular grids, growth in one direction.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "rollout_inputs", case)?;
    let mut n = case.numbers("rollout_inputs");
    let schedules = [n.schedule(), n.schedule(), mid_schedule()];
    for schedule in schedules.into_iter().filter(|s| s.len() > 1) {
        for first in [1, schedule.len() - 1] {
            let (batch, channels, vocab) = (n.between(1, 2), n.between(1, 3), n.between(1, 9));
            let scales = first..schedule.len();
            let dims = RolloutDims { batch, schedule, scales, channels, vocab };
            verifier.verify(&Operands::draw(&mut n, dims))?;
        }
    }
    shape_error(&["rollout_inputs"], "inputs of the first scale", outside(backend, 0..2))?;
    shape_error(&["rollout_inputs"], "inputs past the last scale", outside(backend, 1..3))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples, 149 tokens, 32 channels.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let schedule = mid_schedule();
    let scales = 1..schedule.len();
    let dims = RolloutDims { batch: 3, schedule, scales, channels: 32, vocab: 64 };
    repeatable(backend, &Operands::draw(&mut case.numbers("rollout_inputs"), dims))
}
