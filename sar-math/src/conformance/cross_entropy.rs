//! `cross_entropy`: hard targets, with label smoothing and a weight per scale.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::loss_rows::{
    TAILS, Weighted, draw_dims, extreme_logits, half_excluded, hand_over, in_proportion,
    of_samples, one_token, parts, stored_lse, target_rows, token_loss, unweighted, weight,
    wide_dims,
};
use super::math::{argmax, log_sum_exp};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{LossDims, LossOps, TargetRows, TokenLoss};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: LossDims,
    logits: Vec<f64>,
    targets: Vec<u32>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: LossDims) -> Self {
        let rows = dims.batch * dims.schedule.tokens();
        let logits = n.values(rows * dims.vocab);
        let targets = n.ids(dims.batch * dims.targets.tokens, dims.vocab);
        Self { dims, logits, targets }
    }

    /// The target of each row of the logits.
    fn target_ids(&self) -> impl Iterator<Item = usize> {
        target_rows(&self.dims).map(|row| self.targets[row] as usize)
    }

    /// `lse − (1−ε)·l_target − ε·mean(l)`.
    fn losses(&self, logits: &[f64]) -> Vec<f64> {
        let (v, smoothing) = (self.dims.vocab, self.dims.smoothing);
        let rows = logits.chunks(v).zip(self.target_ids());
        rows.map(|(l, target)| {
            let mean = l.iter().sum::<f64>() / v as f64;
            log_sum_exp(l) - (1.0 - smoothing) * l[target] - smoothing * mean
        })
        .collect()
    }
}

impl<B: LossOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["cross_entropy"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let rows = self.logits.len() / self.dims.vocab;
        let width = self.dims.schedule.tokens() * self.dims.vocab;
        let mut out = Outputs::default();
        let targets = rig.ids("targets", &self.targets)?;
        let mut loss = token_loss(rig, rows, false)?;
        let mut afterwards = Vec::new();
        for (dims, samples) in parts(&self.dims) {
            let logits = of_samples(&self.logits, &samples, width);
            let device = rig.activation("logits", &logits)?;
            rig.backend.cross_entropy(&dims, &device, &targets, &mut loss)?;
            afterwards.extend(rig.read("logits", &device, logits.len())?);
        }
        out.push("loss", rig.read_accum("loss", &loss.loss_bl, rows)?);
        out.push("hits", rig.read_accum("hits", &loss.hits_bl, rows)?);
        out.push("lse", rig.read_accum("lse", &loss.lse_bl, rows)?);
        out.push("logits of forward", afterwards);

        let targets = rig.ids("targets of backward", &self.targets)?;
        let saved = hand_over(rig, &loss, rows, false)?;
        let mut dlogits = Vec::new();
        for (dims, samples) in parts(&self.dims) {
            let logits = of_samples(&self.logits, &samples, width);
            let mut device = rig.activation("logits of backward", &logits)?;
            rig.backend.cross_entropy_backward(&dims, &mut device, &targets, &saved)?;
            dlogits.extend(rig.read("dlogits", &device, logits.len())?);
        }
        out.push("dlogits of weight zero", unweighted(&self.dims, &dlogits));
        out.push("logits", dlogits);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let rows = self.logits.chunks(self.dims.vocab);
        let hit = |(l, target): (&[f64], usize)| f64::from(u8::from(argmax(l) == target));
        vec![
            Expected::near("loss", self.losses(&self.logits)),
            Expected::exact("hits", rows.clone().zip(self.target_ids()).map(hit).collect()),
            Expected::near("lse", rows.map(log_sum_exp).collect()),
            Expected::exact("logits of forward", self.logits.clone()),
            Expected::exact(
                "dlogits of weight zero",
                unweighted(&self.dims, &vec![0.0; self.logits.len()]),
            ),
        ]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::activation("logits", &self.logits)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let losses = self.losses(&at[0]);
        losses.iter().enumerate().map(|(row, loss)| weight(&self.dims, row) * loss).sum()
    }

    fn stored(&self) -> f64 {
        stored_lse(&self.dims, &self.logits)
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let targets = self.dims.targets.tokens;
        let len = self.dims.schedule.tokens() * self.dims.vocab;
        Some(Self {
            dims: LossDims { batch: 1, ..self.dims },
            logits: self.logits[row * len..][..len].to_vec(),
            targets: self.targets[row * targets..][..targets].to_vec(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["loss", "hits", "lse"]
    }
}

impl Weighted for Operands {
    fn dims(&mut self) -> &mut LossDims {
        &mut self.dims
    }

    fn logits(&mut self) -> &mut Vec<f64> {
        &mut self.logits
    }
}

/// Checks `cross_entropy` and its backward with the logits of a batch in two parts: with and
/// without smoothing, scales of weight zero (of logits that are no numbers, too), small weights, a vocabulary of one and
/// some that are no multiple of anything, saturated and tied logits, and what cannot be.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: LossOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "cross_entropy", case)?;
    let mut n = case.numbers("cross_entropy");
    for smoothing in [0.0, 0.125] {
        let schedule = n.schedule();
        let dims = draw_dims(&mut n, schedule, smoothing);
        verifier.verify(&Operands::draw(&mut n, dims))?;
    }
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    for smoothing in [0.0, 0.125] {
        let dims = LossDims { vocab: n.between(2, 6), ..draw_dims(&mut n, schedule, smoothing) };
        let mut extreme = Operands::draw(&mut n, dims);
        extreme.logits = extreme_logits(&mut n, dims.batch * schedule.tokens(), dims.vocab);
        verifier.verify(&extreme)?;
    }
    let dims = LossDims { vocab: 1, ..draw_dims(&mut n, schedule, 0.0) };
    verifier.verify(&Operands::draw(&mut n, dims))?;
    for vocab in TAILS {
        let dims = one_token(&mut n, vocab);
        verifier.verify(&Operands::draw(&mut n, dims))?;
    }
    let dims = half_excluded(&mut n, 0.125);
    let drawn = Operands::draw(&mut n, dims);
    in_proportion(backend, &drawn)?;
    let outcome = too_few_targets(backend, dims);
    shape_error(&["cross_entropy"], "fewer targets than tokens and shift", outcome)?;
    impossible(backend, &drawn)?;
    Ok(verifier.report())
}

/// Dimensions that no buffer has are shape errors; an id outside the vocabulary is an error or no number, and neither
/// ends the process.
fn impossible<B: LossOps>(backend: &B, of: &Operands) -> Result<(), Mismatch> {
    let forward = |dims: LossDims, ids: &[u32]| -> Result<Vec<f64>, B::Error> {
        let rows = of.logits.len() / of.dims.vocab;
        let rig = Rig::new(backend, 0, 7.5);
        let (logits, ids) = (rig.activation("logits", &of.logits)?, rig.ids("targets", ids)?);
        let mut loss = TokenLoss::new(backend, rows)?;
        backend.cross_entropy(&dims, &logits, &ids, &mut loss)?;
        rig.read_accum("loss", &loss.loss_bl, rows)
    };
    for (property, dims) in [
        ("no vocabulary", LossDims { vocab: 0, ..of.dims }),
        ("a batch beyond any buffer", LossDims { batch: usize::MAX, ..of.dims }),
        ("a vocabulary beyond any buffer", LossDims { vocab: usize::MAX, ..of.dims }),
        ("a first sample beyond any buffer", LossDims { first_sample: usize::MAX, ..of.dims }),
    ] {
        shape_error(&["cross_entropy"], property, forward(dims, &of.targets).map(drop))?;
    }
    let mut ids = of.targets.clone();
    ids.fill(of.dims.vocab as u32);
    match forward(of.dims, &ids) {
        Ok(losses) if !losses.iter().all(|loss| loss.is_nan()) => Err(Mismatch::outcome(
            "cross_entropy",
            "targets outside the vocabulary",
            "an error or losses that are no numbers",
            "losses",
        )),
        _ => Ok(()),
    }
}

fn too_few_targets<B: LossOps>(backend: &B, mut dims: LossDims) -> Result<(), B::Error> {
    dims.targets = TargetRows { tokens: dims.schedule.tokens() + 1, shift: 2 };
    let mut loss = TokenLoss::new(backend, 64)?;
    backend.cross_entropy(&dims, &backend.activation(64)?, &backend.ids(64)?, &mut loss)
}

/// All bits of two mid-size runs: 3 samples × 150 tokens and a vocabulary of 528, of which 16 codes are beyond full
/// warps; 10 samples of many scales.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: LossOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("cross_entropy");
    let dims = LossDims { batch: 3, vocab: 528, ..draw_dims(&mut n, mid_schedule(), 0.1) };
    let mut bits = repeatable(backend, &Operands::draw(&mut n, dims))?;
    let dims = wide_dims(&mut n);
    bits.extend(repeatable(backend, &Operands::draw(&mut n, dims))?);
    Ok(bits)
}
