//! `upsample_nearest`: nearest ×2 in both directions.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::dot;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{MapDims, TokenizerOps};
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    dims: MapDims,
    x: Vec<f64>,
    dy: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims) -> Self {
        Self { dims, x: n.values(dims.len()), dy: n.values(4 * dims.len()) }
    }

    fn formula(&self, x: &[f64]) -> Vec<f64> {
        let MapDims { height, width, .. } = self.dims;
        let mut y = Vec::new();
        for map in x.chunks(height * width) {
            for row in 0..2 * height {
                for column in 0..2 * width {
                    y.push(map[row / 2 * width + column / 2]);
                }
            }
        }
        y
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["upsample_nearest"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let mut y = rig.blank("y", self.dy.len())?;
        rig.backend.upsample_nearest(self.dims, &x, &mut y)?;
        out.push("y", rig.read("y", &y, self.dy.len())?);
        let dy = rig.activation("dy", &self.dy)?;
        let mut dx = rig.blank("dx", self.x.len())?;
        rig.backend.upsample_nearest_backward(self.dims, &dy, &mut dx)?;
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

/// Checks `upsample_nearest` and its backward.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "upsample_nearest", case)?;
    let mut n = case.numbers("upsample_nearest");
    for side in [1, 4] {
        let dims = MapDims {
            batch: n.between(1, 2),
            channels: n.between(1, 3),
            height: n.between(1, side),
            width: n.between(1, side),
        };
        verifier.verify(&Operands::draw(&mut n, dims))?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 32×12×10.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 32, height: 12, width: 10 };
    repeatable(backend, &Operands::draw(&mut case.numbers("upsample_nearest"), dims))
}
