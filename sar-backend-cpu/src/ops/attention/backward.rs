//! Backward of block-causal attention: probabilities are computed again from the log-sum-exps.

use super::{HeadParams, LINE, Place, TILE, scores_len, tiles};
use crate::Element;
use crate::mat::{
    Onto, first_columns, matrix_mut, row_slice, some_rows, strided, strided_mut, transpose,
};
use crate::matmul::matmul;
use crate::simd::{Shared, carve, sum2, vectorized, with_scratch};
use core::ops::Range;
use ndarray::ArrayView2;
use rayon::prelude::*;
use sar_math::backend::{AttentionDims, NORMALIZE_EPS, SCALE_MUL_MAX};

/// What the backward reads: the operands of the forward as it left them.
pub(crate) struct Saved<'a, T> {
    pub d_out: &'a [T],
    pub out: &'a [T],
    pub qkv: &'a [T],
    pub inverse_norms: &'a [T],
    pub lse: &'a [T],
    pub params: HeadParams<'a, T>,
}

/// Elements that a head contributes to the gradients of the parameters.
pub(crate) fn partial_len(dims: &AttentionDims) -> usize {
    2 * dims.head_dim + 1
}

/// Writes `dqkv`, and to `partials[b, h, 2d+1]` each head's gradients of q bias, v bias and log-scale.
pub(crate) fn backward<T: Element>(
    dims: &AttentionDims,
    saved: &Saved<'_, T>,
    dqkv: &mut [T],
    partials: &mut [T],
) {
    if dims.batch * dims.heads * dims.head_dim == 0 {
        return;
    }
    let dqkv = Shared::new(dqkv);
    partials.par_chunks_exact_mut(partial_len(dims)).enumerate().for_each(|(task, partial)| {
        backward_head(dims, Place::new(dims, task), saved, &dqkv, partial);
    });
}

/// Adds the heads' contributions to the gradients, sample by sample.
pub(crate) fn add_partials<T: Element>(
    dims: &AttentionDims,
    partials: &[T],
    part: Range<usize>,
    grad: &mut [T],
) {
    let len = partial_len(dims);
    let tasks = partials.chunks_exact(len * dims.heads);
    for sample in tasks {
        let heads = grad.chunks_exact_mut(part.len()).zip(sample.chunks_exact(len));
        for (grad, partial) in heads {
            for (grad, &partial) in grad.iter_mut().zip(&partial[part.clone()]) {
                *grad += partial;
            }
        }
    }
}

/// What the tiles of a head read.
struct Head<'a, T> {
    /// `[tokens, d]`, left in place between those of other heads.
    q: ArrayView2<'a, T>,
    k: ArrayView2<'a, T>,
    d_out: ArrayView2<'a, T>,
    /// Keys and values transposed, `[d, tokens]`.
    kt: ArrayView2<'a, T>,
    vt: ArrayView2<'a, T>,
    /// Σ d_out∘out of each row.
    inner: &'a [T],
}

fn backward_head<T: Element>(
    dims: &AttentionDims,
    place: Place,
    saved: &Saved<'_, T>,
    dqkv: &Shared<'_, T>,
    partial: &mut [T],
) {
    let (tokens, size) = (place.tokens, place.size);
    let stride = tokens.next_multiple_of(LINE);
    let (head, turned, tile) = (tokens * size, size * stride, scores_len(TILE, tokens));
    let sizes = [turned, turned, stride, head, head, head, tile, tile];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [kt, vt, inner, dq, dk, dv, p, ds] = carve(scratch, sizes);
        let row = 3 * place.heads * size;
        let part = |part| strided(&saved.qkv[place.qkv(0, part)..], tokens, size, row);
        let (q, k, v) = (part(0), part(1), part(2));
        let d_out = strided(&saved.d_out[place.out(0)..], tokens, size, row / 3);
        transpose(k, kt, stride);
        transpose(v, vt, stride);
        let (kt, vt) = (strided(&*kt, size, tokens, stride), strided(&*vt, size, tokens, stride));
        inner_products(place, saved, inner);
        let head = Head { q, k, d_out, kt, vt, inner };
        dk.fill(T::zero());
        dv.fill(T::zero());
        let lse = &saved.lse[place.lse()..][..tokens];
        for scale in 0..dims.schedule.len() {
            let range = dims.schedule.range(scale);
            let keys = range.end;
            for rows in tiles(range) {
                backward_tile(&head, rows, keys, lse, p, ds, dq, dk, dv);
            }
        }
        vectorized!(finish_head(place, saved, &head, dq, dk, dv, dqkv, partial));
    });
}

/// Σ d_out∘out of each token.
fn inner_products<T: Element>(place: Place, saved: &Saved<'_, T>, inner: &mut [T]) {
    vectorized!({
        for (token, inner) in inner.iter_mut().enumerate().take(place.tokens) {
            let row = place.out(token)..place.out(token) + place.size;
            *inner = sum2(&saved.d_out[row.clone()], &saved.out[row], |a, b| a * b);
        }
    });
}

/// A tile of query rows: its dq, and what it adds to dk and dv.
fn backward_tile<T: Element>(
    head: &Head<'_, T>,
    rows: Range<usize>,
    keys: usize,
    lse: &[T],
    p: &mut [T],
    ds: &mut [T],
    dq: &mut [T],
    dk: &mut [T],
    dv: &mut [T],
) {
    let (one, size) = (T::one(), head.q.ncols());
    let (count, stride) = (rows.len(), keys.next_multiple_of(LINE));
    let (q, d_out) = (some_rows(head.q, rows.clone()), some_rows(head.d_out, rows.clone()));
    let (kt, vt) = (first_columns(head.kt, keys), first_columns(head.vt, keys));
    matmul(one, q, kt, Onto::Nothing, strided_mut(p, count, keys, stride), false);
    matmul(one, d_out, vt, Onto::Nothing, strided_mut(ds, count, keys, stride), false);
    vectorized!({
        for (i, row) in rows.clone().enumerate() {
            let p = &mut p[i * stride..][..keys];
            let ds = &mut ds[i * stride..][..keys];
            let (lse, inner) = (lse[row], head.inner[row]);
            for j in 0..keys {
                p[j] = (p[j] - lse).vexp();
                ds[j] = p[j] * (ds[j] - inner);
            }
        }
    });
    let p = strided(p, count, keys, stride);
    let ds = strided(ds, count, keys, stride);
    let k = some_rows(head.k, 0..keys);
    let dq = &mut dq[rows.start * size..rows.end * size];
    matmul(one, ds, k, Onto::Nothing, matrix_mut(dq, count, size), false);
    matmul(one, ds.t(), q, Onto::Itself, matrix_mut(dk, keys, size), false);
    matmul(one, p.t(), d_out, Onto::Itself, matrix_mut(dv, keys, size), false);
}

/// Takes gradients through the normalisations, and sums over tokens the gradients of the
/// parameters.
#[inline(always)]
fn finish_head<T: Element>(
    place: Place,
    saved: &Saved<'_, T>,
    head: &Head<'_, T>,
    dq: &[T],
    dk: &[T],
    dv: &[T],
    dqkv: &Shared<'_, T>,
    partial: &mut [T],
) {
    let size = place.size;
    let scale = saved.params.scale(place.head);
    let clamped = saved.params.scale_mul[place.head] > T::of(SCALE_MUL_MAX);
    partial.fill(T::zero());
    let (dq_bias, rest) = partial.split_at_mut(size);
    let (dv_bias, dscale) = rest.split_at_mut(size);
    for token in 0..place.tokens {
        let row = token * size..(token + 1) * size;
        let norm = |part| saved.inverse_norms[place.norm(token, part)];
        // SAFETY: this head's part of a token, which no other task touches.
        let to = unsafe { dqkv.part(place.qkv(token, 0), size) };
        let along =
            normalize_backward(&dq[row.clone()], row_slice(head.q, token), norm(0), scale, to);
        if !clamped {
            dscale[0] += along;
        }
        for (sum, &d) in dq_bias.iter_mut().zip(&*to) {
            *sum += d;
        }
        // SAFETY: as above.
        let to = unsafe { dqkv.part(place.qkv(token, 1), size) };
        normalize_backward(&dk[row.clone()], row_slice(head.k, token), norm(1), T::one(), to);
        // SAFETY: as above.
        let to = unsafe { dqkv.part(place.qkv(token, 2), size) };
        to.copy_from_slice(&dv[row.clone()]);
        for (sum, &d) in dv_bias.iter_mut().zip(&dv[row]) {
            *sum += d;
        }
    }
}

/// From the gradient `dy` of `y = factor·x/‖x‖` to that of x; returns ⟨dy, y⟩.
///
/// Where the norm was clamped it is a constant, and nothing is projected out.
#[inline(always)]
fn normalize_backward<T: Element>(dy: &[T], y: &[T], inverse: T, factor: T, dx: &mut [T]) -> T {
    let along = sum2(dy, y, |dy, y| dy * y);
    let free = inverse >= T::one() / T::of(NORMALIZE_EPS);
    let project = if free { T::zero() } else { along / (factor * factor) };
    let by = factor * inverse;
    let (dy, y) = (&dy[..dx.len()], &y[..dx.len()]);
    for i in 0..dx.len() {
        dx[i] = by * (dy[i] - y[i] * project);
    }
    along
}
