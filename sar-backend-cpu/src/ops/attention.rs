//! L2-normalised, block-causal attention.
//!
//! Queries of scale i see the keys 0..end(i), so every scale is a dense product over exactly those:
//! nothing masked is computed, and only the scores of one tile of query rows exist at a time. A
//! task is one head of one sample; what heads add to shared gradients is kept apart and added up in
//! order.

mod backward;
#[cfg(test)]
mod tests;

pub(crate) use backward::{Saved, add_partials, backward, partial_len};

use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut, strided, strided_mut, transpose};
use crate::matmul::matmul;
use crate::simd::{Shared, carve, exp_sum, max, sum1, vectorized, with_scratch};
use core::ops::Range;
use ndarray::ArrayView2;
use rayon::prelude::*;
use sar_math::backend::{AttentionDims, NORMALIZE_EPS, SCALE_MUL_MAX};

/// Query rows whose scores exist at a time: a tile of 680 keys takes 170 KiB of the second-level cache.
const TILE: usize = 64;
/// Elements of a cache line of f32: scratch rows start on one.
const LINE: usize = 16;

/// Biases `[C]` and log-scales `[H]`, as slices.
#[derive(Clone, Copy)]
pub(crate) struct HeadParams<'a, T> {
    pub q_bias: &'a [T],
    pub v_bias: &'a [T],
    pub scale_mul: &'a [T],
    /// Conversion that q, k and v undergo when they are stored.
    pub stored: Option<fn(T) -> T>,
}

impl<T: Element> HeadParams<'_, T> {
    /// Stores a row.
    #[inline(always)]
    pub(crate) fn store(&self, row: &mut [T]) {
        if let Some(stored) = self.stored {
            row.iter_mut().for_each(|value| *value = stored(*value));
        }
    }

    /// `exp(min(scale_mul_h, ln 100))`.
    pub(crate) fn scale(&self, head: usize) -> T {
        let log = self.scale_mul[head];
        let most = T::of(SCALE_MUL_MAX);
        // Not `min`, which would hide a NaN.
        if log > most { most.exp() } else { log.exp() }
    }
}

/// Where head h of sample b lies in `qkv[b, l, 3, h, d]`, `out[b, l, h, d]` and the statistics.
#[derive(Clone, Copy)]
struct Place {
    sample: usize,
    head: usize,
    heads: usize,
    tokens: usize,
    size: usize,
}

impl Place {
    fn new(dims: &AttentionDims, task: usize) -> Self {
        Self {
            sample: task / dims.heads,
            head: task % dims.heads,
            heads: dims.heads,
            tokens: dims.schedule.tokens(),
            size: dims.head_dim,
        }
    }

    /// Start of q (0), k (1) or v (2) of a token.
    #[inline(always)]
    fn qkv(&self, token: usize, part: usize) -> usize {
        (((self.sample * self.tokens + token) * 3 + part) * self.heads + self.head) * self.size
    }

    #[inline(always)]
    fn out(&self, token: usize) -> usize {
        ((self.sample * self.tokens + token) * self.heads + self.head) * self.size
    }

    /// Index of 1/‖q‖ (0) or 1/‖k‖ (1) of a token.
    #[inline(always)]
    fn norm(&self, token: usize, part: usize) -> usize {
        ((self.sample * self.tokens + token) * 2 + part) * self.heads + self.head
    }

    /// Start of the head's log-sum-exps.
    fn lse(&self) -> usize {
        (self.sample * self.heads + self.head) * self.tokens
    }
}

/// `x := factor·(x+bias)/‖x+bias‖`; returns 1/‖·‖.
#[inline(always)]
pub(crate) fn normalize<T: Element>(x: &mut [T], bias: Option<&[T]>, factor: T) -> T {
    if let Some(bias) = bias {
        for (x, &bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
    }
    let norm = sum1(x, |x| x * x).sqrt();
    let eps = T::of(NORMALIZE_EPS);
    // Not `max`, which would hide a NaN.
    let inverse = T::one() / if norm < eps { eps } else { norm };
    let by = factor * inverse;
    for x in x {
        *x *= by;
    }
    inverse
}

/// Scores of a tile of queries against `keys` keys, their softmax, and its product with the values.
///
/// `kt` is the keys transposed, `[d, kt_stride]`; `v` is `[keys, d]`. The scores become unnormalised
/// probabilities; `out[rows, d]` is normalised, and `lse` receives the log-sum-exp of each row.
pub(crate) fn attend<T: Element>(
    q: ArrayView2<'_, T>,
    kt: &[T],
    kt_stride: usize,
    v: &[T],
    keys: usize,
    scores: &mut [T],
    out: &mut [T],
    lse: &mut [T],
) {
    let (rows, size) = q.dim();
    let stride = keys.next_multiple_of(LINE);
    let kt = strided(kt, size, keys, kt_stride);
    matmul(T::one(), q, kt, Onto::Nothing, strided_mut(scores, rows, keys, stride), false);
    let mut sums = [T::zero(); TILE];
    vectorized!({
        for i in 0..rows {
            let row = &mut scores[i * stride..][..keys];
            lse[i] = max(row);
            sums[i] = exp_sum(row, lse[i]);
        }
    });
    let probabilities = strided(scores, rows, keys, stride);
    let v = matrix(v, keys, size);
    matmul(T::one(), probabilities, v, Onto::Nothing, matrix_mut(out, rows, size), false);
    vectorized!({
        for i in 0..rows {
            let by = T::one() / sums[i];
            lse[i] += sums[i].ln();
            for out in &mut out[i * size..][..size] {
                *out *= by;
            }
        }
    });
}

/// Elements of `scores` that [`attend`] needs.
pub(crate) fn scores_len(rows: usize, keys: usize) -> usize {
    rows.min(TILE) * keys.next_multiple_of(LINE)
}

/// Cuts a range of query rows into tiles.
pub(crate) fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(TILE).map(move |start| start..(start + TILE).min(end))
}

/// In place on `qkv`; see `TransformerOps::attention`.
pub(crate) fn forward<T: Element>(
    dims: &AttentionDims,
    qkv: &mut [T],
    params: HeadParams<'_, T>,
    inverse_norms: &mut [T],
    lse: &mut [T],
    out: &mut [T],
) {
    let tokens = dims.schedule.tokens();
    if dims.batch * dims.heads * dims.head_dim == 0 {
        return;
    }
    let (qkv, norms, out) = (Shared::new(qkv), Shared::new(inverse_norms), Shared::new(out));
    lse.par_chunks_exact_mut(tokens).enumerate().for_each(|(task, lse)| {
        forward_head(dims, Place::new(dims, task), &qkv, params, &norms, lse, &out);
    });
}

fn forward_head<T: Element>(
    dims: &AttentionDims,
    place: Place,
    qkv: &Shared<'_, T>,
    params: HeadParams<'_, T>,
    norms: &Shared<'_, T>,
    lse: &mut [T],
    out: &Shared<'_, T>,
) {
    let (tokens, size) = (place.tokens, place.size);
    let stride = tokens.next_multiple_of(LINE);
    let head = tokens * size;
    let sizes = [head, head, head, size * stride, scores_len(TILE, tokens), TILE * size];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [q, k, v, kt, scores, tile_out] = carve(scratch, sizes);
        vectorized!(load_head(place, qkv, params, norms, q, k, v));
        transpose(matrix(k, tokens, size), kt, stride);
        for scale in 0..dims.schedule.len() {
            let range = dims.schedule.range(scale);
            let keys = range.end;
            for rows in tiles(range) {
                let q = matrix(&q[rows.start * size..], rows.len(), size);
                let lse = &mut lse[rows.clone()];
                attend(q, kt, stride, v, keys, scores, tile_out, lse);
                for (token, row) in rows.zip(tile_out.chunks_exact(size)) {
                    // SAFETY: this head's part of a token, which no other task touches.
                    unsafe { out.part(place.out(token), size) }.copy_from_slice(row);
                }
            }
        }
    });
}

/// Normalises q and k and biases v, in `qkv` and as contiguous copies.
#[inline(always)]
fn load_head<T: Element>(
    place: Place,
    qkv: &Shared<'_, T>,
    params: HeadParams<'_, T>,
    norms: &Shared<'_, T>,
    q: &mut [T],
    k: &mut [T],
    v: &mut [T],
) {
    let size = place.size;
    let channels = place.head * size..(place.head + 1) * size;
    let scale = params.scale(place.head);
    for token in 0..place.tokens {
        let copy = token * size..(token + 1) * size;
        for part in 0..2 {
            // SAFETY: this head's part of a token, which no other task touches.
            let row = unsafe { qkv.part(place.qkv(token, part), size) };
            // SAFETY: this head's norm, which no other task touches.
            let norm = unsafe { norms.part(place.norm(token, part), 1) };
            if part == 0 {
                norm[0] = normalize(row, Some(&params.q_bias[channels.clone()]), scale);
                params.store(row);
                q[copy.clone()].copy_from_slice(row);
            } else {
                norm[0] = normalize(row, None, T::one());
                params.store(row);
                k[copy.clone()].copy_from_slice(row);
            }
        }
        // SAFETY: as above.
        let row = unsafe { qkv.part(place.qkv(token, 2), size) };
        for (row, &bias) in row.iter_mut().zip(&params.v_bias[channels.clone()]) {
            *row += bias;
        }
        params.store(row);
        v[copy].copy_from_slice(row);
    }
}
