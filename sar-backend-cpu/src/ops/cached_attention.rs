//! Attention of one scale to itself and all before it, from cached keys and values.
//!
//! The cache of a head holds its keys transposed, `[d, capacity]`, then its values, `[capacity, d]`.

use super::attention::{HeadParams, attend, normalize, scores_len, tiles};
use crate::Element;
use crate::mat::{matrix, transpose};
use crate::simd::{Shared, carve, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::CachedAttentionDims;

/// See `RolloutOps::cached_attention`; the operands have been checked: `qkv` holds
/// `batch·tokens·3·heads·head_dim` elements, `cache` `2·batch·capacity·heads·head_dim`, `out`
/// `batch·tokens·heads·head_dim`, and `past + tokens ≤ capacity`.
pub(crate) fn cached_attention<T: Element>(
    dims: &CachedAttentionDims,
    qkv: &mut [T],
    params: HeadParams<'_, T>,
    cache: &mut [T],
    out: &mut [T],
) {
    let size = dims.head_dim;
    let head = 2 * dims.capacity * size;
    if dims.batch * dims.heads * head == 0 || dims.tokens == 0 {
        return;
    }
    let (qkv, out) = (Shared::new(qkv), Shared::new(out));
    let heads = cache.par_chunks_exact_mut(head).take(dims.batch * dims.heads);
    heads.enumerate().for_each(|(task, cache)| {
        one_head(dims, task / dims.heads, task % dims.heads, &qkv, params, cache, &out);
    });
}

fn one_head<T: Element>(
    dims: &CachedAttentionDims,
    sample: usize,
    head: usize,
    qkv: &Shared<'_, T>,
    params: HeadParams<'_, T>,
    cache: &mut [T],
    out: &Shared<'_, T>,
) {
    let &CachedAttentionDims { heads, head_dim: size, past, tokens, capacity, .. } = dims;
    let (kt, v) = cache.split_at_mut(size * capacity);
    let keys = past + tokens;
    let tile = tokens.min(tiles(0..tokens).next().map_or(0, |tile| tile.len()));
    let sizes = [tokens * size, tokens * size, scores_len(tokens, keys), tile * size, tile];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [q, k, scores, tile_out, lse] = carve(scratch, sizes);
        let channels = head * size..(head + 1) * size;
        let scale = params.scale(head);
        vectorized!({
            for token in 0..tokens {
                let start = |part| (((sample * tokens + token) * 3 + part) * heads + head) * size;
                // SAFETY: this head's part of a token, which no other task touches.
                let row = unsafe { qkv.part(start(0), size) };
                normalize(row, Some(&params.q_bias[channels.clone()]), scale);
                params.store(row);
                q[token * size..][..size].copy_from_slice(row);
                // SAFETY: as above.
                let row = unsafe { qkv.part(start(1), size) };
                normalize(row, None, T::one());
                params.store(row);
                k[token * size..][..size].copy_from_slice(row);
                // SAFETY: as above.
                let row = unsafe { qkv.part(start(2), size) };
                let v = &mut v[(past + token) * size..][..size];
                let bias = &params.v_bias[channels.clone()];
                for (row, &bias) in row.iter_mut().zip(bias) {
                    *row += bias;
                }
                params.store(row);
                v.copy_from_slice(row);
            }
        });
        transpose(matrix(k, tokens, size), &mut kt[past..], capacity);
        for rows in tiles(0..tokens) {
            let q = matrix(&q[rows.start * size..], rows.len(), size);
            let lse = &mut lse[..rows.len()];
            attend(q, kt, capacity, v, keys, scores, tile_out, lse);
            for (token, row) in rows.zip(tile_out.chunks_exact(size)) {
                let start = ((sample * tokens + token) * heads + head) * size;
                // SAFETY: this head's part of a token, which no other task touches.
                unsafe { out.part(start, size) }.copy_from_slice(row);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::attention;
    use super::*;
    use sar_math::ScaleSchedule;
    use sar_math::backend::AttentionDims;

    #[test]
    fn scale_by_scale_gives_the_bits_of_the_whole_pass() {
        let schedule = ScaleSchedule::from_sides(&[1, 2, 3, 9]).unwrap();
        for size in [5, 32] {
            gives_the_bits_of_the_whole_pass(schedule, size);
        }
    }

    fn gives_the_bits_of_the_whole_pass(schedule: ScaleSchedule, size: usize) {
        let (batch, heads) = (2, 3);
        let (tokens, width) = (schedule.tokens(), heads * size);
        let noise = |n: usize, k: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + k) % 1009) as f32 / 500.0 - 1.0).collect()
        };
        let (q_bias, v_bias) = (noise(width, 3), noise(width, 4));
        let scale_mul = [1.4, 9.0, -1.0];
        let params =
            HeadParams { q_bias: &q_bias, v_bias: &v_bias, scale_mul: &scale_mul, stored: None };
        let inputs = noise(batch * tokens * 3 * width, 1);

        let mut qkv = inputs.clone();
        let (mut norms, mut lse) = (vec![0.0; batch * tokens * 6], vec![0.0; batch * tokens * 3]);
        let mut whole = vec![0.0; batch * tokens * width];
        let dims = AttentionDims { batch, heads, head_dim: size, schedule };
        attention::forward(&dims, &mut qkv, params, &mut norms, &mut lse, &mut whole);

        let capacity = tokens + 3;
        let mut cache = vec![f32::NAN; 2 * batch * capacity * width];
        for scale in 0..schedule.len() {
            let range = schedule.range(scale);
            let rows = |from: &[f32], b: usize, width: usize| {
                from[(b * tokens + range.start) * width..(b * tokens + range.end) * width].to_vec()
            };
            let mut qkv: Vec<f32> = (0..batch).flat_map(|b| rows(&inputs, b, 3 * width)).collect();
            let mut out = vec![0.0; batch * range.len() * width];
            let dims = CachedAttentionDims {
                batch,
                heads,
                head_dim: size,
                past: range.start,
                tokens: range.len(),
                capacity,
            };
            cached_attention(&dims, &mut qkv, params, &mut cache, &mut out);
            let expected: Vec<f32> = (0..batch).flat_map(|b| rows(&whole, b, width)).collect();
            assert_eq!(out, expected, "scale {scale}");
        }
    }
}
