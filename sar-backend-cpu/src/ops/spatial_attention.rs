//! One-head attention over all positions of a map, forward and backward, one task per sample.

use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::{exp_sum, max, sum1, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::MapDims;

/// P = softmax(qᵀk·c^−½), y = v·Pᵀ.
pub(crate) fn forward<T: Element>(
    d: MapDims,
    q: &[T],
    k: &[T],
    v: &[T],
    probabilities: &mut [T],
    y: &mut [T],
) {
    let (c, n) = (d.channels, d.height * d.width);
    if c * n == 0 {
        return;
    }
    let scale = T::of((c as f64).sqrt().recip());
    // Fewer samples than threads: large maps, of which one or two are processed at a time.
    let apart = q.len() / (c * n) < rayon::current_num_threads();
    y.par_chunks_mut(c * n)
        .zip(probabilities.par_chunks_mut(n * n))
        .zip(q.par_chunks(c * n))
        .zip(k.par_chunks(c * n).zip(v.par_chunks(c * n)))
        .for_each(|(((y, p), q), (k, v))| {
            let (q, k, v) = (matrix(q, c, n), matrix(k, c, n), matrix(v, c, n));
            matmul(scale, q.t(), k, Onto::Nothing, matrix_mut(p, n, n), apart);
            for row in p.chunks_exact_mut(n) {
                vectorized!(softmax(row));
            }
            matmul(T::one(), v, matrix(p, n, n).t(), Onto::Nothing, matrix_mut(y, c, n), apart);
        });
}

#[inline(always)]
fn softmax<T: Element>(row: &mut [T]) {
    let shift = max(row);
    let inverse = exp_sum(row, shift).recip();
    for v in row.iter_mut() {
        *v *= inverse;
    }
}

/// Backward of [`forward`]; `d_qkv` are overwritten.
pub(crate) fn backward<T: Element>(
    d: MapDims,
    dy: &[T],
    (q, k, v): (&[T], &[T], &[T]),
    probabilities: &[T],
    (dq, dk, dv): (&mut [T], &mut [T], &mut [T]),
) {
    let (c, n) = (d.channels, d.height * d.width);
    if c * n == 0 {
        return;
    }
    let scale = T::of((c as f64).sqrt().recip());
    let one = T::one();
    let len = c * n;
    let inputs = q.par_chunks(len).zip(k.par_chunks(len).zip(v.par_chunks(len)));
    let outputs = dq.par_chunks_mut(len).zip(dk.par_chunks_mut(len).zip(dv.par_chunks_mut(len)));
    let given = dy.par_chunks(len).zip(probabilities.par_chunks(n * n));
    inputs.zip(outputs).zip(given).for_each(|(((q, (k, v)), (dq, (dk, dv))), (dy, p))| {
        let (q, k, v) = (matrix(q, c, n), matrix(k, c, n), matrix(v, c, n));
        let dy = matrix(dy, c, n);
        with_scratch(n * n, |ds: &mut [T]| {
            matmul(one, dy, matrix(p, n, n), Onto::Nothing, matrix_mut(dv, c, n), false);
            matmul(one, dy.t(), v, Onto::Nothing, matrix_mut(ds, n, n), false);
            for (ds, p) in ds.chunks_exact_mut(n).zip(p.chunks_exact(n)) {
                vectorized!({
                    for (ds, &p) in ds.iter_mut().zip(p) {
                        *ds *= p;
                    }
                    let dot = sum1(ds, |v| v);
                    for (ds, &p) in ds.iter_mut().zip(p) {
                        *ds -= p * dot;
                    }
                });
            }
            let ds = matrix(ds, n, n);
            matmul(scale, k, ds.t(), Onto::Nothing, matrix_mut(dq, c, n), false);
            matmul(scale, q, ds, Onto::Nothing, matrix_mut(dk, c, n), false);
        });
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, central_difference};
    use super::*;
    use proptest::prelude::*;

    /// A few roundings of f64, of numbers of order 1.
    const ROUNDING: f64 = 1e-14;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn backward_is_the_gradient(
            seed: u64, batch in 1..3usize, channels in 1..5usize,
            height in 1..4usize, width in 1..4usize,
        ) {
            let d = MapDims { batch, channels, height, width };
            let (len, n) = (d.len(), height * width);
            let mut random = Random(seed);
            let (q, k, v) = (random.values(len), random.values(len), random.values(len));
            let dy = random.values(len);
            let run = |q: &[f64], k: &[f64], v: &[f64]| {
                let (mut y, mut p) = (vec![f64::NAN; len], vec![f64::NAN; batch * n * n]);
                forward(d, q, k, v, &mut p, &mut y);
                (y, p)
            };
            let p = run(&q, &k, &v).1;
            for row in p.chunks(n) {
                prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < ROUNDING);
            }
            let (mut dq, mut dk, mut dv) = (vec![9.0; len], vec![9.0; len], vec![9.0; len]);
            backward(d, &dy, (&q, &k, &v), &p, (&mut dq, &mut dk, &mut dv));
            central_difference("dq", &q, &dq, &dy, |q| run(q, &k, &v).0);
            central_difference("dk", &k, &dk, &dy, |k| run(&q, k, &v).0);
            central_difference("dv", &v, &dv, &dy, |v| run(&q, &k, v).0);
        }
    }
}
