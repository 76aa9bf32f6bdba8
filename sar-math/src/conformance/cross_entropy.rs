//! `cross_entropy`: hard targets, with label smoothing and a weight per scale.

use super::case::{Case, Numbers, mid_schedule, storable};
use super::full_size::repeatable;
use super::math::{argmax, log_sum_exp};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, run, same_bits, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{Buffers, LossDims, LossOps, TargetRows, TokenLoss};
use crate::{MAX_SCALES, Scale, ScaleSchedule};
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

/// Vocabularies whose last codes are beyond what a register, a warp or a block takes at a time.
pub(super) const TAILS: [usize; 3] = [33, 257, 521];

/// A factor that makes weights as small as those of large steps. As a power of two it scales numbers exactly.
pub(super) const SMALL: f64 = 1.0 / (1 << 24) as f64;

/// Dimensions of two samples of one token.
pub(super) fn one_token(n: &mut Numbers, vocab: usize) -> LossDims {
    let schedule = ScaleSchedule::from_sides(&[1]).expect("one side");
    LossDims { batch: 2, vocab, ..draw_dims(n, schedule, 0.125) }
}

/// More samples, scales and tokens than one block or thread takes: five samples at a time, as many scales as there may
/// be, over a thousand tokens.
pub(super) fn wide_dims(n: &mut Numbers) -> LossDims {
    let mut scales = [Scale { height: 1, width: 1 }; MAX_SCALES];
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = Scale { height: 1 + i / 8, width: 1 + i };
    }
    let schedule = ScaleSchedule::new(&scales).expect("every scale grows over the one before");
    LossDims { batch: 10, vocab: 3, ..draw_dims(n, schedule, 0.125) }
}

/// The gradient of `with` must be that of `of` times [`SMALL`], to the bit: so much smaller are its weights.
pub(super) fn small_weights<B: Buffers, S: Subject<B>>(
    backend: &B,
    of: &S,
    with: &S,
) -> Result<(), Mismatch> {
    let gradient = |subject: &S| run(backend, subject, 0, 7.5, &[]);
    let (expected, found) = (gradient(of)?, gradient(with)?);
    let bits = |values: &[f64], times: f64| values.iter().map(|v| (v * times).to_bits()).collect();
    let expected: Vec<u64> = bits(expected.get("logits"), SMALL);
    let found: Vec<u64> = bits(found.get("logits"), 1.0);
    same_bits(of.ops()[0], "gradients of small weights", &expected, &found)
}

/// The gradients of `with`, whose logits of weight zero are no numbers, must be those of `of`, to the bit.
pub(super) fn excluded_rows<B: Buffers, S: Subject<B>>(
    backend: &B,
    of: &S,
    with: &S,
) -> Result<(), Mismatch> {
    let gradient = |subject: &S| run(backend, subject, 0, 7.5, &[]);
    let bits = |outputs: Outputs| outputs.get("logits").iter().map(|v| v.to_bits()).collect();
    let (expected, found): (Vec<u64>, Vec<u64>) = (bits(gradient(of)?), bits(gradient(with)?));
    let property = "gradients beside logits of weight zero that are not finite";
    same_bits(of.ops()[0], property, &expected, &found)
}

/// Replaces the logits of weight zero by ones that are not finite.
pub(super) fn broken(dims: &LossDims, logits: &mut [f64]) {
    let kinds = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for (row, l) in logits.chunks_mut(dims.vocab).enumerate() {
        if weight(dims, row) == 0.0 {
            l.fill(kinds[row % kinds.len()]);
        }
    }
}

/// Two scales, the last of weight zero.
pub(super) fn half_excluded(n: &mut Numbers, smoothing: f64) -> LossDims {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let mut dims = LossDims { vocab: n.between(2, 6), ..draw_dims(n, schedule, smoothing) };
    dims.weights[0] = 2.5;
    dims.weights[1] = 0.0;
    dims
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
    let clean = Operands::draw(&mut n, dims);
    let mut with = clean.clone();
    broken(&dims, &mut with.logits);
    excluded_rows(backend, &clean, &with)?;
    let mut with = clean.clone();
    with.dims.weights.iter_mut().for_each(|weight| *weight *= SMALL);
    small_weights(backend, &clean, &with)?;
    let outcome = too_few_targets(backend, dims);
    shape_error(&["cross_entropy"], "fewer targets than tokens and shift", outcome)?;
    impossible(backend, &clean)?;
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
