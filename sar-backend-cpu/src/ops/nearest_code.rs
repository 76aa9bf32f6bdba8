//! The nearest code: the row of the largest product with z.
//!
//! By angle, codes and z have length 1, and |z − e|² = 2 − 2 z·e. By distance, a row is
//! (e, −|e|²/2) and z is taken as (z, 1): |z − e|² = |z|² − 2 (z·e − |e|²/2). Either z or (z, 1)
//! is scaled to length 1, which does not change the order. A matrix product gives all scores in the
//! backend's type, which leaves those within rounding of the largest undecided. Only these are
//! scored again in f64, where products of f32 are exact and equal rows score equally. The result is
//! therefore that of the f64 formula on the scaled and rounded rows, with the lowest index on ties,
//! however the product is split into blocks.

use super::cross_entropy::BLOCK;
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::{self, carve, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::{CodeDims, Distance, TokenSpan};

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

/// Writes the columns of the span's scales in `ids[b, row]`, for every row of `z[b, tokens, k]`; a
/// row with NaN gets code 0.
pub(crate) fn forward<T: Element>(
    span: &TokenSpan,
    codes: CodeDims,
    z_btk: &[T],
    codebook: &[T],
    ids_bt: &mut [u32],
) {
    let (row, columns) = (span.row(), span.columns());
    if columns.is_empty() {
        return;
    }
    let margin = rounding(codes.columns(), codebook);
    if columns.len() == row {
        return rows(codes, margin, z_btk, codebook, ids_bt);
    }
    let samples = z_btk.par_chunks_exact(columns.len() * codes.channels);
    (samples, ids_bt.par_chunks_exact_mut(row)).into_par_iter().for_each(|(z, ids)| {
        rows(codes, margin, z, codebook, &mut ids[columns.clone()]);
    });
}

/// `ids[r]` for every row of `z[r, k]`.
fn rows<T: Element>(dims: CodeDims, margin: T, z_rk: &[T], codebook: &[T], ids_r: &mut [u32]) {
    let (vocab, channels) = (dims.vocab, dims.columns());
    (z_rk.par_chunks(ROWS * dims.channels), ids_r.par_chunks_mut(ROWS)).into_par_iter().for_each(
        |(z, ids)| {
            let len = ids.len() * channels;
            with_scratch(len + ROWS * CODES, |scratch| {
                let [unit, scores] = carve(scratch, [len, ROWS * CODES]);
                unit_rows(dims, z, unit);
                let start = Best { rough: T::neg_infinity(), exact: f64::NEG_INFINITY, code: 0 };
                let mut best = [start; ROWS];
                for from in (0..vocab).step_by(CODES) {
                    let codes = CODES.min(vocab - from);
                    let block = &codebook[from * channels..][..codes * channels];
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

/// Twice the largest error of a score: a product of k terms is off by at most k+1 roundings of the
/// product of the lengths.
fn rounding<T: Element>(columns: usize, codebook: &[T]) -> T {
    let square = |code: &[T]| code.iter().map(|c| c.wide() * c.wide()).sum::<f64>();
    let longest = codebook.chunks_exact(columns).map(square).fold(0.0, f64::max).sqrt();
    T::of(2.0 * (columns + 1) as f64 * T::epsilon().wide() * longest)
}

/// Scales rows of z, or of (z, 1), to length 1; a zero row stays zero.
fn unit_rows<T: Element>(dims: CodeDims, z: &[T], unit: &mut [T]) {
    let last = match dims.distance {
        Distance::Cosine => 0.0,
        Distance::Euclidean => 1.0,
    };
    for (z, unit) in z.chunks_exact(dims.channels).zip(unit.chunks_exact_mut(dims.columns())) {
        let square = z.iter().map(|z| z.wide() * z.wide()).sum::<f64>() + last;
        let norm = square.sqrt().max(NORM_EPS);
        let (of_z, of_last) = unit.split_at_mut(z.len());
        for (unit, z) in of_z.iter_mut().zip(z) {
            *unit = T::of(z.wide() / norm);
        }
        of_last.fill(T::of(last / norm));
    }
}

/// Takes into account the codes from `from` on of one block, whose scores are given.
fn improve<T: Element>(
    best: &mut Best<T>,
    scores: &[T],
    margin: T,
    z: &[T],
    block: &[T],
    from: usize,
) {
    let top = vectorized!(simd::max(scores));
    if top > best.rough {
        best.rough = top;
    }
    let bar = best.rough - margin;
    if top < bar {
        return;
    }
    for (part, scores) in scores.chunks(BLOCK).enumerate() {
        // Few parts hold a candidate; the others are skipped a vector at a time.
        if !vectorized!(scores.iter().fold(false, |any, &s| any | (s >= bar))) {
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
    use sar_math::{Scale, ScaleSchedule};

    fn by_angle(vocab: usize, channels: usize) -> CodeDims {
        CodeDims { vocab, channels, distance: Distance::Cosine }
    }

    /// A span of one scale of `width` tokens.
    fn tokens(width: usize) -> TokenSpan {
        let scales = [Scale::square(1), Scale { height: 1, width }];
        TokenSpan::one(&ScaleSchedule::new(&scales).unwrap(), 1)
    }

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
        forward(&tokens(4), by_angle(4, 2), &z, &codebook, &mut ids);
        assert_eq!(ids, [1, 0, 0, 0]);
    }

    #[test]
    fn the_nearest_by_distance_need_not_be_that_by_angle() {
        // Codes 3, 1, −2 and 1 on a line, each with −|e|²/2.
        let codebook = [3.0, -4.5, 1.0, -0.5, -2.0, -2.0, 1.0, -0.5];
        let codes = CodeDims { vocab: 4, channels: 1, distance: Distance::Euclidean };
        let mut ids = [9; 6];
        forward(&tokens(6), codes, &[0.9, 2.1, -0.6, 50.0, 0.0, f32::NAN], &codebook, &mut ids);
        assert_eq!(ids, [1, 0, 2, 0, 1, 0]);
    }

    #[test]
    fn columns_of_a_scale_alone_are_written() {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let fine = TokenSpan { scales: 1..2, ..TokenSpan::whole(&schedule) };
        let mut ids = [9; 10];
        let z = [[1.0f32, 0.0], [0.0, 1.0]].concat().repeat(4);
        forward(&fine, by_angle(2, 2), &z, &[0.0, 1.0, 1.0, 0.0], &mut ids);
        assert_eq!(ids, [9, 1, 0, 1, 0, 9, 1, 0, 1, 0]);
    }

    #[test]
    fn is_the_argmax_of_the_f64_formula_across_blocks() {
        let (rows, vocab, k) = (ROWS + 3, 2 * CODES + 17, 5);
        let raw = numbers(vocab * k);
        let mut codebook = vec![0.0; raw.len()];
        unit_rows(by_angle(vocab, k), &raw, &mut codebook);
        // Equal rows in different blocks, among them the nearest of row 0.
        codebook.copy_within(0..CODES * k, CODES * k);
        let z = numbers(rows * k + 1)[1..].to_vec();
        let mut ids = vec![0; rows];
        forward(&tokens(rows), by_angle(vocab, k), &z, &codebook, &mut ids);
        let mut unit = vec![0.0; z.len()];
        unit_rows(by_angle(vocab, k), &z, &mut unit);
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
