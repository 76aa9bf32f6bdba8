//! Adaptive average pooling of maps, forward and backward.

use crate::Element;
use crate::simd::CHUNK;
use core::ops::Range;
use rayon::prelude::*;
use sar_math::backend::MapDims;
use sar_math::resample::area_bin;

/// Calls `f` with the index of each output of a plane, its rows and its columns.
fn for_windows(
    d: MapDims,
    (height, width): (usize, usize),
    mut f: impl FnMut(usize, Range<usize>, Range<usize>),
) {
    for oy in 0..height {
        for ox in 0..width {
            f(oy * width + ox, area_bin(d.height, height, oy), area_bin(d.width, width, ox));
        }
    }
}

/// Planes per task, so that small planes are not tasks of their own.
fn min_tasks(area: usize) -> usize {
    (CHUNK / area.max(1)).max(1)
}

/// `y[b, c, height, width]`: the mean over each window.
pub(crate) fn forward<T: Element>(d: MapDims, to: (usize, usize), x: &[T], y: &mut [T]) {
    let (area, to_area) = (d.height * d.width, to.0 * to.1);
    if area * to_area == 0 {
        return;
    }
    let planes = y.par_chunks_mut(to_area).zip(x.par_chunks(area));
    planes.with_min_len(min_tasks(area)).for_each(|(y, x)| {
        for_windows(d, to, |at, rows, cols| {
            let count = T::of((rows.len() * cols.len()) as f64);
            let mut total = T::zero();
            for row in rows {
                total += x[row * d.width..][cols.clone()].iter().copied().sum();
            }
            y[at] = total / count;
        });
    });
}

/// Backward of [`forward`]; `dx` is overwritten.
pub(crate) fn backward<T: Element>(d: MapDims, to: (usize, usize), dy: &[T], dx: &mut [T]) {
    let (area, to_area) = (d.height * d.width, to.0 * to.1);
    if area * to_area == 0 {
        dx.fill(T::zero());
        return;
    }
    let planes = dx.par_chunks_mut(area).zip(dy.par_chunks(to_area));
    planes.with_min_len(min_tasks(area)).for_each(|(dx, dy)| {
        dx.fill(T::zero());
        for_windows(d, to, |at, rows, cols| {
            let share = dy[at] / T::of((rows.len() * cols.len()) as f64);
            for row in rows {
                for dx in &mut dx[row * d.width..][cols.clone()] {
                    *dx += share;
                }
            }
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
            seed: u64, batch in 1..3usize, channels in 1..3usize, height in 1..6usize,
            width in 1..6usize, to_height in 1..8usize, to_width in 1..8usize,
        ) {
            let (d, to) = (MapDims { batch, channels, height, width }, (to_height, to_width));
            let mut random = Random(seed);
            let x = random.values(d.len());
            let dy = random.values(batch * channels * to_height * to_width);
            let run = |x: &[f64]| {
                let mut y = vec![f64::NAN; dy.len()];
                forward(d, to, x, &mut y);
                y
            };
            for y in run(&vec![0.75; d.len()]) {
                // A mean of at most 25 equal numbers.
                prop_assert!((y - 0.75).abs() < ROUNDING);
            }
            let mut dx = vec![f64::NAN; x.len()];
            backward(d, to, &dy, &mut dx);
            central_difference("dx", &x, &dx, &dy, run);
        }
    }
}
