//! Cross-entropy against the softmax of a teacher, which takes no gradient.
//!
//! loss = −Σ softmax(teacher)·log softmax(x) and dlogits = weight·(softmax(x) − softmax(teacher)).

use super::cross_entropy::{
    RowLosses, argmax, exp, first_equal, row_weight, rows_per_task, sum_exp,
};
use crate::Element;
use crate::simd::{self, exp_sum, sum2, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::LossDims;

/// Losses, hits and the log-sum-exps of both.
pub(crate) fn forward<T: Element>(
    dims: &LossDims,
    logits: &[T],
    teacher: &[T],
    out: RowLosses<'_, T>,
    teacher_lse: &mut [T],
) {
    let (vocab, tokens, rows) = (dims.vocab, dims.schedule.tokens(), rows_per_task(dims.vocab));
    (
        logits.par_chunks(rows * vocab),
        out.loss.par_chunks_mut(rows),
        out.hits.par_chunks_mut(rows),
        out.lse.par_chunks_mut(rows),
        teacher_lse.par_chunks_mut(rows),
    )
        .into_par_iter()
        .enumerate()
        .for_each(|(task, (logits, loss, hits, lse, teacher_lse))| {
            with_scratch(vocab, |p| {
                vectorized!({
                    for (r, x) in logits.chunks_exact(vocab).enumerate() {
                        let at = dims.targets.of(task * rows + r, tokens) * vocab;
                        let t = &teacher[at..at + vocab];
                        let max = simd::max(x);
                        let log_sum = sum_exp(x, max).ln();
                        let teacher_max = simd::max(t);
                        p.copy_from_slice(t);
                        let teacher_sum = exp_sum(p, teacher_max);
                        let product = expectation(p, x, max);
                        lse[r] = max + log_sum;
                        teacher_lse[r] = teacher_max + teacher_sum.ln();
                        loss[r] = log_sum - product / teacher_sum;
                        let same = first_equal(x, max) == Some(argmax(t));
                        hits[r] = if same { T::one() } else { T::zero() };
                    }
                });
            });
        });
}

/// In place: logits become `weight·(softmax(x) − softmax(teacher))`.
pub(crate) fn backward<T: Element>(
    dims: &LossDims,
    logits_to_dlogits: &mut [T],
    teacher: &[T],
    lse: &[T],
    teacher_lse: &[T],
) {
    let (vocab, rows) = (dims.vocab, rows_per_task(dims.vocab));
    let tokens = dims.schedule.tokens();
    logits_to_dlogits.par_chunks_mut(rows * vocab).enumerate().for_each(|(task, x)| {
        vectorized!({
            for (r, x) in x.chunks_exact_mut(vocab).enumerate() {
                let row = task * rows + r;
                let at = dims.targets.of(row, tokens) * vocab;
                let t = &teacher[at..at + vocab];
                let weight = T::of(row_weight(dims, row));
                if weight == T::zero() {
                    // Not a product: a row that does not count may hold NaN.
                    x.fill(T::zero());
                    continue;
                }
                let (lse, teacher_lse) = (lse[row], teacher_lse[row]);
                for (x, &t) in x.iter_mut().zip(t) {
                    *x = weight * (exp(*x - lse) - exp(t - teacher_lse));
                }
            }
        });
    });
}

/// Σ p·(x − max).
#[inline(always)]
fn expectation<T: Element>(p: &[T], x: &[T], max: T) -> T {
    sum2(
        p,
        x,
        #[inline(always)]
        |p, x| p * (x - max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::backend::TargetRows;
    use sar_math::{MAX_SCALES, ScaleSchedule};

    /// A rounding or two of f64, of numbers of order 1.
    const ROUNDING: f64 = 1e-15;

    #[test]
    fn loss_and_gradient_of_two_codes() {
        // softmax(ln 3, 0) = (3/4, 1/4); softmax(0, 0) = (1/2, 1/2).
        let (x, t) = (vec![0.0f64, 0.0], vec![3.0f64.ln(), 0.0]);
        let [mut loss, mut hits, mut lse, mut teacher_lse] = [[0.0]; 4];
        let out = RowLosses { loss: &mut loss, hits: &mut hits, lse: &mut lse };
        let schedule = ScaleSchedule::from_sides(&[1]).unwrap();
        let targets = TargetRows::beside(&schedule);
        let weights = [2.0; MAX_SCALES];
        let dims = LossDims {
            batch: 1,
            first_sample: 0,
            schedule,
            vocab: 2,
            smoothing: 0.0,
            weights,
            targets,
        };
        forward(&dims, &x, &t, out, &mut teacher_lse);
        assert!((loss[0] - 2.0f64.ln()).abs() < ROUNDING);
        assert_eq!(hits, [1.0]);
        let mut dx = x;
        backward(&dims, &mut dx, &t, &lse, &teacher_lse);
        assert!((dx[0] + 0.5).abs() < ROUNDING && (dx[1] - 0.5).abs() < ROUNDING);
    }
}
