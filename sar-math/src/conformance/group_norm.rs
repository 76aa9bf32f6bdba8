//! `group_norm`: affine group norm, with SiLU after it where the layer says so.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::{dot, exp, sqrt};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{GroupNorm, MapDims, TokenizerOps, Write};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: MapDims,
    x: Vec<f64>,
    layout: Layout,
    layer: GroupNorm,
    dy: Vec<f64>,
    write: Write,
    /// What `dx` holds on entry, where `write` accumulates.
    before: Vec<f64>,
    /// Whether groups vary: the formula's derivative at equal elements is steeper than any step.
    differentiable: bool,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims, groups: usize, silu: bool, write: Write) -> Self {
        let mut layout = Layout::default();
        let weight = layout.draw(n, dims.channels);
        let bias = layout.draw(n, dims.channels);
        Self {
            dims,
            x: n.values(dims.len()),
            layout,
            layer: GroupNorm { weight, bias, groups, eps: [1e-6, 0.125][n.between(0, 1)], silu },
            dy: n.values(dims.len()),
            write,
            before: n.values(dims.len()),
            differentiable: true,
        }
    }

    /// y and, for each sample and group, mean and 1/σ.
    fn formula(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let MapDims { channels, height, width, .. } = self.dims;
        let size = channels / self.layer.groups * height * width;
        let (mut y, mut stats) = (Vec::new(), Vec::new());
        for (group, x) in x.chunks(size).enumerate() {
            let mean = x.iter().sum::<f64>() / size as f64;
            let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / size as f64;
            let inverse = 1.0 / sqrt(variance + self.layer.eps);
            stats.extend([mean, inverse]);
            for (i, v) in x.iter().enumerate() {
                let channel = (group * size + i) / (height * width) % channels;
                let affine = (v - mean) * inverse * weight[channel] + bias[channel];
                y.push(if self.layer.silu { affine / (1.0 + exp(-affine)) } else { affine });
            }
        }
        (y, stats)
    }

    fn outputs(&self) -> (Vec<f64>, Vec<f64>) {
        let get = |slot| self.layout.get(slot);
        self.formula(&self.x, &get(self.layer.weight), &get(self.layer.bias))
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["group_norm"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (len, groups) = (self.x.len(), 2 * self.dims.batch * self.layer.groups);
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let params = rig.params("params", &self.layout.values)?;
        let mut y = rig.blank("y", len)?;
        let mut stats = rig.blank_accum("stats", groups)?;
        rig.backend.group_norm(self.dims, &x, &params, self.layer, &mut y, &mut stats)?;
        out.push("y", rig.read("y", &y, len)?);
        out.push("stats", rig.read_accum("stats", &stats, groups)?);

        let dy = rig.activation("dy", &self.dy)?;
        let x = rig.activation("x of backward", &self.x)?;
        let stats = rig.hand_over_accum("stats of backward", &stats, groups)?;
        let params = rig.params("params of backward", &self.layout.values)?;
        let mut dx = match self.write {
            Write::Overwrite => rig.blank("dx", len)?,
            Write::Accumulate => rig.activation("dx", &self.before)?,
        };
        let mut grads = rig.accum("grads", start)?;
        rig.backend.group_norm_backward(
            self.dims, &dy, &x, &stats, &params, self.layer, self.write, &mut dx, &mut grads,
        )?;
        out.push("x", rig.read("dx", &dx, len)?);
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let (y, stats) = self.outputs();
        vec![Expected::near("y", y), Expected::near("stats", stats)]
    }

    fn variables(&self) -> Vec<Variable> {
        if !self.differentiable {
            return Vec::new();
        }
        vec![
            Variable::activation("x", &self.x),
            Variable::parameter("the weight", &self.layout, self.layer.weight),
            Variable::parameter("the bias", &self.layout, self.layer.bias),
        ]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let before = match self.write {
            Write::Overwrite => 0.0,
            Write::Accumulate => dot(&self.before, &at[0]),
        };
        dot(&self.dy, &self.formula(&at[0], &at[1], &at[2]).0) + before
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    /// Errors are multiplied by 1/σ.
    fn amplification(&self) -> f64 {
        self.outputs().1.iter().skip(1).step_by(2).fold(1.0, |a: f64, &b| a.max(b))
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.x.len() / self.dims.batch;
        let cut = |all: &[f64]| all[row * len..][..len].to_vec();
        Some(Self {
            dims: MapDims { batch: 1, ..self.dims },
            x: cut(&self.x),
            dy: cut(&self.dy),
            before: cut(&self.before),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y", "stats", "x"]
    }
}

fn uneven_groups<B: TokenizerOps>(backend: &B, n: &mut Numbers) -> Result<(), B::Error> {
    let dims = MapDims { batch: 1, channels: 4, height: 1, width: 1 };
    let mut operands = Operands::draw(n, dims, 1, false, Write::Overwrite);
    operands.layer.groups = 3;
    let rig = Rig::new(backend, 8, 0.5);
    operands.run(&rig, &vec![0.0; operands.layout.values.len()]).map(drop)
}

/// Checks `group_norm` and its backward: one group and many, with and without SiLU, writing and
/// adding, one pixel, equal elements.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "group_norm", case)?;
    let mut n = case.numbers("group_norm");
    for silu in [false, true] {
        for write in [Write::Overwrite, Write::Accumulate] {
            let (groups, size) = (n.between(1, 3), n.between(1, 2));
            let (batch, channels) = (n.between(1, 3), groups * size);
            let dims = MapDims { batch, channels, height: n.between(2, 3), width: n.between(2, 4) };
            verifier.verify(&Operands::draw(&mut n, dims, groups, silu, write))?;
        }
    }
    let pixel = MapDims { batch: 2, channels: 3, height: 1, width: 1 };
    verifier.verify(&Operands::draw(&mut n, pixel, 3, true, Write::Overwrite))?;
    let dims = MapDims { batch: 1, channels: 2, height: 2, width: 2 };
    let mut equal = Operands::draw(&mut n, dims, 2, false, Write::Overwrite);
    equal.x = [[1.5; 4], [-0.25; 4]].concat();
    equal.differentiable = false;
    verifier.verify(&equal)?;
    let outcome = uneven_groups(backend, &mut n);
    shape_error(&["group_norm"], "groups that do not divide the channels", outcome)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 64×24×20 in 32 groups.
///
/// # Errors
/// A second run, or a map on its own, gives other bits.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 64, height: 24, width: 20 };
    let mut n = case.numbers("group_norm");
    repeatable(backend, &Operands::draw(&mut n, dims, 32, true, Write::Accumulate))
}
