//! Area and bicubic resampling: the taps of one axis, and whole maps on caller-owned memory.
//!
//! Coordinates are ratios of small integers and are computed as such, so a tap lies where the
//! formula puts it whatever the number type; only the weights are floating point.

use crate::Real;
use crate::ShapeError;
use core::ops::Range;

/// Cubic convolution parameter a of the published model (Keys 1981 takes −0.5).
pub const BICUBIC_A: f64 = -0.75;

/// The inputs that output `output` averages when `input_len` positions become `output_len`
/// (adaptive average pooling): `⌊o·n/m⌋ .. ⌈(o+1)·n/m⌉`. Empty where there is no such output.
///
/// ```
/// use sar_math::resample::area_bin;
/// assert_eq!(area_bin(16, 3, 0), 0..6);
/// assert_eq!(area_bin(16, 3, 1), 5..11); // bins overlap where m does not divide n
/// ```
#[inline]
pub fn area_bin(input_len: usize, output_len: usize, output: usize) -> Range<usize> {
    if output >= output_len {
        return 0..0;
    }
    output * input_len / output_len..((output + 1) * input_len).div_ceil(output_len)
}

/// The four inputs and weights of output `output` when `input_len` positions become `output_len`:
/// cubic convolution, [`BICUBIC_A`], half-pixel centres, borders clamped, no antialiasing.
///
/// Weights sum to 1. Both lengths must be at least 1 and `output` below `output_len`; otherwise all
/// taps are at position 0 with weight 0, so that misuse reads nothing out of range.
#[inline]
pub fn bicubic_taps<T: Real>(
    input_len: usize,
    output_len: usize,
    output: usize,
) -> ([usize; 4], [T; 4]) {
    if input_len == 0 || output >= output_len {
        return ([0; 4], [T::zero(); 4]);
    }
    // (o + ½)·n/m − ½ = ((2o+1)·n − m) / 2m, split into whole and fraction without rounding.
    let (n, m) = (input_len as i64, output_len as i64);
    let numerator = (2 * output as i64 + 1) * n - m;
    let whole = numerator.div_euclid(2 * m);
    let fraction = numerator.rem_euclid(2 * m) as f64 / (2 * m) as f64;
    let mut taps = [0; 4];
    for (tap, at) in taps.iter_mut().zip(whole - 1..) {
        *tap = at.clamp(0, n - 1) as usize;
    }
    let weights = [
        cubic_outer(1.0 + fraction),
        cubic_inner(fraction),
        cubic_inner(1.0 - fraction),
        cubic_outer(2.0 - fraction),
    ];
    (taps, weights.map(T::of))
}

/// The kernel for distances up to 1.
fn cubic_inner(x: f64) -> f64 {
    ((BICUBIC_A + 2.0) * x - (BICUBIC_A + 3.0)) * x * x + 1.0
}

/// The kernel for distances from 1 to 2.
fn cubic_outer(x: f64) -> f64 {
    ((BICUBIC_A * x - 5.0 * BICUBIC_A) * x + 8.0 * BICUBIC_A) * x - 4.0 * BICUBIC_A
}

/// Averages a row-major map `src[h, w]` down (or up) to `dst[h2, w2]`; sizes are `(rows, columns)`.
///
/// # Errors
/// [`ShapeError`] where a slice is not rows·columns long, or an empty map should become a non-empty one.
pub fn area_resize<T: Real>(
    src: &[T],
    src_size: (usize, usize),
    dst: &mut [T],
    dst_size: (usize, usize),
) -> Result<(), ShapeError> {
    check("area_resize", src.len(), src_size, dst.len(), dst_size)?;
    for (row, line) in dst.chunks_exact_mut(dst_size.1.max(1)).enumerate() {
        let rows = area_bin(src_size.0, dst_size.0, row);
        for (column, out) in line.iter_mut().enumerate() {
            let columns = area_bin(src_size.1, dst_size.1, column);
            let mut sum = T::zero();
            for r in rows.clone() {
                for &v in &src[r * src_size.1..][columns.clone()] {
                    sum += v;
                }
            }
            *out = sum / T::of((rows.len() * columns.len()) as f64);
        }
    }
    Ok(())
}

/// Resizes a row-major map `src[h, w]` to `dst[h2, w2]` bicubically; sizes are `(rows, columns)`.
///
/// # Errors
/// As [`area_resize`].
pub fn bicubic_resize<T: Real>(
    src: &[T],
    src_size: (usize, usize),
    dst: &mut [T],
    dst_size: (usize, usize),
) -> Result<(), ShapeError> {
    check("bicubic_resize", src.len(), src_size, dst.len(), dst_size)?;
    for (row, line) in dst.chunks_exact_mut(dst_size.1.max(1)).enumerate() {
        let (rows, row_weights) = bicubic_taps::<T>(src_size.0, dst_size.0, row);
        for (column, out) in line.iter_mut().enumerate() {
            let (columns, column_weights) = bicubic_taps::<T>(src_size.1, dst_size.1, column);
            let mut sum = T::zero();
            for (&r, &row_weight) in rows.iter().zip(&row_weights) {
                let mut across = T::zero();
                for (&c, &weight) in columns.iter().zip(&column_weights) {
                    across += weight * src[r * src_size.1 + c];
                }
                sum += row_weight * across;
            }
            *out = sum;
        }
    }
    Ok(())
}

fn check(
    op: &'static str,
    src_len: usize,
    src_size: (usize, usize),
    dst_len: usize,
    dst_size: (usize, usize),
) -> Result<(), ShapeError> {
    ShapeError::equal(op, "src (rows*columns)", src_size.0.saturating_mul(src_size.1), src_len)?;
    ShapeError::equal(op, "dst (rows*columns)", dst_size.0.saturating_mul(dst_size.1), dst_len)?;
    if dst_len > 0 {
        ShapeError::at_least(op, "src (rows*columns)", 1, src_len)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Roundings of f64 in a sum of four weights.
    const ROUNDING: f64 = 1e-14;

    proptest! {
        #[test]
        fn area_bins_cover_every_input_in_order(n in 1usize..80, m in 1usize..80) {
            let mut reached = 0;
            for o in 0..m {
                let bin = area_bin(n, m, o);
                prop_assert!(!bin.is_empty() && bin.start <= reached && bin.end >= reached);
                prop_assert!(bin.end <= n);
                reached = bin.end;
            }
            prop_assert_eq!(reached, n);
            prop_assert!(area_bin(n, m, m).is_empty());
        }

        #[test]
        fn bicubic_weights_sum_to_one_and_taps_lie_inside(n in 1usize..80, m in 1usize..80) {
            for o in 0..m {
                let (taps, weights) = bicubic_taps::<f64>(n, m, o);
                // Four products of numbers below 4, each rounded once or twice.
                prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < ROUNDING);
                prop_assert!(taps.iter().all(|&t| t < n));
            }
        }

        #[test]
        fn a_map_resized_to_its_own_size_is_itself(h in 1usize..9, w in 1usize..9, seed in 0u64..99) {
            let src: std::vec::Vec<f64> =
                (0..h * w).map(|i| ((i as u64 * 7 + seed) % 13) as f64).collect();
            let mut dst = std::vec![0.0; h * w];
            area_resize(&src, (h, w), &mut dst, (h, w)).unwrap();
            prop_assert_eq!(&dst, &src);
            bicubic_resize(&src, (h, w), &mut dst, (h, w)).unwrap();
            prop_assert_eq!(&dst, &src);
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let error = area_resize(&[0.0f64; 5], (2, 3), &mut [0.0; 1], (1, 1)).unwrap_err();
        assert_eq!((error.op, error.expected, error.found), ("area_resize", 6, 5));
        assert!(bicubic_resize(&[0.0f64; 6], (2, 3), &mut [0.0; 3], (2, 2)).is_err());
        assert!(bicubic_resize::<f64>(&[], (0, 3), &mut [0.0; 4], (2, 2)).is_err());
        assert!(area_resize::<f64>(&[], (0, 3), &mut [], (0, 0)).is_ok());
    }
}
