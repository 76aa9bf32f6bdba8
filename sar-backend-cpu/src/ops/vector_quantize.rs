//! Straight-through vector quantisation of maps, forward and backward.

use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::{carve, with_scratch};
use rayon::prelude::*;
use sar_math::backend::{MapDims, NORMALIZE_EPS, QuantizeWeights};

/// Positions whose scores against the codebook are held at a time.
const TILE: usize = 64;

/// Normalises a row; returns its norm, at least [`NORMALIZE_EPS`].
fn normalise<T: Element>(row: &mut [T]) -> T {
    let norm = row.iter().map(|&v| v * v).sum::<T>().sqrt();
    let norm = if norm < T::of(NORMALIZE_EPS) { T::of(NORMALIZE_EPS) } else { norm };
    for v in row.iter_mut() {
        *v /= norm;
    }
    norm
}

/// Writes ids and quantised maps; returns `mean (ẑ−e)²`.
pub(crate) fn forward<T: Element>(
    d: MapDims,
    vocab: usize,
    z: &[T],
    codebook: &[T],
    ids: &mut [u32],
    quantized: &mut [T],
) -> T {
    let (k, area) = (d.channels, d.height * d.width);
    if k * area * vocab == 0 || d.batch == 0 {
        return T::zero();
    }
    with_scratch(vocab * k + vocab + d.batch, |scratch: &mut [T]| {
        let [codes, half_norms, distances] = carve(scratch, [vocab * k, vocab, d.batch]);
        codes.copy_from_slice(codebook);
        for (code, half) in codes.chunks_exact_mut(k).zip(half_norms.iter_mut()) {
            normalise(code);
            *half = code.iter().map(|&v| v * v).sum::<T>() * T::of(0.5);
        }
        let (codes, half_norms) = (&*codes, &*half_norms);
        quantized
            .par_chunks_mut(k * area)
            .zip(z.par_chunks(k * area))
            .zip(ids.par_chunks_mut(area))
            .zip(distances.par_iter_mut())
            .for_each(|(((quantized, z), ids), distance)| {
                *distance = quantize_sample(k, z, codes, half_norms, ids, quantized);
            });
        distances.iter().copied().sum::<T>() / T::of(d.len() as f64)
    })
}

/// One sample; returns `Σ (ẑ−e)²`.
fn quantize_sample<T: Element>(
    k: usize,
    z: &[T],
    codes: &[T],
    half_norms: &[T],
    ids: &mut [u32],
    quantized: &mut [T],
) -> T {
    let (area, vocab) = (ids.len(), half_norms.len());
    let mut distance = T::zero();
    with_scratch(TILE * (k + vocab), |scratch: &mut [T]| {
        let [rows, scores] = carve(scratch, [TILE * k, TILE * vocab]);
        for (tile, ids) in ids.chunks_mut(TILE).enumerate() {
            let (first, count) = (tile * TILE, ids.len());
            for (p, row) in rows.chunks_exact_mut(k).take(count).enumerate() {
                for (c, v) in row.iter_mut().enumerate() {
                    *v = z[c * area + first + p];
                }
                normalise(row);
            }
            let out = matrix_mut(&mut *scores, count, vocab);
            let z = matrix(rows, count, k);
            matmul(T::one(), z, matrix(codes, vocab, k).t(), Onto::Nothing, out, false);
            for (p, id) in ids.iter_mut().enumerate() {
                let best = nearest(&scores[p * vocab..][..vocab], half_norms);
                *id = best as u32;
                let code = &codes[best * k..][..k];
                for (c, (&e, &z)) in code.iter().zip(&rows[p * k..][..k]).enumerate() {
                    quantized[c * area + first + p] = e;
                    distance += (z - e) * (z - e);
                }
            }
        }
    });
    distance
}

/// Lowest index of the smallest ‖e‖²/2 − z·e, which orders codes as their distance to z does.
fn nearest<T: Element>(scores: &[T], half_norms: &[T]) -> usize {
    let (mut best, mut least) = (0, T::infinity());
    for (i, (&score, &half)) in scores.iter().zip(half_norms).enumerate() {
        let distance = half - score;
        if distance < least {
            (best, least) = (i, distance);
        }
    }
    best
}

/// Gradients of [`forward`]; `dz` overwritten, `dcodebook` added to. Ids must be below `vocab`.
pub(crate) fn backward<T: Element>(
    d: MapDims,
    vocab: usize,
    d_quantized: &[T],
    z: &[T],
    ids: &[u32],
    codebook: &[T],
    weights: QuantizeWeights,
    dz: &mut [T],
    dcodebook: &mut [T],
) {
    let (k, area) = (d.channels, d.height * d.width);
    if k * area * vocab == 0 || d.batch == 0 {
        return;
    }
    let mean = 2.0 / d.len() as f64;
    let (commitment, moving) = (T::of(weights.commitment * mean), T::of(weights.codebook * mean));
    let sizes = [vocab * k, vocab * k, vocab, k, k];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [codes, dcodes, norms, row, drow] = carve(scratch, sizes);
        codes.copy_from_slice(codebook);
        for (code, norm) in codes.chunks_exact_mut(k).zip(norms.iter_mut()) {
            *norm = normalise(code);
        }
        dcodes.fill(T::zero());
        for (position, &id) in ids.iter().enumerate() {
            let first = position / area * k * area + position % area;
            let id = id as usize;
            for c in 0..k {
                row[c] = z[first + c * area];
            }
            let norm = normalise(row);
            for c in 0..k {
                let difference = row[c] - codes[id * k + c];
                drow[c] = d_quantized[first + c * area] + commitment * difference;
                dcodes[id * k + c] -= moving * difference;
            }
            through_norm(row, norm, drow);
            for c in 0..k {
                dz[first + c * area] = drow[c];
            }
        }
        let rows = codes.chunks_exact(k).zip(dcodes.chunks_exact_mut(k)).zip(norms.iter());
        for ((code, dcode), &norm) in rows {
            through_norm(code, norm, dcode);
        }
        for (to, &v) in dcodebook.iter_mut().zip(dcodes.iter()) {
            *to += v;
        }
    });
}

/// Gradient through `unit = v/‖v‖`: `(d − unit·(unit·d))/‖v‖`; where the norm is clamped it is a
/// constant, and the projection falls away.
fn through_norm<T: Element>(unit: &[T], norm: T, d: &mut [T]) {
    let dot = if norm > T::of(NORMALIZE_EPS) {
        unit.iter().zip(d.iter()).map(|(&u, &d)| u * d).sum()
    } else {
        T::zero()
    };
    for (d, &u) in d.iter_mut().zip(unit) {
        *d = (*d - u * dot) / norm;
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, central_difference};
    use super::*;
    use proptest::prelude::*;

    /// Roundings of f64 in sums of at most 72 terms of order 1.
    const ROUNDING: f64 = 1e-13;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn each_loss_moves_what_it_should(
            seed: u64, batch in 1..3usize, channels in 2..5usize, vocab in 1..9usize,
            height in 1..4usize, width in 1..4usize,
            codebook in 0.1..2.0f64, commitment in 0.1..2.0f64,
        ) {
            let d = MapDims { batch, channels, height, width };
            let (len, area) = (d.len(), height * width);
            let mut random = Random(seed);
            // Values away from zero: differences do not measure how fast a short vector turns.
            let mut long = |n: usize| -> Vec<f64> {
                random.values(n).into_iter().map(|v| v + 0.3f64.copysign(v)).collect()
            };
            let (z, codes) = (long(len), long(vocab * channels));
            let dq = random.values(len);
            let unit = |rows: &[f64]| {
                let mut rows = rows.to_vec();
                rows.chunks_exact_mut(channels).for_each(|r| { normalise(r); });
                rows
            };
            // Rows of a map, position by position.
            let positions = |map: &[f64]| {
                let order = (0..len).map(|i| {
                    let (p, c) = (i / channels, i % channels);
                    map[(p / area * channels + c) * area + p % area]
                });
                order.collect::<Vec<_>>()
            };
            let rows = |z: &[f64]| unit(&positions(z));
            let (mut ids, mut out) = (vec![0; batch * area], vec![f64::NAN; len]);
            let distance = forward(d, vocab, &z, &codes, &mut ids, &mut out);
            let (units, e) = (rows(&z), unit(&codes));
            let gap = |z: &[f64], e: &[f64]| {
                z.iter().zip(e).map(|(z, e)| (z - e) * (z - e)).sum::<f64>()
            };
            let chosen = |e: &[f64]| {
                ids.iter().flat_map(|&id| e[id as usize * channels..][..channels].to_vec())
                    .collect::<Vec<_>>()
            };
            for (z, &id) in units.chunks(channels).zip(&ids) {
                let least = e.chunks(channels).map(|e| gap(z, e)).fold(f64::INFINITY, f64::min);
                prop_assert!(gap(z, &e[id as usize * channels..][..channels]) <= least + ROUNDING);
            }
            let mean = gap(&units, &chosen(&e)) / len as f64;
            prop_assert!((distance - mean).abs() < ROUNDING);
            prop_assert_eq!(positions(&out), chosen(&e));
            let weights = QuantizeWeights { codebook, commitment };
            let (mut dz, mut de) = (vec![f64::NAN; len], codes.clone());
            backward(d, vocab, &dq, &z, &ids, &codes, weights, &mut dz, &mut de);
            de.iter_mut().zip(&codes).for_each(|(d, c)| *d -= c);
            let (fixed_codes, dq) = (chosen(&e), positions(&dq));
            central_difference("dz", &z, &dz, &[1.0], |z| {
                let z = rows(z);
                let straight: f64 = z.iter().zip(&dq).map(|(z, d)| z * d).sum();
                vec![straight + commitment * gap(&z, &fixed_codes) / len as f64]
            });
            central_difference("codebook", &codes, &de, &[1.0], |codes| {
                vec![codebook * gap(&units, &chosen(&unit(codes))) / len as f64]
            });
        }
    }
}
