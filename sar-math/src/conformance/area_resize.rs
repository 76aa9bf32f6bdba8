//! `area_resize`: adaptive average pooling of a map.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::{area, dot};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{MapDims, TokenizerOps};
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    dims: MapDims,
    to: (usize, usize),
    x: Vec<f64>,
    dy: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims, to: (usize, usize)) -> Self {
        let dy = n.values(dims.batch * dims.channels * to.0 * to.1);
        Self { dims, to, x: n.values(dims.len()), dy }
    }

    fn formula(&self, x: &[f64]) -> Vec<f64> {
        let from = (self.dims.height, self.dims.width);
        x.chunks(from.0 * from.1).flat_map(|map| area(map, from, self.to)).collect()
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["area_resize"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, (height, width)) = (self.dims, self.to);
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let mut y = rig.blank("y", self.dy.len())?;
        rig.backend.area_resize(dims, height, width, &x, &mut y)?;
        out.push("y", rig.read("y", &y, self.dy.len())?);
        let dy = rig.activation("dy", &self.dy)?;
        let mut dx = rig.blank("dx", self.x.len())?;
        rig.backend.area_resize_backward(dims, height, width, &dy, &mut dx)?;
        out.push("x", rig.read("dx", &dx, self.x.len())?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        vec![Expected::near("y", self.formula(&self.x))]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::activation("x", &self.x)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        dot(&self.dy, &self.formula(&at[0]))
    }
}

/// Checks `area_resize` and its backward: to smaller, larger, equal and single-pixel maps.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "area_resize", case)?;
    let mut n = case.numbers("area_resize");
    let (height, width) = (n.between(1, 6), n.between(1, 6));
    let random = (n.between(1, 7), n.between(1, 7));
    for to in [(1, 1), (height, width), random] {
        let dims = MapDims { batch: n.between(1, 2), channels: n.between(1, 3), height, width };
        verifier.verify(&Operands::draw(&mut n, dims, to))?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 32×16×16 to 9×11.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 32, height: 16, width: 16 };
    repeatable(backend, &Operands::draw(&mut case.numbers("area_resize"), dims, (9, 11)))
}
