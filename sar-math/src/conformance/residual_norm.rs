//! `residual_norm` and `renorm`: x += keep·γ·branch, then y = LN(x)·(1+s) + b.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::{dot, sqrt};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, run, same_bits, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{Branch, Modulation, Seen, Slot, TokenDims, TransformerOps, Write};
use alloc::vec;
use alloc::vec::Vec;

/// The published eps.
const EPS: f64 = 1e-6;
/// An eps of the order of a variance, which shows how eps enters the formula.
const LARGE_EPS: f64 = 0.125;

#[derive(Clone)]
struct Operands {
    dims: TokenDims,
    x: Vec<f64>,
    /// The branch, and the factor of each sample where drop path is on.
    branch: Option<(Vec<f64>, Option<Vec<f64>>)>,
    /// Whether renorm and the backward add the branch to x again.
    again: bool,
    /// Holds the bias of the layer that made the branch: zeros, since the branch already includes
    /// it.
    layout: Layout,
    bias: Option<Slot>,
    ada: Vec<f64>,
    modulation: Modulation,
    gate: usize,
    write: Write,
    eps: f64,
    dy: Vec<f64>,
    /// Gradient of the sum from later layers, where `write` accumulates.
    dsum: Vec<f64>,
    /// Whether rows vary enough for differences of this step.
    differentiable: bool,
}

/// Which operands there are besides x.
#[derive(Clone, Copy, Default)]
struct With {
    branch: bool,
    drop_path: bool,
    bias: bool,
}

struct Values {
    sum: Vec<f64>,
    y: Vec<f64>,
    stats: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: TokenDims, with: With, write: Write) -> Self {
        let c = dims.width;
        // Four vectors in a row of `ada`, one of which belongs to another layer.
        let stride = 4 * c + n.between(0, 3);
        let order = n.between(0, 3);
        let place = |i: usize| (i + order) % 4 * c;
        let mut layout = Layout::default();
        let bias = with.bias.then(|| layout.push(n, &vec![0.0; c]));
        let keep = with.drop_path.then(|| (0..dims.batch).map(|b| [1.25, 0.0][b % 2]).collect());
        Self {
            dims,
            x: n.values(dims.len()),
            branch: with.branch.then(|| (n.values(dims.len()), keep)),
            again: false,
            layout,
            bias,
            ada: n.values(dims.batch * stride),
            modulation: Modulation { stride, scale: place(0), shift: place(1) },
            gate: place(2),
            write,
            eps: [EPS, LARGE_EPS][n.between(0, 1)],
            dy: n.values(dims.len()),
            dsum: n.values(dims.len()),
            // Two elements normalise to ±1 almost everywhere: a step function.
            differentiable: c != 2,
        }
    }

    fn keep(&self, b: usize) -> f64 {
        self.branch.as_ref().and_then(|(_, keep)| keep.as_ref()).map_or(1.0, |keep| keep[b])
    }

    fn formula(&self, x: &[f64], branch: Option<&[f64]>, ada: &[f64]) -> Values {
        let TokenDims { batch, tokens, width: c } = self.dims;
        let Modulation { stride, scale, shift } = self.modulation;
        let mut values = Values { sum: x.to_vec(), y: Vec::new(), stats: Vec::new() };
        for b in 0..batch {
            let ada = &ada[b * stride..][..stride];
            for row in b * tokens..(b + 1) * tokens {
                let sum = &mut values.sum[row * c..][..c];
                if let Some(branch) = branch {
                    for i in 0..c {
                        sum[i] += self.keep(b) * ada[self.gate + i] * branch[row * c + i];
                    }
                }
                let mean = sum.iter().sum::<f64>() / c as f64;
                let variance = sum.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / c as f64;
                let inverse = 1.0 / sqrt(variance + self.eps);
                for i in 0..c {
                    let normal = (sum[i] - mean) * inverse;
                    values.y.push(normal * (1.0 + ada[scale + i]) + ada[shift + i]);
                }
                values.stats.extend([mean, inverse]);
            }
        }
        values
    }

    /// Subtracts `garbage` from the columns that do not belong to the op, which must leave zeros.
    fn others_cleared(&self, mut d_ada: Vec<f64>, garbage: f64) -> Vec<f64> {
        let Modulation { stride, scale, shift } = self.modulation;
        let c = self.dims.width;
        let gate = self.branch.is_some().then_some(self.gate);
        for (i, value) in d_ada.iter_mut().enumerate() {
            let column = i % stride;
            let within = |start: usize| (start..start + c).contains(&column);
            if !within(scale) && !within(shift) && !gate.is_some_and(within) {
                *value -= garbage;
            }
        }
        d_ada
    }

    fn backward<B: TransformerOps>(
        &self,
        rig: &Rig<'_, B>,
        seen: &[f64],
        stats: &B::Accum,
        start: &[f64],
        out: &mut Outputs,
    ) -> Result<(), B::Error> {
        let len = self.dims.len();
        let dy = rig.activation("dy", &self.dy)?;
        let seen = rig.activation("what was seen, of backward", seen)?;
        let seen = if self.again { Seen::Before(&seen) } else { Seen::Sum(&seen) };
        let stats = rig.hand_over_accum("stats of backward", stats, 2 * self.dims.rows())?;
        let ada = rig.activation("ada of backward", &self.ada)?;
        let mut dx = match self.write {
            Write::Overwrite => rig.blank("dx", len)?,
            Write::Accumulate => rig.activation("dx", &self.dsum)?,
        };
        let mut d_ada = rig.blank("d_ada", self.ada.len())?;
        let mut grads = rig.accum("grads", start)?;
        let Some((value, keep)) = &self.branch else {
            rig.backend.residual_norm_backward(
                self.dims,
                &dy,
                seen,
                &stats,
                None,
                &ada,
                self.modulation,
                None,
                self.write,
                &mut dx,
                None,
                &mut d_ada,
                &mut grads,
            )?;
            out.push("x", rig.read("dx", &dx, len)?);
            let d_ada = rig.read("d_ada", &d_ada, self.ada.len())?;
            out.push("ada", self.others_cleared(d_ada, rig.garbage));
            return Ok(());
        };
        let value = rig.activation("branch of backward", value)?;
        let keep = keep_buffer(rig, "keep of backward", keep.as_deref())?;
        let mut dbranch = rig.blank("dbranch", len)?;
        rig.backend.residual_norm_backward(
            self.dims,
            &dy,
            seen,
            &stats,
            Some(Branch {
                value_blc: &value,
                gate: self.gate,
                keep: keep.as_ref().map(|k| (k, KEEP_OFFSET)),
            }),
            &ada,
            self.modulation,
            self.bias,
            self.write,
            &mut dx,
            Some(&mut dbranch),
            &mut d_ada,
            &mut grads,
        )?;
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        out.push("x", rig.read("dx", &dx, len)?);
        out.push("branch", rig.read("dbranch", &dbranch, len)?);
        let d_ada = rig.read("d_ada", &d_ada, self.ada.len())?;
        out.push("ada", self.others_cleared(d_ada, rig.garbage));
        Ok(())
    }
}

/// Offset of this layer's factors: those of earlier layers come before them.
const KEEP_OFFSET: usize = 2;

fn keep_buffer<B: TransformerOps>(
    rig: &Rig<'_, B>,
    name: &'static str,
    keep: Option<&[f64]>,
) -> Result<Option<B::Accum>, B::Error> {
    let Some(keep) = keep else { return Ok(None) };
    let mut all = vec![9.0; KEEP_OFFSET];
    all.extend_from_slice(keep);
    rig.accum(name, &all).map(Some)
}

impl<B: TransformerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["residual_norm", "renorm"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, len) = (self.dims, self.dims.len());
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let ada = rig.activation("ada", &self.ada)?;
        let mut y = rig.blank("y", len)?;
        let mut stats = rig.blank_accum("stats", 2 * dims.rows())?;
        let m = self.modulation;
        let sum = if let Some((value, keep)) = &self.branch {
            let mut sum = rig.blank("sum", len)?;
            let value = rig.activation("branch", value)?;
            let keep = keep_buffer(rig, "keep", keep.as_deref())?;
            let keep = keep.as_ref().map(|k| (k, KEEP_OFFSET));
            let branch = Some(Branch { value_blc: &value, gate: self.gate, keep });
            rig.backend
                .residual_norm(dims, self.eps, &x, branch, &ada, m, &mut sum, &mut y, &mut stats)?;
            rig.read("sum", &sum, len)?
        } else {
            // Not touched without a branch, so its length does not matter.
            let mut sum = rig.backend.activation(1)?;
            rig.backend
                .residual_norm(dims, self.eps, &x, None, &ada, m, &mut sum, &mut y, &mut stats)?;
            self.x.clone()
        };
        out.push("y", rig.read("y", &y, len)?);
        out.push("stats", rig.read_accum("stats", &stats, 2 * dims.rows())?);

        let seen = if self.again { &self.x } else { &sum };
        let seen_again = rig.activation("what was seen, of renorm", seen)?;
        let stats_again = rig.hand_over_accum("stats of renorm", &stats, 2 * dims.rows())?;
        let ada = rig.activation("ada of renorm", &self.ada)?;
        let mut y = rig.blank("y of renorm", len)?;
        let mut branch = None;
        let mut kept = None;
        if let (true, Some((value, keep))) = (self.again, &self.branch) {
            kept = keep_buffer(rig, "keep of renorm", keep.as_deref())?;
            branch = Some(rig.activation("branch of renorm", value)?);
        }
        let branch = branch.as_ref().map(|value_blc| {
            let keep = kept.as_ref().map(|k| (k, KEEP_OFFSET));
            Branch { value_blc, gate: self.gate, keep }
        });
        rig.backend.renorm(dims, &seen_again, branch, &stats_again, &ada, m, &mut y)?;
        out.push("y of renorm", rig.read("y of renorm", &y, len)?);

        self.backward(rig, seen, &stats, start, &mut out)?;
        out.push("sum", sum);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let branch = self.branch.as_ref().map(|(value, _)| value.as_slice());
        let values = self.formula(&self.x, branch, &self.ada);
        vec![
            Expected::near("sum", values.sum),
            Expected::near("y", values.y.clone()),
            Expected::near("y of renorm", values.y),
            Expected::near("stats", values.stats),
        ]
    }

    fn variables(&self) -> Vec<Variable> {
        if !self.differentiable {
            return Vec::new();
        }
        let mut all = vec![Variable::activation("x", &self.x)];
        if let Some((value, _)) = &self.branch {
            all.push(Variable::activation("branch", value));
        }
        all.push(Variable::activation("ada", &self.ada));
        if let Some(bias) = self.bias {
            all.push(Variable::parameter("the bias", &self.layout, bias));
        }
        all
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let ada = &at[1 + usize::from(self.branch.is_some())];
        let mut branch = self.branch.as_ref().map(|_| at[1].clone());
        if let (Some(branch), Some(bias)) = (&mut branch, self.bias.and_then(|_| at.last())) {
            // The bias is zero where the gradients are taken.
            branch.iter_mut().enumerate().for_each(|(i, v)| *v += bias[i % self.dims.width]);
        }
        let values = self.formula(&at[0], branch.as_deref(), ada);
        let later = match self.write {
            Write::Overwrite => 0.0,
            Write::Accumulate => dot(&self.dsum, &values.sum),
        };
        dot(&self.dy, &values.y) + later
    }

    /// Errors are multiplied by 1/σ: rows of three values often have a σ of a tenth.
    fn amplification(&self) -> f64 {
        let branch = self.branch.as_ref().map(|(value, _)| value.as_slice());
        let stats = self.formula(&self.x, branch, &self.ada).stats;
        stats.iter().skip(1).step_by(2).fold(1.0, |a: f64, &b| a.max(b))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let sample = self.dims.tokens * self.dims.width;
        let cut = |all: &[f64]| all[row * sample..][..sample].to_vec();
        let keep = |keep: &Vec<f64>| vec![keep[row]];
        Some(Self {
            dims: TokenDims { batch: 1, ..self.dims },
            x: cut(&self.x),
            branch: self.branch.as_ref().map(|(v, k)| (cut(v), k.as_ref().map(keep))),
            ada: self.ada[row * self.modulation.stride..][..self.modulation.stride].to_vec(),
            dy: cut(&self.dy),
            dsum: cut(&self.dsum),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y", "sum", "stats", "y of renorm"]
    }
}

/// Asks for the gradient of a bias without a branch that it could come from.
fn bias_without_branch<B: TransformerOps>(backend: &B) -> Result<(), B::Error> {
    let dims = TokenDims { batch: 1, tokens: 1, width: 1 };
    let (dy, sum, ada) = (backend.activation(1)?, backend.activation(1)?, backend.activation(2)?);
    let (mut dx, mut d_ada) = (backend.activation(1)?, backend.activation(2)?);
    let (stats, mut grads) = (backend.accum(2)?, backend.accum(1)?);
    backend.residual_norm_backward(
        dims,
        &dy,
        Seen::Sum(&sum),
        &stats,
        None,
        &ada,
        Modulation { stride: 2, scale: 0, shift: 1 },
        Some(Slot { offset: 0, len: 1 }),
        Write::Overwrite,
        &mut dx,
        None,
        &mut d_ada,
        &mut grads,
    )
}

/// Checks that a sum that is added up again has the bits of one that was kept, and so has all that
/// follows from it.
fn again<B: TransformerOps>(
    verifier: &mut Verifier<'_, B>,
    backend: &B,
    kept: Operands,
) -> Result<(), Mismatch> {
    const OP: &str = "residual_norm";
    let start = vec![0.5; kept.layout.values.len()];
    let expected = run(backend, &kept, 0, 7.5, &start)?.bits();
    let again = Operands { again: true, ..kept };
    let found = run(backend, &again, 0, 7.5, &start)?.bits();
    same_bits(
        OP,
        "a sum that is added up again has the bits of one that was kept",
        &expected,
        &found,
    )?;
    verifier.verify(&again)
}

/// Checks `residual_norm`, `renorm` and `residual_norm_backward`: with and without branch, drop
/// path and bias, writing and adding, from sums kept and added up again, rows of one element and of
/// equal elements.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TransformerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "residual_norm", case)?;
    let mut n = case.numbers("residual_norm");
    let (none, branch) = (With::default(), With { branch: true, ..With::default() });
    let biased = With { bias: true, ..branch };
    let variants = [
        (none, Write::Overwrite),
        (none, Write::Accumulate),
        (branch, Write::Accumulate),
        (With { drop_path: true, ..branch }, Write::Overwrite),
        (With { drop_path: true, ..biased }, Write::Accumulate),
        (biased, Write::Overwrite),
    ];
    for (with, write) in variants {
        let (batch, tokens, width) = (n.between(1, 3), n.between(1, 4), n.between(3, 7));
        let dims = TokenDims { batch, tokens, width };
        let operands = Operands::draw(&mut n, dims, with, write);
        verifier.verify(&operands)?;
        // Without a branch, the tensor that it would have been added to is the sum itself.
        again(&mut verifier, backend, operands)?;
    }
    let single = TokenDims { batch: 2, tokens: 1, width: 1 };
    verifier.verify(&Operands::draw(&mut n, single, biased, Write::Overwrite))?;
    let mut equal =
        Operands::draw(&mut n, TokenDims { batch: 1, tokens: 2, width: 4 }, none, Write::Overwrite);
    equal.x = [[1.5; 4], [-0.25; 4]].concat();
    equal.differentiable = false;
    verifier.verify(&equal)?;
    let outcome = bias_without_branch(backend);
    shape_error(&["residual_norm"], "a bias without a branch", outcome)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: TransformerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = TokenDims { batch: 3, tokens: 150, width: 96 };
    let mut n = case.numbers("residual_norm");
    let with = With { branch: true, drop_path: true, bias: true };
    repeatable(backend, &Operands::draw(&mut n, dims, with, Write::Accumulate))
}
