//! `adamw`: one step of AdamW with clipping, over slots of a flat buffer.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::{exp, ln, sqrt};
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{AdamW, OptimizerOps, Slot};
use alloc::vec;
use alloc::vec::Vec;

struct Operands {
    hyper: AdamW,
    layout: Layout,
    decayed: Vec<Slot>,
    plain: Vec<Slot>,
    grads: Vec<f64>,
    norm: f64,
    first: Vec<f64>,
    second: Vec<f64>,
}

/// Parameters, first and second moments.
struct State([Vec<f64>; 3]);

impl Operands {
    fn draw(n: &mut Numbers, hyper: AdamW, sizes: &[usize], norm: f64) -> Self {
        let mut layout = Layout::default();
        let (mut decayed, mut plain) = (Vec::new(), Vec::new());
        for (i, &size) in sizes.iter().enumerate() {
            let slot = layout.draw(n, size);
            if i % 2 == 0 { decayed.push(slot) } else { plain.push(slot) }
        }
        let len = layout.values.len();
        let (grads, first) = (n.values(len), n.values(len));
        let second = n.values(len).iter().map(|v| v.abs() + 0.125).collect();
        Self { hyper, layout, decayed, plain, grads, norm, first, second }
    }

    fn formula(&self) -> State {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step, clip } = self.hyper;
        let State([mut params, mut first, mut second]) =
            State([self.layout.values.clone(), self.first.clone(), self.second.clone()]);
        if !self.norm.is_finite() {
            return State([params, first, second]);
        }
        let factor = if clip > 0.0 { (clip / (self.norm + 1e-6)).min(1.0) } else { 1.0 };
        let correction = |beta: f64| 1.0 - exp(step as f64 * ln(beta));
        let all = |slots: &[Slot], decay| slots.iter().map(|&s| (s, decay)).collect::<Vec<_>>();
        for (slot, decay) in [all(&self.decayed, weight_decay), all(&self.plain, 0.0)].concat() {
            for i in slot.range() {
                let g = factor * self.grads[i];
                first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
                let root = sqrt(second[i] / correction(beta2)) + eps;
                params[i] -= lr * decay * params[i];
                params[i] -= lr * first[i] / correction(beta1) / root;
            }
        }
        State([params, first, second])
    }
}

impl<B: OptimizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["adamw"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.layout.values.len();
        let mut out = Outputs::default();
        let grads = rig.accum("grads", &self.grads)?;
        let norm = rig.accum("norm", &[self.norm])?;
        let mut first = rig.accum("first_moment", &self.first)?;
        let mut second = rig.accum("second_moment", &self.second)?;
        let mut params = rig.params("params", &self.layout.values)?;
        rig.backend.adamw(
            &self.hyper,
            &self.decayed,
            &self.plain,
            &grads,
            &norm,
            &mut first,
            &mut second,
            &mut params,
        )?;
        let params = rig.read_params("params", &params, len)?;
        // The step is compared separately from the parameters, of which it is only a small part.
        let moved = params.iter().zip(&self.layout.values).map(|(a, b)| a - b);
        out.push("step", moved.collect());
        out.push("params", params);
        out.push("first moment", rig.read_accum("first_moment", &first, len)?);
        out.push("second moment", rig.read_accum("second_moment", &second, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let State([params, first, second]) = self.formula();
        let step = params.iter().zip(&self.layout.values).map(|(a, b)| a - b).collect();
        let expect = |name, values| {
            if self.norm.is_finite() {
                Expected::near(name, values)
            } else {
                Expected::exact(name, values)
            }
        };
        vec![
            expect("step", step),
            expect("params", params),
            expect("first moment", first),
            expect("second moment", second),
        ]
    }
}

/// The published constants and others, at some step.
fn hyper(n: &mut Numbers, clip: f64) -> AdamW {
    AdamW {
        lr: 0.125,
        beta1: [0.9, 0.5][n.between(0, 1)],
        beta2: [0.95, 0.75][n.between(0, 1)],
        eps: [1e-8, 1e-3][n.between(0, 1)],
        weight_decay: [0.05, 0.5][n.between(0, 1)],
        step: n.between(1, 200) as u64,
        clip,
    }
}

/// Checks `adamw`: with and without clipping, the first step and later ones, elements in no slot,
/// and that nothing at all changes where the norm is not finite.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: OptimizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "adamw", case)?;
    let mut n = case.numbers("adamw");
    for (clip, norm) in
        [(0.0, 8.0), (2.0, 8.0), (2.0, 1.5), (2.0, f64::NAN), (0.0, f64::INFINITY), (1.0, 0.0)]
    {
        let sizes = [n.between(1, 9), n.between(1, 5), n.between(1, 7)];
        let hyper = hyper(&mut n, clip);
        verifier.verify(&Operands::draw(&mut n, hyper, &sizes, norm))?;
    }
    let first = AdamW { step: 1, ..hyper(&mut n, 0.0) };
    let mut fresh = Operands::draw(&mut n, first, &[6], 3.0);
    fresh.first.fill(0.0);
    fresh.second.fill(0.0);
    // A parameter that nothing has used, and one that is hardly used, where eps matters in the
    // denominator.
    if let Some(slot) = fresh.decayed.first() {
        fresh.grads[slot.offset] = 0.0;
        fresh.grads[slot.offset + 1] = 1.0 / f64::from(1 << 20);
    }
    for eps in [1e-8, 1e-3] {
        fresh.hyper.eps = eps;
        verifier.verify(&fresh)?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 120,000 parameters.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: OptimizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("adamw");
    let hyper = hyper(&mut n, 2.0);
    repeatable(backend, &Operands::draw(&mut n, hyper, &[80_000, 33_333, 6_667], 5.0))
}
