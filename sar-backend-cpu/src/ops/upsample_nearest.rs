//! Nearest ×2 in both directions, forward and backward.

use crate::Element;
use crate::simd::CHUNK;
use rayon::prelude::*;
use sar_math::backend::MapDims;

/// Planes per task, so that small planes are not tasks of their own.
fn min_tasks(area: usize) -> usize {
    (CHUNK / area.max(1)).max(1)
}

/// Every element of x becomes a 2×2 block of y.
pub(crate) fn forward<T: Element>(d: MapDims, x: &[T], y: &mut [T]) {
    let (area, width) = (d.height * d.width, d.width);
    if area == 0 {
        return;
    }
    let planes = y.par_chunks_mut(4 * area).zip(x.par_chunks(area));
    planes.with_min_len(min_tasks(area)).for_each(|(y, x)| {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(4 * width)) {
            let (top, bottom) = y.split_at_mut(2 * width);
            for (&x, y) in x.iter().zip(top.chunks_exact_mut(2)) {
                y.fill(x);
            }
            bottom.copy_from_slice(top);
        }
    });
}

/// Every element of dx is the sum of its 2×2 block of dy.
pub(crate) fn backward<T: Element>(d: MapDims, dy: &[T], dx: &mut [T]) {
    let (area, width) = (d.height * d.width, d.width);
    if area == 0 {
        return;
    }
    let planes = dx.par_chunks_mut(area).zip(dy.par_chunks(4 * area));
    planes.with_min_len(min_tasks(area)).for_each(|(dx, dy)| {
        for (dx, dy) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(4 * width)) {
            let (top, bottom) = dy.split_at(2 * width);
            for (x, dx) in dx.iter_mut().enumerate() {
                let (l, r) = (2 * x, 2 * x + 1);
                *dx = (top[l] + top[r]) + (bottom[l] + bottom[r]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, central_difference};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn backward_is_the_gradient(
            seed: u64, batch in 1..3usize, channels in 1..3usize,
            height in 1..5usize, width in 1..5usize,
        ) {
            let d = MapDims { batch, channels, height, width };
            let mut random = Random(seed);
            let (x, dy) = (random.values(d.len()), random.values(4 * d.len()));
            let run = |x: &[f64]| {
                let mut y = vec![f64::NAN; 4 * d.len()];
                forward(d, x, &mut y);
                y
            };
            for (i, y) in run(&x).iter().enumerate() {
                let (plane, row, column) =
                    (i / (4 * height * width), i / (2 * width) % (2 * height), i % (2 * width));
                prop_assert_eq!(*y, x[(plane * height + row / 2) * width + column / 2]);
            }
            let mut dx = vec![f64::NAN; x.len()];
            backward(d, &dy, &mut dx);
            central_difference("dx", &x, &dx, &dy, run);
        }
    }
}
