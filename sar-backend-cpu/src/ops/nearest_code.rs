//! The nearest row of an L2-normalised codebook, after z is L2-normalised too.
//!
//! Both have length 1, so the nearest is the one of the largest product: |z − c|² = 2 − 2 z·c. A
//! matrix product gives all scores in the backend's type, which leaves those within rounding of the
//! largest undecided; they alone are scored again in f64, where products of f32 are exact and equal
//! rows score equally. So the result is that of the f64 formula, the lowest index on ties, whatever
//! the blocks of the product are.

use super::cross_entropy::BLOCK;
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::{self, carve, vectorized, with_scratch};
use rayon::prelude::*;

/// Rows of z of one task.
const ROWS: usize = 64;
/// Codes scored at once: with [`ROWS`], scores that stay in the L2 cache.
const CODES: usize = 1024;
/// Below this length z has no direction.
const NORM_EPS: f64 = 1e-12;

/// The best code so far of one row.
#[derive(Clone, Copy)]
struct Best<T> {
    /// Largest score of the matrix product.
    rough: T,
    /// Largest score in f64, and the lowest code that has it.
    exact: f64,
    code: u32,
}

/// `ids[r]` for every row of `z[r, k]`; a row with NaN gets code 0.
pub(crate) fn forward<T: Element>(
    vocab: usize,
    channels: usize,
    z_rk: &[T],
    codebook_vk: &[T],
    ids_r: &mut [u32],
) {
    let margin = rounding(channels, codebook_vk);
    (z_rk.par_chunks(ROWS * channels), ids_r.par_chunks_mut(ROWS)).into_par_iter().for_each(
        |(z, ids)| {
            with_scratch(z.len() + ROWS * CODES, |scratch| {
                let [unit, scores] = carve(scratch, [z.len(), ROWS * CODES]);
                normalize(channels, z, unit);
                let start = Best { rough: T::neg_infinity(), exact: f64::NEG_INFINITY, code: 0 };
                let mut best = [start; ROWS];
                for from in (0..vocab).step_by(CODES) {
                    let codes = CODES.min(vocab - from);
                    let block = &codebook_vk[from * channels..][..codes * channels];
                    matmul(
                        T::one(),
                        matrix(unit, ids.len(), channels),
                        matrix(block, codes, channels).t(),
                        Onto::Nothing,
                        matrix_mut(&mut scores[..ids.len() * codes], ids.len(), codes),
                        false,
                    );
                    for (r, best) in best.iter_mut().enumerate().take(ids.len()) {
                        let scores = &scores[r * codes..][..codes];
                        let z = &unit[r * channels..][..channels];
                        improve(best, scores, margin, z, block, from);
                    }
                }
                for (id, best) in ids.iter_mut().zip(&best) {
                    *id = best.code;
                }
            });
        },
    );
}

/// How far a score may be from the exact one, twice: a product of k terms is off by at most k+1
/// roundings of the lengths' product.
fn rounding<T: Element>(channels: usize, codebook: &[T]) -> T {
    let square = |code: &[T]| code.iter().map(|c| c.wide() * c.wide()).sum::<f64>();
    let longest = codebook.chunks_exact(channels).map(square).fold(0.0, f64::max).sqrt();
    T::of(2.0 * (channels + 1) as f64 * T::epsilon().wide() * longest)
}

/// Rows of length 1; a row of nothing stays so.
fn normalize<T: Element>(channels: usize, z: &[T], unit: &mut [T]) {
    for (z, unit) in z.chunks_exact(channels).zip(unit.chunks_exact_mut(channels)) {
        let norm = z.iter().map(|z| z.wide() * z.wide()).sum::<f64>().sqrt().max(NORM_EPS);
        for (unit, z) in unit.iter_mut().zip(z) {
            *unit = T::of(z.wide() / norm);
        }
    }
}

/// Takes the codes `from..` of one block, whose scores are given, into account.
fn improve<T: Element>(
    best: &mut Best<T>,
    scores: &[T],
    margin: T,
    z: &[T],
    block: &[T],
    from: usize,
) {
    let top = vectorized(
        #[inline(always)]
        || simd::max(scores),
    );
    if top > best.rough {
        best.rough = top;
    }
    let bar = best.rough - margin;
    if top < bar {
        return;
    }
    for (part, scores) in scores.chunks(BLOCK).enumerate() {
        // Few parts hold a candidate; the others are passed over a vector at a time.
        if !vectorized(
            #[inline(always)]
            || scores.iter().fold(false, |any, &s| any | (s >= bar)),
        ) {
            continue;
        }
        for (i, _) in scores.iter().enumerate().filter(|(_, s)| **s >= bar) {
            let code = part * BLOCK + i;
            let row = &block[code * z.len()..][..z.len()];
            let exact = z.iter().zip(row).map(|(z, c)| z.wide() * c.wide()).sum::<f64>();
            if exact > best.exact {
                (best.exact, best.code) = (exact, (from + code) as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        let mut x = 12345u32;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn equal_codes_give_the_lowest() {
        let codebook = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let mut ids = [9; 4];
        let z = [5.0, 1.0, 0.1, 0.3, 0.0, 0.0, f32::NAN, 1.0];
        forward(4, 2, &z, &codebook, &mut ids);
        assert_eq!(ids, [1, 0, 0, 0]);
    }

    #[test]
    fn is_the_argmax_of_the_f64_formula_across_blocks() {
        let (rows, vocab, k) = (ROWS + 3, 2 * CODES + 17, 5);
        let raw = numbers(vocab * k);
        let mut codebook = vec![0.0; raw.len()];
        normalize(k, &raw, &mut codebook);
        // Equal rows in different blocks, among them the nearest of row 0.
        codebook.copy_within(0..CODES * k, CODES * k);
        let z = numbers(rows * k + 1)[1..].to_vec();
        let mut ids = vec![0; rows];
        forward(vocab, k, &z, &codebook, &mut ids);
        let mut unit = vec![0.0; z.len()];
        normalize(k, &z, &mut unit);
        for (z, &id) in unit.chunks_exact(k).zip(&ids) {
            let mut want = (0, f64::NEG_INFINITY);
            for (v, c) in codebook.chunks_exact(k).enumerate() {
                let s: f64 = z.iter().zip(c).map(|(z, c)| f64::from(*z) * f64::from(*c)).sum();
                if s > want.1 {
                    want = (v, s);
                }
            }
            assert_eq!(id as usize, want.0);
        }
    }
}
