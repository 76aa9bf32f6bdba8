//! Cross-entropy against a hard target, with label smoothing.
//!
//! With m the largest logit and s = Σ exp(x − m): loss = ln s − (1−ε)(x_t − m) − ε/V Σ (x − m) and
//! dlogits = weight·(exp(x − lse) − (1−ε)[v = t] − ε/V). Written in differences to m, so that an
//! offset common to all logits costs no precision.
//!
//! Rows are independent of each other, so any split over threads gives the same bits.

use crate::Element;
use crate::simd::{self, sum1, vectorized};
use rayon::prelude::*;
use sar_math::backend::LossDims;

/// Logits that one task works on: large enough to pay for the task, small enough for the L2 cache.
const TASK_LOGITS: usize = 1 << 15;

/// What forward writes per row.
pub(crate) struct RowLosses<'a, T> {
    pub loss: &'a mut [T],
    pub hits: &'a mut [T],
    pub lse: &'a mut [T],
}

/// Rows of one task.
pub(crate) fn rows_per_task(vocab: usize) -> usize {
    (TASK_LOGITS / vocab.max(1)).max(1)
}

/// The gradient factor of the row that lies `row` rows into `[b, l]`.
pub(crate) fn row_weight(dims: &LossDims, row: usize) -> f64 {
    let token = row % dims.schedule.tokens().max(1);
    let scale = dims.schedule.scale_of(token).unwrap_or(0);
    dims.weights.get(scale).copied().unwrap_or(0.0)
}

/// Losses, hits and log-sum-exps; targets have been checked to lie in the vocabulary.
pub(crate) fn forward<T: Element>(
    dims: &LossDims,
    logits: &[T],
    targets: &[u32],
    out: RowLosses<'_, T>,
) {
    let (vocab, tokens, smoothing) = (dims.vocab, dims.schedule.tokens(), dims.smoothing);
    let rows = rows_per_task(vocab);
    (
        logits.par_chunks(rows * vocab),
        out.loss.par_chunks_mut(rows),
        out.hits.par_chunks_mut(rows),
        out.lse.par_chunks_mut(rows),
    )
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (logits, loss, hits, lse))| {
            vectorized!({
                for (r, x) in logits.chunks_exact(vocab).enumerate() {
                    let target = targets[dims.targets.of(task * rows + r, tokens)] as usize;
                    let max = simd::max(x);
                    let log_sum = sum_exp(x, max).ln();
                    lse[r] = max + log_sum;
                    loss[r] = log_sum - smoothed(x, target, max, smoothing);
                    hits[r] = hit(x, target, max);
                }
            });
        });
}

/// In place: logits become `weight·(softmax − target)`.
pub(crate) fn backward<T: Element>(
    dims: &LossDims,
    logits_to_dlogits: &mut [T],
    targets: &[u32],
    lse: &[T],
) {
    let (vocab, rows) = (dims.vocab, rows_per_task(dims.vocab));
    let tokens = dims.schedule.tokens();
    let even = T::of(dims.smoothing / vocab as f64);
    let peak = T::of(1.0 - dims.smoothing);
    logits_to_dlogits.par_chunks_mut(rows * vocab).enumerate().for_each(|(task, x)| {
        vectorized!({
            for (r, x) in x.chunks_exact_mut(vocab).enumerate() {
                let row = task * rows + r;
                let weight = T::of(row_weight(dims, row));
                if weight == T::zero() {
                    // Not a product: a row that does not count may hold NaN.
                    x.fill(T::zero());
                    continue;
                }
                let lse = lse[row];
                for x in x.iter_mut() {
                    *x = weight * (exp(*x - lse) - even);
                }
                x[targets[dims.targets.of(row, tokens)] as usize] -= weight * peak;
            }
        });
    });
}

/// Exponential of one number.
#[inline(always)]
pub(crate) fn exp<T: Element>(x: T) -> T {
    x.vexp()
}

/// Index of the largest number, the lowest on ties; NaN counts as −∞, and the index is 0 where
/// nothing is above that.
#[inline(always)]
pub(crate) fn argmax<T: Element>(x: &[T]) -> usize {
    let largest = simd::max(x);
    // A −∞ after a NaN would be the first to equal it, though both count the same.
    if largest == T::neg_infinity() { 0 } else { first_equal(x, largest).unwrap_or(0) }
}

/// Elements that are compared before looking whether any was equal.
pub(crate) const BLOCK: usize = 64;

/// Index at which `value` first occurs.
#[inline(always)]
pub(crate) fn first_equal<T: Element>(x: &[T], value: T) -> Option<usize> {
    for (b, block) in x.chunks(BLOCK).enumerate() {
        // No branch inside, so that elements are compared a vector at a time.
        if block.iter().fold(false, |any, &x| any | (x == value)) {
            return block.iter().position(|&x| x == value).map(|i| b * BLOCK + i);
        }
    }
    None
}

/// Σ exp(x − max); at least 1, since one term is exp(0).
#[inline(always)]
pub(crate) fn sum_exp<T: Element>(x: &[T], max: T) -> T {
    sum1(
        x,
        #[inline(always)]
        |x| exp(x - max),
    )
}

/// The smoothed target's mean of x − max.
#[inline(always)]
fn smoothed<T: Element>(x: &[T], target: usize, max: T, smoothing: f64) -> T {
    let peak = x[target] - max;
    if smoothing == 0.0 {
        return peak;
    }
    let sum = sum1(
        x,
        #[inline(always)]
        |x| x - max,
    );
    T::of((1.0 - smoothing) * peak.wide() + smoothing / x.len() as f64 * sum.wide())
}

/// 1 where `target` is the argmax.
#[inline(always)]
fn hit<T: Element>(x: &[T], target: usize, max: T) -> T {
    let is_first = x[target] == max && first_equal(&x[..target], max).is_none();
    if is_first { T::one() } else { T::zero() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::backend::TargetRows;
    use sar_math::{MAX_SCALES, ScaleSchedule};

    /// A few roundings of f64.
    const ROUNDING: f64 = 1e-14;

    fn run(vocab: usize, smoothing: f64, logits: &[f64], targets: &[u32]) -> [Vec<f64>; 3] {
        let rows = targets.len();
        let [mut loss, mut hits, mut lse] = [vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]];
        let out = RowLosses { loss: &mut loss, hits: &mut hits, lse: &mut lse };
        let schedule = ScaleSchedule::from_sides(&[1]).unwrap();
        let targets_at = TargetRows::beside(&schedule);
        let weights = [1.0; MAX_SCALES];
        let dims = LossDims {
            batch: rows,
            first_sample: 0,
            schedule,
            vocab,
            smoothing,
            weights,
            targets: targets_at,
        };
        forward(&dims, logits, targets, out);
        [loss, hits, lse]
    }

    #[test]
    fn even_logits_cost_the_log_of_the_vocabulary() {
        let [loss, hits, lse] = run(20, 0.3, &[1000.0; 40], &[0, 1]);
        for (loss, lse) in loss.iter().zip(&lse) {
            assert!((loss - 20.0f64.ln()).abs() < ROUNDING);
            assert!((lse - 1000.0 - 20.0f64.ln()).abs() < 1e3 * ROUNDING);
        }
        assert_eq!(hits, [1.0, 0.0], "a tie goes to the lowest index");
    }

    #[test]
    fn smoothing_mixes_in_the_mean() {
        let logits = [0.0, 1.0, -2.0, 0.5];
        let lse = logits.iter().map(|x: &f64| x.exp()).sum::<f64>().ln();
        let want = lse - 0.9 * 1.0 - 0.1 * (-0.5 / 4.0);
        assert!((run(4, 0.1, &logits, &[1])[0][0] - want).abs() < ROUNDING);
    }

    #[test]
    fn nan_shows_in_the_loss_and_not_in_rows_that_do_not_count() {
        let mut logits = vec![0.5; 5 * 3];
        logits[0] = f64::NAN;
        let targets = [0, 1, 2, 0, 1];
        let [loss, _, lse] = run(3, 0.0, &logits, &targets);
        assert!(loss[0].is_nan() && loss[1..].iter().all(|l| l.is_finite()));
        let mut weights = [0.0; MAX_SCALES];
        weights[1] = 0.25;
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let rows = TargetRows::beside(&schedule);
        let dims = LossDims {
            batch: 1,
            first_sample: 0,
            schedule,
            vocab: 3,
            smoothing: 0.0,
            weights,
            targets: rows,
        };
        backward(&dims, &mut logits, &targets, &lse);
        assert_eq!(logits[..3], [0.0; 3]);
        let third = 1.0 / 3.0;
        for (got, want) in logits[3..6].iter().zip([third, third - 1.0, third]) {
            assert!((got - 0.25 * want).abs() < ROUNDING);
        }
    }

    #[test]
    fn argmax_is_the_first_of_the_largest() {
        let mut x = vec![0.0f32; 200];
        x[150] = 3.0;
        x[77] = 3.0;
        assert_eq!(argmax(&x), 77);
        assert_eq!(argmax(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(argmax(&[f32::NAN, -1.0]), 1);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 0);
    }
}
