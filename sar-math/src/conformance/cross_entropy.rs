//! `cross_entropy`: hard targets, with label smoothing and a weight per scale.

use super::case::{Case, Numbers, mid_schedule, storable};
use super::full_size::repeatable;
use super::math::{argmax, log_sum_exp};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{Buffers, LossDims, LossOps, TargetRows, TokenLoss};
use crate::{MAX_SCALES, ScaleSchedule};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

#[derive(Clone)]
struct Operands {
    dims: LossDims,
    logits: Vec<f64>,
    targets: Vec<u32>,
}

/// Draws random dimensions: a batch of one or more; the last scale, unless it is the first, may
/// have weight zero.
pub(super) fn draw_dims(n: &mut Numbers, schedule: ScaleSchedule, smoothing: f64) -> LossDims {
    let mut weights = [0.0; MAX_SCALES];
    for weight in &mut weights[..schedule.len()] {
        *weight = n.value() + 4.0;
    }
    if schedule.len() > 1 && n.flip() {
        weights[schedule.len() - 1] = 0.0;
    }
    let shift = n.between(0, 2);
    let targets = TargetRows { tokens: schedule.tokens() + shift + n.between(0, 2), shift };
    let (batch, vocab) = (n.between(1, 3), n.between(1, 9));
    LossDims { batch, first_sample: 0, schedule, vocab, smoothing, weights, targets }
}

/// The dimensions and samples of each part of a batch whose logits come in two parts, or in one if
/// the batch is a single sample.
pub(super) fn parts(dims: &LossDims) -> impl Iterator<Item = (LossDims, Range<usize>)> {
    let dims = *dims;
    let cuts = [0, dims.batch / 2, dims.batch];
    let ranges = [cuts[0]..cuts[1], cuts[1]..cuts[2]];
    ranges.into_iter().filter(|r| !r.is_empty()).map(move |samples| (dims.part(&samples), samples))
}

/// The values of `samples`, where each sample has `width` elements.
pub(super) fn of_samples(values: &[f64], samples: &Range<usize>, width: usize) -> Vec<f64> {
    values[samples.start * width..samples.end * width].to_vec()
}

/// The row of the target of each row of the logits.
pub(super) fn target_rows(dims: &LossDims) -> impl Iterator<Item = usize> + Clone {
    let LossDims { batch, schedule, targets, .. } = *dims;
    (0..batch).flat_map(move |b| {
        (0..schedule.tokens()).map(move |l| b * targets.tokens + l + targets.shift)
    })
}

/// The weight of a row of `[b, l]`.
pub(super) fn weight(dims: &LossDims, row: usize) -> f64 {
    let scale = dims.schedule.scale_of(row % dims.schedule.tokens());
    scale.map_or(0.0, |scale| dims.weights[scale])
}

/// The elements of `dlogits` that belong to scales of weight zero.
pub(super) fn unweighted(dims: &LossDims, dlogits: &[f64]) -> Vec<f64> {
    let rows = dlogits.chunks(dims.vocab).enumerate();
    rows.filter(|(row, _)| weight(dims, *row) == 0.0).flat_map(|(_, l)| l).copied().collect()
}

/// A backward takes probabilities as exp(l − lse) with the lse that was stored, so its rounding is
/// that of a number as large as the logits, times the weight.
pub(super) fn stored_lse(dims: &LossDims, logits: &[f64]) -> f64 {
    let largest = |all: &[f64]| all.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
    largest(&dims.weights) * largest(logits)
}

/// Room for the outputs; for `teacher_lse` only where it is asked for.
pub(super) fn token_loss<B: Buffers>(
    rig: &Rig<'_, B>,
    rows: usize,
    soft: bool,
) -> Result<TokenLoss<B>, B::Error> {
    let spare = || rig.backend.accum(rows);
    Ok(TokenLoss {
        loss_bl: rig.blank_accum("loss", rows)?,
        hits_bl: rig.blank_accum("hits", rows)?,
        lse_bl: rig.blank_accum("lse", rows)?,
        teacher_lse_bl: if soft { rig.blank_accum("teacher_lse", rows)? } else { spare()? },
    })
}

/// Copies what a forward left into new buffers for its backward.
pub(super) fn hand_over<B: Buffers>(
    rig: &Rig<'_, B>,
    from: &TokenLoss<B>,
    rows: usize,
    soft: bool,
) -> Result<TokenLoss<B>, B::Error> {
    let teacher = &from.teacher_lse_bl;
    Ok(TokenLoss {
        loss_bl: rig.backend.accum(rows)?,
        hits_bl: rig.backend.accum(rows)?,
        lse_bl: rig.hand_over_accum("lse of backward", &from.lse_bl, rows)?,
        teacher_lse_bl: if soft {
            rig.hand_over_accum("teacher_lse of backward", teacher, rows)?
        } else {
            rig.backend.accum(rows)?
        },
    })
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

/// Logits that saturate, tie and are all equal, row by row.
pub(super) fn extreme_logits(n: &mut Numbers, rows: usize, vocab: usize) -> Vec<f64> {
    let mut logits = Vec::new();
    for row in 0..rows {
        let mut l = n.values(vocab);
        match row % 5 {
            0 => l.fill(storable(1e4)),
            1 => l.fill(storable(-1e4)),
            2 => l[n.between(0, vocab - 1)] = storable(1e4),
            3 => l[n.between(0, vocab - 1)] = storable(-1e4),
            // The largest occurs twice: the first of the two is the prediction.
            _ => (l[0], l[vocab - 1]) = (6.0, 6.0),
        }
        logits.extend(l);
    }
    logits
}

/// Checks `cross_entropy` and its backward with the logits of a batch in two parts: with and
/// without smoothing, scales of weight zero, a vocabulary of one, saturated and tied logits.
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
    let outcome = too_few_targets(backend, dims);
    shape_error(&["cross_entropy"], "fewer targets than tokens and shift", outcome)?;
    Ok(verifier.report())
}

fn too_few_targets<B: LossOps>(backend: &B, mut dims: LossDims) -> Result<(), B::Error> {
    dims.targets = TargetRows { tokens: dims.schedule.tokens() + 1, shift: 2 };
    let mut loss = TokenLoss::new(backend, 64)?;
    backend.cross_entropy(&dims, &backend.activation(64)?, &backend.ids(64)?, &mut loss)
}

/// All bits of a mid-size run: 3 samples × 150 tokens, a vocabulary of 512.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: LossOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("cross_entropy");
    let dims = LossDims { batch: 3, vocab: 512, ..draw_dims(&mut n, mid_schedule(), 0.1) };
    repeatable(backend, &Operands::draw(&mut n, dims))
}
