//! The learned position table, area-resized to every scale.
//!
//! Cell o of m averages input cells ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉−1, in both directions.

use crate::Element;
use crate::simd::{vectorized, with_scratch};
use core::ops::Range;
use rayon::prelude::*;
use sar_math::ScaleSchedule;
use sar_math::resample::area_bin;

/// Channels that one task handles: whole cache lines of a token.
const CHANNELS: usize = 64;

/// Calls `visit(token, rows, columns)` for every token and its window of the table.
fn windows(
    schedule: &ScaleSchedule,
    side: usize,
    mut visit: impl FnMut(usize, Range<usize>, Range<usize>),
) {
    let mut token = 0;
    for scale in schedule.scales() {
        for row in 0..scale.height {
            for column in 0..scale.width {
                let (rows, columns) =
                    (area_bin(side, scale.height, row), area_bin(side, scale.width, column));
                visit(token, rows, columns);
                token += 1;
            }
        }
    }
}

/// `pos[l, c]` from `table[c, side, side]`.
pub(crate) fn forward<T: Element>(
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    table: &[T],
    pos: &mut [T],
) {
    let area = side * side;
    let pos = crate::simd::Shared::new(pos);
    (0..width.div_ceil(CHANNELS)).into_par_iter().for_each(|block| {
        let channels = block * CHANNELS..((block + 1) * CHANNELS).min(width);
        let count = channels.len();
        with_scratch(area * count, |cells: &mut [T]| {
            for (j, c) in channels.clone().enumerate() {
                for (i, &value) in table[c * area..(c + 1) * area].iter().enumerate() {
                    cells[i * count + j] = value;
                }
            }
            windows(schedule, side, |token, rows, columns| {
                // SAFETY: the columns of this block, which no other task writes.
                let pos = unsafe { pos.part(token * width + channels.start, count) };
                let share = T::one() / T::of((rows.len() * columns.len()) as f64);
                vectorized!(average(cells, side, rows, columns, share, pos));
            });
        });
    });
}

#[inline(always)]
fn average<T: Element>(
    cells: &[T],
    side: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    share: T,
    pos: &mut [T],
) {
    pos.fill(T::zero());
    for y in rows {
        for x in columns.clone() {
            let cell = &cells[(y * side + x) * pos.len()..][..pos.len()];
            for (pos, &cell) in pos.iter_mut().zip(cell) {
                *pos += cell;
            }
        }
    }
    for pos in pos {
        *pos *= share;
    }
}

/// `dtable += ` the transpose of [`forward`] applied to `dpos`.
pub(crate) fn backward<T: Element>(
    schedule: &ScaleSchedule,
    width: usize,
    side: usize,
    dpos: &[T],
    dtable: &mut [T],
) {
    let area = side * side;
    if area == 0 {
        return;
    }
    dtable.par_chunks_mut(CHANNELS * area).enumerate().for_each(|(block, dtable)| {
        let start = block * CHANNELS;
        let count = dtable.len() / area;
        with_scratch(area * count, |cells: &mut [T]| {
            cells.fill(T::zero());
            windows(schedule, side, |token, rows, columns| {
                let dpos = &dpos[token * width + start..][..count];
                let share = T::one() / T::of((rows.len() * columns.len()) as f64);
                vectorized!(spread(dpos, share, side, rows, columns, cells));
            });
            for (j, dtable) in dtable.chunks_exact_mut(area).enumerate() {
                for (i, dtable) in dtable.iter_mut().enumerate() {
                    *dtable += cells[i * count + j];
                }
            }
        });
    });
}

#[inline(always)]
fn spread<T: Element>(
    dpos: &[T],
    share: T,
    side: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    cells: &mut [T],
) {
    for y in rows {
        for x in columns.clone() {
            let cell = &mut cells[(y * side + x) * dpos.len()..][..dpos.len()];
            for (cell, &dpos) in cell.iter_mut().zip(dpos) {
                *cell += dpos * share;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::Scale;

    /// Roundings of f64 in sums of some hundred terms of order 100.
    const ROUNDING: f64 = 1e-9;

    #[test]
    fn averages_and_their_transpose() {
        let schedule =
            ScaleSchedule::new(&[Scale::square(1), Scale { height: 1, width: 2 }]).unwrap();
        let (width, side) = (65, 2);
        let table: Vec<f64> = (0..width * 4).map(|i| i as f64).collect();
        let mut pos = vec![9.0; 3 * width];
        forward(&schedule, width, side, &table, &mut pos);
        for c in 0..width {
            let first = 4.0 * c as f64;
            assert_eq!(pos[c], first + 1.5);
            assert_eq!(pos[width + c], first + 1.0);
            assert_eq!(pos[2 * width + c], first + 2.0);
        }
        // ⟨forward(t), d⟩ = ⟨t, backward(d)⟩.
        let dpos: Vec<f64> = (0..3 * width).map(|i| (i % 7) as f64 - 3.0).collect();
        let mut dtable = vec![1.0; table.len()];
        backward(&schedule, width, side, &dpos, &mut dtable);
        let left: f64 = pos.iter().zip(&dpos).map(|(a, b)| a * b).sum();
        let right: f64 = table.iter().zip(&dtable).map(|(a, b)| a * (b - 1.0)).sum();
        assert!((left - right).abs() < ROUNDING);
    }
}
