//! `attention`: L2-normalised, block-causal attention.

use super::case::{Case, Numbers, mid_schedule, storable};
use super::full_size::repeatable;
use super::math::{dot, exp, log_sum_exp, norm};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, refused, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{
    AttentionDims, AttentionSlots, Buffers, NORMALIZE_EPS, SCALE_MUL_MAX, Slot, TransformerOps,
};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// Operands of `attention`, and of `cached_attention` with the same values.
#[derive(Clone)]
pub(super) struct Operands {
    pub(super) dims: AttentionDims,
    /// `[b, l, 3, h, d]`.
    pub(super) qkv: Vec<f64>,
    pub(super) layout: Layout,
    pub(super) slots: AttentionSlots,
    dout: Vec<f64>,
    /// Whether the formula has a derivative here: no zero vector, no scale at its ceiling.
    differentiable: bool,
}

/// What the formula gives, in the layouts of the op.
pub(super) struct Values {
    pub(super) qkv: Vec<f64>,
    norms: Vec<f64>,
    lse: Vec<f64>,
    /// `[b, l, h, d]`.
    pub(super) out: Vec<f64>,
}

impl Operands {
    /// Random operands; `scales` are the entries of `scale_mul`, repeated over the heads.
    pub(super) fn draw(n: &mut Numbers, dims: AttentionDims, scales: &[f64]) -> Self {
        let width = dims.heads * dims.head_dim;
        let rows = dims.batch * dims.schedule.tokens();
        let mut layout = Layout::default();
        let q_bias = layout.draw(n, width);
        let scale_mul: Vec<f64> = (0..dims.heads).map(|h| scales[h % scales.len()]).collect();
        let scale_mul = layout.push(n, &scale_mul);
        let v_bias = layout.draw(n, width);
        Self {
            dims,
            qkv: draw_qkv(n, rows, (dims.heads, dims.head_dim), &layout.get(q_bias)),
            layout,
            slots: AttentionSlots { q_bias, v_bias, scale_mul },
            dout: n.values(rows * width),
            differentiable: true,
        }
    }

    pub(super) fn formula(&self) -> Values {
        let get = |slot| self.layout.get(slot);
        let AttentionSlots { q_bias, v_bias, scale_mul } = self.slots;
        self.formula_at(&self.qkv, &get(q_bias), &get(v_bias), &get(scale_mul))
    }

    /// Scores are products of unit vectors times the factor of the head, which multiplies their
    /// errors as well; a short q or k is normalised by a factor of up to four.
    pub(super) fn largest_factor(&self) -> f64 {
        let largest = self.layout.get(self.slots.scale_mul).iter().fold(0.0, |a: f64, &b| a.max(b));
        4.0 * exp(largest.min(SCALE_MUL_MAX))
    }

    /// One sample alone.
    pub(super) fn sample(&self, b: usize) -> Self {
        let (qkv, out) = (self.qkv.len() / self.dims.batch, self.dout.len() / self.dims.batch);
        Self {
            dims: AttentionDims { batch: 1, ..self.dims },
            qkv: self.qkv[b * qkv..][..qkv].to_vec(),
            dout: self.dout[b * out..][..out].to_vec(),
            ..self.clone()
        }
    }

    fn formula_at(&self, qkv: &[f64], q_bias: &[f64], v_bias: &[f64], scales: &[f64]) -> Values {
        let AttentionDims { batch, heads, head_dim: d, schedule } = self.dims;
        let (tokens, width) = (schedule.tokens(), heads * d);
        // Start of the vector `which` (q, k, v) of a token and head.
        let at = |b: usize, l: usize, which: usize, h: usize| {
            ((b * tokens + l) * 3 + which) * width + h * d
        };
        let mut values = Values {
            qkv: qkv.to_vec(),
            norms: vec![0.0; batch * tokens * 2 * heads],
            lse: vec![0.0; batch * heads * tokens],
            out: vec![0.0; batch * tokens * width],
        };
        for (b, l, h) in places(batch, tokens, heads) {
            let scale = exp(scales[h].min(SCALE_MUL_MAX));
            let (q, k, v) = (at(b, l, 0, h), at(b, l, 1, h), at(b, l, 2, h));
            for i in 0..d {
                values.qkv[q + i] += q_bias[h * d + i];
                values.qkv[v + i] += v_bias[h * d + i];
            }
            for (which, start, scale) in [(0, q, scale), (1, k, 1.0)] {
                let norm = norm(&values.qkv[start..start + d], NORMALIZE_EPS);
                values.norms[((b * tokens + l) * 2 + which) * heads + h] = norm;
                values.qkv[start..start + d].iter_mut().for_each(|x| *x *= scale / norm);
            }
        }
        for (b, l, h) in places(batch, tokens, heads) {
            let q = &values.qkv[at(b, l, 0, h)..][..d];
            let scores: Vec<f64> = (0..schedule.visible(l))
                .map(|past| dot(q, &values.qkv[at(b, past, 1, h)..][..d]))
                .collect();
            let lse = log_sum_exp(&scores);
            values.lse[(b * heads + h) * tokens + l] = lse;
            for (past, score) in scores.iter().enumerate() {
                let p = exp(score - lse);
                for i in 0..d {
                    values.out[(b * tokens + l) * width + h * d + i] +=
                        p * values.qkv[at(b, past, 2, h) + i];
                }
            }
        }
        values
    }
}

/// Draws random q, k and v such that q + q_bias and k have a length of at least a quarter.
fn draw_qkv(n: &mut Numbers, rows: usize, (heads, d): (usize, usize), q_bias: &[f64]) -> Vec<f64> {
    let mut qkv = Vec::with_capacity(rows * 3 * heads * d);
    while qkv.len() < rows * 3 * heads * d {
        let which = qkv.len() / (heads * d) % 3;
        let bias = &q_bias[qkv.len() % (heads * d)..][..d];
        let vector = n.values(d);
        let normalised: Vec<f64> = match which {
            0 => vector.iter().zip(bias).map(|(q, bias)| q + bias).collect(),
            _ => vector.clone(),
        };
        if norm(&normalised, 0.0) > 0.25 {
            qkv.extend(vector);
        }
    }
    qkv
}

fn places(
    batch: usize,
    tokens: usize,
    heads: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch).flat_map(move |b| (0..tokens).flat_map(move |l| (0..heads).map(move |h| (b, l, h))))
}

impl<B: TransformerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["attention"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let AttentionDims { batch, heads, head_dim, schedule } = self.dims;
        let (tokens, width) = (schedule.tokens(), heads * head_dim);
        let (norms, rows) = (batch * tokens * 2 * heads, batch * heads * tokens);
        let mut out = Outputs::default();
        let params = rig.params("params", &self.layout.values)?;
        let mut qkv = rig.activation("qkv", &self.qkv)?;
        let mut inverse = rig.blank_accum("inverse_norms", norms)?;
        let mut lse = rig.blank_accum("lse", rows)?;
        let mut y = rig.blank("out", batch * tokens * width)?;
        rig.backend.attention(
            self.dims,
            &mut qkv,
            &params,
            self.slots,
            &mut inverse,
            &mut lse,
            &mut y,
        )?;
        out.push("qkv in place", rig.read("qkv", &qkv, self.qkv.len())?);
        let lengths = rig.read_accum("inverse_norms", &inverse, norms)?;
        out.push("norms", lengths.iter().map(|v| 1.0 / v).collect());
        out.push("lse", rig.read_accum("lse", &lse, rows)?);
        out.push("out", rig.read("out", &y, self.dout.len())?);

        let dout = rig.activation("d_out", &self.dout)?;
        let y = rig.hand_over("out of backward", &y, self.dout.len())?;
        let qkv = rig.hand_over("qkv of backward", &qkv, self.qkv.len())?;
        let inverse = rig.hand_over_accum("inverse_norms of backward", &inverse, norms)?;
        let lse = rig.hand_over_accum("lse of backward", &lse, rows)?;
        let mut dqkv = rig.blank("dqkv", self.qkv.len())?;
        let mut grads = rig.accum("grads", start)?;
        rig.backend.attention_backward(
            self.dims, &dout, &y, &qkv, &inverse, &lse, &params, self.slots, &mut dqkv, &mut grads,
        )?;
        out.push("qkv", rig.read("dqkv", &dqkv, self.qkv.len())?);
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let values = self.formula();
        vec![
            Expected::near("qkv in place", values.qkv),
            Expected::near("norms", values.norms),
            Expected::near("lse", values.lse),
            Expected::near("out", values.out),
        ]
    }

    fn variables(&self) -> Vec<Variable> {
        if !self.differentiable {
            return Vec::new();
        }
        vec![
            Variable::activation("qkv", &self.qkv),
            Variable::parameter("q_bias", &self.layout, self.slots.q_bias),
            Variable::parameter("v_bias", &self.layout, self.slots.v_bias),
            Variable::parameter("scale_mul", &self.layout, self.slots.scale_mul),
        ]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        dot(&self.dout, &self.formula_at(&at[0], &at[1], &at[2], &at[3]).out)
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn amplification(&self) -> f64 {
        self.largest_factor()
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(self.sample(row))
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["out", "lse", "qkv in place", "norms", "qkv"]
    }
}

/// ln 4, the initial value of `scale_mul`.
pub(super) const INITIAL_SCALE: f64 = 1.386;

fn draw_dims(n: &mut Numbers, schedule: ScaleSchedule) -> AttentionDims {
    let (batch, heads, head_dim) = (n.between(1, 2), n.between(1, 2), n.between(2, 4));
    AttentionDims { batch, heads, head_dim, schedule }
}

/// Dimensions that divide nothing: no heads, or heads of size 0.
fn without_heads<B: TransformerOps>(
    backend: &B,
    heads: usize,
    head_dim: usize,
) -> Result<[Result<(), B::Error>; 2], B::Error> {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let dims = AttentionDims { batch: 1, heads, head_dim, schedule };
    let slot = |len| Slot { offset: 0, len };
    let (q_bias, scale_mul) = (slot(heads * head_dim), slot(heads));
    let slots = AttentionSlots { q_bias, v_bias: q_bias, scale_mul };
    let [mut qkv, mut out] = [backend.activation(64)?, backend.activation(64)?];
    let [mut norms, mut lse, mut grads] =
        [backend.accum(64)?, backend.accum(64)?, backend.accum(64)?];
    let (params, mut dqkv) = (Buffers::params(backend, 64)?, backend.activation(64)?);
    let forward = backend.attention(dims, &mut qkv, &params, slots, &mut norms, &mut lse, &mut out);
    let d_out = backend.activation(64)?;
    let backward = backend.attention_backward(
        dims, &d_out, &out, &qkv, &norms, &lse, &params, slots, &mut dqkv, &mut grads,
    );
    Ok([forward, backward])
}

/// Checks `attention` and `attention_backward`: schedules of one scale and more, square and not;
/// `scale_mul` below, near, at and above its ceiling; zero vectors; equal keys.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TransformerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "attention", case)?;
    let mut n = case.numbers("attention");
    let schedule = n.schedule();
    let dims = draw_dims(&mut n, schedule);
    verifier.verify(&Operands::draw(&mut n, dims, &[storable(INITIAL_SCALE), 0.5]))?;
    let one = ScaleSchedule::from_sides(&[1]).expect("one token");
    let dims = AttentionDims { batch: 3, ..draw_dims(&mut n, one) };
    verifier.verify(&Operands::draw(&mut n, dims, &[storable(INITIAL_SCALE)]))?;

    let two = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let dims = AttentionDims { batch: 1, heads: 2, head_dim: 3, schedule: two };
    let mut zero = Operands::draw(&mut n, dims, &[1.0]);
    // The first k is zero, and so is the first v; a zero q needs a bias of zero.
    zero.qkv[6..18].fill(0.0);
    zero.qkv[..3].fill(0.0);
    zero.layout.values[zero.slots.q_bias.range()][..3].fill(0.0);
    zero.differentiable = false;
    verifier.verify(&zero)?;
    let mut equal = Operands::draw(&mut n, dims, &[1.0]);
    let token = equal.qkv[..18].to_vec();
    equal.qkv = token.repeat(5);
    verifier.verify(&equal)?;

    // Scores of ±100, rounded to eight bits, leave nothing to compare.
    if !verifier.tolerance.narrow {
        verifier.verify(&Operands::draw(&mut n, dims, &[4.5, 5.0]))?;
        verifier.verify(&Operands::draw(&mut n, dims, &[1e4]))?;
        let mut ceiling = Operands::draw(&mut n, dims, &[SCALE_MUL_MAX]);
        ceiling.differentiable = false;
        verifier.verify(&ceiling)?;
    }
    for (heads, head_dim) in [(0, 3), (2, 0)] {
        let found =
            without_heads(backend, heads, head_dim).map_err(|e| refused("attention", &e))?;
        for (op, outcome) in [&["attention"], &["attention_backward"]].into_iter().zip(found) {
            shape_error(op, &format!("{heads} heads of {head_dim}"), outcome)?;
        }
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: TransformerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = AttentionDims { batch: 3, heads: 3, head_dim: 32, schedule: mid_schedule() };
    repeatable(backend, &Operands::draw(&mut case.numbers("attention"), dims, &[INITIAL_SCALE]))
}
