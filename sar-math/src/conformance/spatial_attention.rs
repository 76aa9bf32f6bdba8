//! `spatial_attention`: one-head attention over all positions of a map.

use super::case::{Case, Numbers, storable};
use super::full_size::repeatable;
use super::math::{dot, softmax, sqrt};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{MapDims, TokenizerOps};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: MapDims,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    dy: Vec<f64>,
    /// Largest factor of the scores relative to those of random operands.
    sharpness: f64,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims, sharpness: f64) -> Self {
        let mut draw = || n.values(dims.len());
        let (q, k, v, dy) = (draw(), draw(), draw(), draw());
        let q = q.iter().map(|x| storable(x * sharpness)).collect();
        Self { dims, q, k, v, dy, sharpness }
    }

    /// Probabilities `[b, hw, hw]` and y.
    fn formula(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let MapDims { batch, channels, height, width } = self.dims;
        let places = height * width;
        let mut probabilities = Vec::new();
        let mut y = vec![0.0; v.len()];
        for b in 0..batch {
            let at = |c: usize, place: usize| (b * channels + c) * places + place;
            for from in 0..places {
                let score = |to: usize| -> f64 {
                    let product = |c| q[at(c, from)] * k[at(c, to)];
                    (0..channels).map(product).sum::<f64>() / sqrt(channels as f64)
                };
                let p = softmax(&(0..places).map(score).collect::<Vec<_>>());
                for c in 0..channels {
                    y[at(c, from)] = (0..places).map(|to| p[to] * v[at(c, to)]).sum();
                }
                probabilities.extend(p);
            }
        }
        (probabilities, y)
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["spatial_attention"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.dims.len();
        let places = self.dims.height * self.dims.width;
        let pairs = self.dims.batch * places * places;
        let mut out = Outputs::default();
        let q = rig.activation("q", &self.q)?;
        let k = rig.activation("k", &self.k)?;
        let v = rig.activation("v", &self.v)?;
        let mut probabilities = rig.blank("probabilities", pairs)?;
        let mut y = rig.blank("y", len)?;
        rig.backend.spatial_attention(self.dims, &q, &k, &v, &mut probabilities, &mut y)?;
        out.push("probabilities", rig.read("probabilities", &probabilities, pairs)?);
        out.push("y", rig.read("y", &y, len)?);

        let dy = rig.activation("dy", &self.dy)?;
        let q = rig.activation("q of backward", &self.q)?;
        let k = rig.activation("k of backward", &self.k)?;
        let v = rig.activation("v of backward", &self.v)?;
        let p = rig.hand_over("probabilities of backward", &probabilities, pairs)?;
        let (mut dq, mut dk) = (rig.blank("dq", len)?, rig.blank("dk", len)?);
        let mut dv = rig.blank("dv", len)?;
        rig.backend.spatial_attention_backward(
            self.dims, &dy, &q, &k, &v, &p, &mut dq, &mut dk, &mut dv,
        )?;
        out.push("q", rig.read("dq", &dq, len)?);
        out.push("k", rig.read("dk", &dk, len)?);
        out.push("v", rig.read("dv", &dv, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let (probabilities, y) = self.formula(&self.q, &self.k, &self.v);
        vec![Expected::near("probabilities", probabilities), Expected::near("y", y)]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![
            Variable::activation("q", &self.q),
            Variable::activation("k", &self.k),
            Variable::activation("v", &self.v),
        ]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        dot(&self.dy, &self.formula(&at[0], &at[1], &at[2]).1)
    }

    /// Scores of random operands reach about 4.
    fn amplification(&self) -> f64 {
        4.0 * self.sharpness
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.dims.len() / self.dims.batch;
        let cut = |all: &[f64]| all[row * len..][..len].to_vec();
        Some(Self {
            dims: MapDims { batch: 1, ..self.dims },
            q: cut(&self.q),
            k: cut(&self.k),
            v: cut(&self.v),
            dy: cut(&self.dy),
            sharpness: self.sharpness,
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y", "probabilities"]
    }
}

/// Checks `spatial_attention` and its backward: one position, random maps, saturated and equal
/// scores.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "spatial_attention", case)?;
    let mut n = case.numbers("spatial_attention");
    for (side, sharpness) in [(1, 1.0), (3, 1.0), (2, 20.0)] {
        let dims = MapDims {
            batch: n.between(1, 2),
            channels: n.between(1, 4),
            height: n.between(1, side),
            width: n.between(1, side),
        };
        if sharpness == 1.0 || !verifier.tolerance.narrow {
            verifier.verify(&Operands::draw(&mut n, dims, sharpness))?;
        }
    }
    let dims = MapDims { batch: 1, channels: 2, height: 2, width: 3 };
    let mut equal = Operands::draw(&mut n, dims, 1.0);
    equal.k.fill(0.5);
    verifier.verify(&equal)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 64×12×10.
///
/// # Errors
/// A second run, or a map on its own, gives other bits.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 64, height: 12, width: 10 };
    repeatable(backend, &Operands::draw(&mut case.numbers("spatial_attention"), dims, 1.0))
}
