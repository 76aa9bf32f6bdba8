//! The latent, area-downsampled to scales of a schedule, token-major.

use crate::Element;
use crate::simd::{vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::Scale;
use sar_math::backend::{MapDims, TokenSpan};
use sar_math::resample::area_bin;

/// Writes the columns of the span's scales in `tokens[b, row, k]`, from `latent[b, k, h, w]`.
pub(crate) fn forward<T: Element>(
    dims: MapDims,
    span: &TokenSpan,
    latent_bkhw: &[T],
    tokens_btk: &mut [T],
) {
    let k = dims.channels;
    let (map, sequence, columns) = (k * dims.height * dims.width, k * span.row(), span.columns());
    let scales = &span.schedule.scales()[span.scales.clone()];
    if map == 0 || sequence == 0 {
        return;
    }
    (latent_bkhw.par_chunks_exact(map), tokens_btk.par_chunks_exact_mut(sequence))
        .into_par_iter()
        .for_each(|(latent, tokens)| {
            with_scratch(map, |latent_hwk| {
                vectorized!({
                    to_token_major(k, latent, latent_hwk);
                    sample(dims, scales, latent_hwk, &mut tokens[k * columns.start..]);
                });
            });
        });
}

/// Channels last, so that a token's channels are summed a vector at a time.
#[inline(always)]
fn to_token_major<T: Element>(channels: usize, from_khw: &[T], to_hwk: &mut [T]) {
    let positions = from_khw.len() / channels;
    for (p, to) in to_hwk.chunks_exact_mut(channels).enumerate() {
        for (c, to) in to.iter_mut().enumerate() {
            *to = from_khw[c * positions + p];
        }
    }
}

/// The scales of one sample.
#[inline(always)]
fn sample<T: Element>(dims: MapDims, scales: &[Scale], latent: &[T], tokens: &mut [T]) {
    let k = dims.channels;
    let mut outputs = tokens.chunks_exact_mut(k);
    for scale in scales {
        for y in 0..scale.height {
            let rows = area_bin(dims.height, scale.height, y);
            for x in 0..scale.width {
                let columns = area_bin(dims.width, scale.width, x);
                let Some(out) = outputs.next() else { return };
                out.fill(T::zero());
                for r in rows.clone() {
                    let line = &latent[(r * dims.width + columns.start) * k..][..columns.len() * k];
                    for from in line.chunks_exact(k) {
                        for (out, &from) in out.iter_mut().zip(from) {
                            *out += from;
                        }
                    }
                }
                let count = T::of((rows.len() * columns.len()) as f64);
                for out in out {
                    *out /= count;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::ScaleSchedule;

    #[test]
    fn a_two_by_two_latent_to_one_and_two() {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let dims = MapDims { batch: 1, channels: 2, height: 2, width: 2 };
        let mut tokens = [0.0f64; 10];
        let latent = [1.0, 2.0, 3.0, 6.0, 10.0, 20.0, 30.0, 40.0];
        forward(dims, &TokenSpan::whole(&schedule), &latent, &mut tokens);
        assert_eq!(tokens, [3.0, 25.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 6.0, 40.0]);
        let fine = TokenSpan { scales: 1..2, ..TokenSpan::whole(&schedule) };
        let mut tokens = [9.0f64; 10];
        forward(dims, &fine, &latent, &mut tokens);
        assert_eq!(tokens, [9.0, 9.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 6.0, 40.0]);
    }

    #[test]
    fn bins_overlap_where_sides_do_not_divide() {
        let schedule = ScaleSchedule::new(&[
            sar_math::Scale::square(1),
            sar_math::Scale { height: 1, width: 2 },
        ])
        .unwrap();
        let dims = MapDims { batch: 1, channels: 1, height: 1, width: 3 };
        let mut tokens = [0.0f32; 3];
        forward(dims, &TokenSpan::whole(&schedule), &[1.0, 2.0, 6.0], &mut tokens);
        assert_eq!(tokens, [3.0, 1.5, 4.0]);
    }
}
