//! What the checks of both cross-entropies share: dimensions, rows and weights.

use super::case::{Numbers, storable};
use super::rig::Rig;
use super::subject::{Subject, run, same_bits};
use super::verdict::Mismatch;
use crate::backend::{Buffers, LossDims, TargetRows, TokenLoss};
use crate::{MAX_SCALES, Scale, ScaleSchedule};
use alloc::vec::Vec;
use core::ops::Range;

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
const SMALL: f64 = 1.0 / (1 << 24) as f64;

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

/// The logits of a loss, and how much their tokens count.
pub(super) trait Weighted: Clone {
    /// The dimensions, with the weights.
    fn dims(&mut self) -> &mut LossDims;
    /// The logits.
    fn logits(&mut self) -> &mut Vec<f64>;
}

/// Checks that gradients are in proportion to their weights, to the bit: where these are as small as training's, and where
/// they are zero and the logits are no numbers. `of` are the operands of [`half_excluded`].
pub(super) fn in_proportion<B: Buffers, S: Subject<B> + Weighted>(
    backend: &B,
    of: &S,
) -> Result<(), Mismatch> {
    let gradient = |subject: &S| -> Result<Vec<f64>, Mismatch> {
        Ok(run(backend, subject, 0, 7.5, &[])?.get("logits").to_vec())
    };
    let bits = |values: &[f64]| -> Vec<u64> { values.iter().map(|v| v.to_bits()).collect() };
    let expected = gradient(of)?;
    let mut with = of.clone();
    let dims = *with.dims();
    broken(&dims, with.logits());
    let property = "gradients beside logits of weight zero that are not finite";
    same_bits(of.ops()[0], property, &bits(&expected), &bits(&gradient(&with)?))?;
    let mut with = of.clone();
    with.dims().weights.iter_mut().for_each(|weight| *weight *= SMALL);
    let smaller: Vec<f64> = expected.iter().map(|v| v * SMALL).collect();
    same_bits(of.ops()[0], "gradients of small weights", &bits(&smaller), &bits(&gradient(&with)?))
}

/// Replaces the logits of weight zero by ones that are not finite.
fn broken(dims: &LossDims, logits: &mut [f64]) {
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
