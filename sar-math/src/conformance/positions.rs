//! `positions`: a learned table, area-resized to every scale.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::{area, dot};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{EmbeddingOps, Slot};
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    schedule: ScaleSchedule,
    width: usize,
    side: usize,
    layout: Layout,
    table: Slot,
    dpos: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, schedule: ScaleSchedule, width: usize, side: usize) -> Self {
        let mut layout = Layout::default();
        let table = layout.draw(n, width * side * side);
        let dpos = n.values(schedule.tokens() * width);
        Self { schedule, width, side, layout, table, dpos }
    }

    fn formula(&self, table: &[f64]) -> Vec<f64> {
        let mut pos = vec![0.0; self.schedule.tokens() * self.width];
        for (i, scale) in self.schedule.scales().iter().enumerate() {
            for (c, map) in table.chunks(self.side * self.side).enumerate() {
                let map = area(map, (self.side, self.side), (scale.height, scale.width));
                for (token, value) in self.schedule.range(i).zip(map) {
                    pos[token * self.width + c] = value;
                }
            }
        }
        pos
    }
}

impl<B: EmbeddingOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["positions"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.dpos.len();
        let mut out = Outputs::default();
        let params = rig.params("params", &self.layout.values)?;
        let mut pos = rig.blank("pos", len)?;
        rig.backend.positions(&self.schedule, self.width, &params, self.table, &mut pos)?;
        out.push("pos", rig.read("pos", &pos, len)?);
        let dpos = rig.activation("dpos", &self.dpos)?;
        let mut grads = rig.accum("grads", start)?;
        rig.backend.positions_backward(
            &self.schedule,
            self.width,
            &dpos,
            self.table,
            &mut grads,
        )?;
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        vec![Expected::near("pos", self.formula(&self.layout.get(self.table)))]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::parameter("the table", &self.layout, self.table)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        dot(&self.dpos, &self.formula(&at[0]))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }
}

/// A table of 2 channels × 6 places, which is not square.
fn not_square<B: EmbeddingOps>(backend: &B) -> Result<(), B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1]).expect("one token");
    let params = backend.params(12)?;
    let mut pos = backend.activation(2)?;
    backend.positions(&schedule, 2, &params, Slot { offset: 0, len: 12 }, &mut pos)
}

/// Checks `positions` and its backward: scales smaller and larger than the table, and equal to it.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "positions", case)?;
    let mut n = case.numbers("positions");
    for side in [1, 4, n.between(2, 7)] {
        let (schedule, width) = (n.schedule(), n.between(1, 4));
        verifier.verify(&Operands::draw(&mut n, schedule, width, side))?;
    }
    shape_error(&["positions"], "a table that is not square", not_square(backend))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 150 tokens, width 96, a table of side 16.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("positions");
    repeatable(backend, &Operands::draw(&mut n, mid_schedule(), 96, 16))
}
