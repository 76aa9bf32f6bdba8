//! Inputs of a scale: the codes of the scale before, resized bicubically to its grid.

use crate::Element;
use crate::simd::{vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::Scale;
use sar_math::backend::RolloutDims;
use sar_math::resample::bicubic_taps;

/// `inputs[b, tokens of dims.scales, k]`; ids have been checked to lie in the codebook.
pub(crate) fn forward<T: Element>(
    dims: &RolloutDims,
    ids_bt: &[u32],
    codebook_vk: &[T],
    inputs: &mut [T],
) {
    let (k, schedule) = (dims.channels, &dims.schedule);
    let sequence = schedule.span(dims.scales.clone()).len() * k;
    if sequence == 0 {
        return;
    }
    let ids = ids_bt.par_chunks_exact(schedule.tokens());
    (ids, inputs.par_chunks_exact_mut(sequence)).into_par_iter().for_each(|(ids, mut inputs)| {
        for i in dims.scales.clone() {
            let (before, scale) = (schedule.scales()[i - 1], schedule.scales()[i]);
            let (out, rest) = inputs.split_at_mut(scale.tokens() * k);
            inputs = rest;
            resize((before, scale), &ids[schedule.range(i - 1)], codebook_vk, k, out);
        }
    });
}

/// The codes of a grid, resized to another grid: `out[scale, k]`.
pub(super) fn resize<T: Element>(
    (before, scale): (Scale, Scale),
    ids: &[u32],
    codebook_vk: &[T],
    k: usize,
    out: &mut [T],
) {
    with_scratch(before.height * scale.width * k, |wide| {
        vectorized!({
            across(before, scale.width, ids, codebook_vk, wide, k);
            down(before.height, scale, wide, out, k);
        });
    });
}

/// Gathers the codes and resizes them along the rows: `wide[before.height, width, k]`.
#[inline(always)]
fn across<T: Element>(
    before: Scale,
    width: usize,
    ids: &[u32],
    codebook: &[T],
    wide: &mut [T],
    k: usize,
) {
    for x in 0..width {
        let (columns, weights) = bicubic_taps::<T>(before.width, width, x);
        for y in 0..before.height {
            let code = |c: usize| &codebook[ids[y * before.width + c] as usize * k..][..k];
            let out = &mut wide[(y * width + x) * k..][..k];
            mix(columns.map(code), weights, out);
        }
    }
}

/// Resizes along the columns: `out[scale, k]`.
#[inline(always)]
fn down<T: Element>(height: usize, scale: Scale, wide: &[T], out: &mut [T], k: usize) {
    let line = scale.width * k;
    for (y, out) in out.chunks_exact_mut(line).enumerate() {
        let (rows, weights) = bicubic_taps::<T>(height, scale.height, y);
        mix(rows.map(|r| &wide[r * line..][..line]), weights, out);
    }
}

/// `out = Σ weights[j]·from[j]`.
#[inline(always)]
fn mix<T: Element>([a, b, c, d]: [&[T]; 4], weights: [T; 4], out: &mut [T]) {
    for ((((out, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *out = (weights[0] * a + weights[1] * b) + (weights[2] * c + weights[3] * d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::ScaleSchedule;

    /// Weights that sum to 1 but for rounding.
    const ROUNDING: f64 = 1e-14;

    #[test]
    fn one_code_fills_the_next_grid() {
        let schedule = ScaleSchedule::from_sides(&[1, 2, 3]).unwrap();
        let dims = RolloutDims { batch: 2, schedule, scales: 1..2, channels: 2, vocab: 2 };
        let mut ids = [0; 28];
        ids[14] = 1;
        let mut inputs = [0.0f64; 16];
        forward(&dims, &ids, &[1.0, 2.0, 3.0, 4.0], &mut inputs);
        let want = [[1.0, 2.0]; 4].into_iter().chain([[3.0, 4.0]; 4]).flatten();
        for (got, want) in inputs.iter().zip(want) {
            assert!((got - want).abs() < ROUNDING, "{got} {want}");
        }
    }

    #[test]
    fn agrees_with_the_resize_of_a_map() {
        let schedule = ScaleSchedule::from_sides(&[1, 2, 3]).unwrap();
        let dims = RolloutDims { batch: 1, schedule, scales: 2..3, channels: 1, vocab: 4 };
        let ids = [0, 3, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut inputs = [0.0f64; 9];
        forward(&dims, &ids, &[1.0, -2.0, 0.5, 4.0], &mut inputs);
        let mut want = [0.0; 9];
        let map = [4.0, -2.0, 1.0, 0.5];
        sar_math::resample::bicubic_resize(&map, (2, 2), &mut want, (3, 3)).unwrap();
        for (got, want) in inputs.iter().zip(want) {
            assert!((got - want).abs() < ROUNDING, "{got} {want}");
        }
    }
}
