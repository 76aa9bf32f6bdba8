//! The codes of one scale as a channel-first map of any size.

use super::rollout_inputs::resize;
use crate::Element;
use crate::simd::with_scratch;
use rayon::prelude::*;
use sar_math::{Scale, ScaleSchedule};

/// `map[b, k, h, w]` of a scale of `ids[b, tokens]`, which have been checked to lie in the codebook.
pub(crate) fn forward<T: Element>(
    schedule: &ScaleSchedule,
    scale: usize,
    size: Scale,
    channels: usize,
    ids_bt: &[u32],
    codebook_vk: &[T],
    map_bkhw: &mut [T],
) {
    if map_bkhw.is_empty() {
        return;
    }
    let (positions, range, grid) = (size.tokens(), schedule.range(scale), schedule.scales()[scale]);
    let maps = map_bkhw.par_chunks_exact_mut(positions * channels);
    (ids_bt.par_chunks_exact(schedule.tokens()), maps).into_par_iter().for_each(|(ids, map)| {
        let ids = &ids[range.clone()];
        if grid == size {
            for (p, &id) in ids.iter().enumerate() {
                put(map, positions, p, &codebook_vk[id as usize * channels..][..channels]);
            }
            return;
        }
        with_scratch(positions * channels, |resized: &mut [T]| {
            resize((grid, size), ids, codebook_vk, channels, resized);
            for (p, code) in resized.chunks_exact(channels).enumerate() {
                put(map, positions, p, code);
            }
        });
    });
}

/// All channels of one position.
fn put<T: Element>(map: &mut [T], positions: usize, p: usize, code: &[T]) {
    for (c, &value) in code.iter().enumerate() {
        map[c * positions + p] = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights that sum to 1 but for rounding.
    const ROUNDING: f64 = 1e-14;

    #[test]
    fn channels_come_first() {
        let mut map = [0.0f32; 8];
        let codebook = [1.0, 10.0, 2.0, 20.0];
        let row = Scale { height: 1, width: 2 };
        let schedule = ScaleSchedule::new(&[Scale::square(1), row]).unwrap();
        forward(&schedule, 1, row, 2, &[0, 1, 0, 1, 1, 1], &codebook, &mut map);
        assert_eq!(map, [2.0, 1.0, 20.0, 10.0, 2.0, 2.0, 20.0, 20.0]);
    }

    #[test]
    fn another_size_is_the_resize_of_the_map() {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let codebook = [1.0, 10.0, 2.0, -20.0, 0.5, 3.0, 4.0, 0.0];
        let size = Scale { height: 3, width: 4 };
        let mut map = [0.0f64; 24];
        forward(&schedule, 1, size, 2, &[0, 3, 1, 0, 2], &codebook, &mut map);
        for (map, codes) in map.chunks(12).zip([[4.0, 2.0, 1.0, 0.5], [0.0, -20.0, 10.0, 3.0]]) {
            let mut want = [0.0; 12];
            sar_math::resample::bicubic_resize(&codes, (2, 2), &mut want, (3, 4)).unwrap();
            for (got, want) in map.iter().zip(want) {
                assert!((got - want).abs() < ROUNDING, "{got} {want}");
            }
        }
    }
}
