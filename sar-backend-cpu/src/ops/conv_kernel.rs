//! The two inner loops of a convolution, tiled over registers.
//!
//! Both read their operand planes at arbitrary offsets, so that no tap needs a copy: with rows
//! padded to a common stride, the input that a tap sees is the plane itself, shifted. Vectors are
//! the widest that the processor has; on one processor the bits are always the same.

use pulp::{Arch, Simd, WithSimd};
use std::cell::Cell;

/// Outputs that [`Kernels::correlate`] makes at a time: rows of a packed weight block.
pub(crate) const ROWS: usize = 8;
/// Lengths of planes are rounded up to this; no vector is longer.
pub(crate) const LANES: usize = 16;

/// Operands of [`Kernels::correlate`].
#[derive(Clone, Copy)]
pub struct Correlate<'a, T> {
    /// Packed weights: one row of `ROWS` for every offset.
    pub weights: &'a [T],
    /// Where the plane of each weight row begins in `planes`.
    pub offsets: &'a [usize],
    /// The planes that the offsets point into.
    pub planes: &'a [T],
    /// Number of elements wanted, a multiple of [`LANES`].
    pub len: usize,
    /// Number of the `ROWS` outputs that are wanted.
    pub rows: usize,
}

/// Operands of [`Kernels::correlate_weights`].
#[derive(Clone, Copy)]
pub struct CorrelateWeights<'a, T> {
    /// Gradient planes; that of output o of sample s begins at `s·dy_sample + dy_first + o·dy_plane`.
    pub dy: &'a [T],
    pub dy_first: usize,
    pub dy_plane: usize,
    pub dy_sample: usize,
    /// Input planes; a sample's begin `x_sample` after those of the one before.
    pub x: &'a [T],
    pub x_sample: usize,
    /// Where the plane of each weight begins in a sample's input planes.
    pub offsets: &'a [usize],
    /// Elements of a plane, a multiple of [`LANES`].
    pub len: usize,
    pub samples: usize,
}

/// What the backend's number types can do beyond arithmetic.
pub trait Kernels: Copy + 'static {
    /// `out[r][p] = Σ_k weights[k][r]·planes[offsets[k] + p]`, rows of `out` `len` apart.
    fn correlate(op: Correlate<'_, Self>, out: &mut [Self]);
    /// `dw[o][k] += Σ_s Σ_p dy[s][o][p]·x[s][offsets[k] + p]`, rows of `dw` as long as `offsets`.
    fn correlate_weights(op: CorrelateWeights<'_, Self>, dw: &mut [Self]);
}

/// Lends a vector of offsets of this thread to `work`, empty and with the capacity of earlier uses.
pub(crate) fn with_offsets<R>(work: impl FnOnce(&mut Vec<usize>) -> R) -> R {
    thread_local!(static OFFSETS: Cell<Vec<usize>> = const { Cell::new(Vec::new()) });
    let mut offsets = OFFSETS.take();
    offsets.clear();
    let result = work(&mut offsets);
    OFFSETS.set(offsets);
    result
}

macro_rules! kernels {
    ($t:ty, $module:ident, $vec:ident, $lanes:ident, $splat:ident, $fma:ident, $sum:ident) => {
        mod $module {
            use super::*;

            struct Forward<'a>(Correlate<'a, $t>, &'a mut [$t]);
            struct Weights<'a>(CorrelateWeights<'a, $t>, &'a mut [$t]);

            /// One register tile: `M` outputs by `N` vectors, from element `at` on.
            ///
            /// # Safety
            /// Every plane must hold `at + N` vectors from its offset on, `weights` a row for each
            /// offset from output `first` on, and `out` `M` rows that long.
            #[inline(always)]
            unsafe fn forward<S: Simd, const M: usize, const N: usize>(
                simd: S,
                op: &Correlate<'_, $t>,
                first: usize,
                at: usize,
                out: &mut [$t],
            ) {
                let mut sums = [[simd.$splat(0.0); N]; M];
                // SAFETY: as the caller guarantees; vectors are read and written unaligned.
                unsafe {
                    let planes = op.planes.as_ptr().add(at);
                    let mut weights = op.weights.as_ptr().add(first);
                    for &offset in op.offsets {
                        let mut x = [simd.$splat(0.0); N];
                        for j in 0..N {
                            let from = planes.add(offset + j * S::$lanes);
                            x[j] = from.cast::<S::$vec>().read_unaligned();
                        }
                        for i in 0..M {
                            let w = simd.$splat(*weights.add(i));
                            for j in 0..N {
                                sums[i][j] = simd.$fma(w, x[j], sums[i][j]);
                            }
                        }
                        weights = weights.add(ROWS);
                    }
                    for i in 0..M {
                        for j in 0..N {
                            let to = (first + i) * op.len + at + j * S::$lanes;
                            out.as_mut_ptr().add(to).cast::<S::$vec>().write_unaligned(sums[i][j]);
                        }
                    }
                }
            }

            #[inline(always)]
            fn forward_rows<S: Simd, const M: usize, const N: usize>(
                simd: S,
                op: &Correlate<'_, $t>,
                first: usize,
                out: &mut [$t],
            ) {
                let mut at = 0;
                while at + N * S::$lanes <= op.len {
                    // SAFETY: `Kernels::correlate` checked planes, weights and out for `len`.
                    unsafe { forward::<S, M, N>(simd, op, first, at, out) };
                    at += N * S::$lanes;
                }
                while at < op.len {
                    // SAFETY: likewise; `len` is a multiple of every vector length.
                    unsafe { forward::<S, M, 1>(simd, op, first, at, out) };
                    at += S::$lanes;
                }
            }

            impl WithSimd for Forward<'_> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: Simd>(self, simd: S) {
                    let Self(op, out) = self;
                    // 32 registers hold 8x3 sums, 16 hold 4x3.
                    let wide = size_of::<S::$vec>() == 64;
                    if wide && op.rows > ROWS / 2 {
                        forward_rows::<S, ROWS, 3>(simd, &op, 0, out);
                    } else {
                        forward_rows::<S, 4, 3>(simd, &op, 0, out);
                        if op.rows > 4 {
                            forward_rows::<S, 4, 3>(simd, &op, 4, out);
                        }
                    }
                }
            }

            /// Sums of `M` outputs from `o` on by `N` weights from `k` on.
            ///
            /// # Safety
            /// Planes of these outputs and weights must lie within `dy` and `x` for all samples.
            #[inline(always)]
            unsafe fn weights<S: Simd, const M: usize, const N: usize>(
                simd: S,
                op: &CorrelateWeights<'_, $t>,
                o: usize,
                k: usize,
                dw: &mut [$t],
            ) {
                let mut sums = [[simd.$splat(0.0); N]; M];
                let offsets: [usize; N] = core::array::from_fn(|j| op.offsets[k + j]);
                for s in 0..op.samples {
                    // SAFETY: as the caller guarantees; vectors are read unaligned.
                    unsafe {
                        let dy =
                            op.dy.as_ptr().add(s * op.dy_sample + op.dy_first + o * op.dy_plane);
                        let x = op.x.as_ptr().add(s * op.x_sample);
                        let mut p = 0;
                        while p < op.len {
                            let mut d = [simd.$splat(0.0); M];
                            for i in 0..M {
                                let from = dy.add(i * op.dy_plane + p);
                                d[i] = from.cast::<S::$vec>().read_unaligned();
                            }
                            for j in 0..N {
                                let from = x.add(offsets[j] + p);
                                let v = from.cast::<S::$vec>().read_unaligned();
                                for i in 0..M {
                                    sums[i][j] = simd.$fma(d[i], v, sums[i][j]);
                                }
                            }
                            p += S::$lanes;
                        }
                    }
                }
                for i in 0..M {
                    for j in 0..N {
                        dw[(o + i) * op.offsets.len() + k + j] += simd.$sum(sums[i][j]);
                    }
                }
            }

            #[inline(always)]
            fn weight_rows<S: Simd, const M: usize, const N: usize>(
                simd: S,
                op: &CorrelateWeights<'_, $t>,
                o: usize,
                dw: &mut [$t],
            ) {
                let mut k = 0;
                while k + N <= op.offsets.len() {
                    // SAFETY: `Kernels::correlate_weights` checked all planes.
                    unsafe { weights::<S, M, N>(simd, op, o, k, dw) };
                    k += N;
                }
                while k < op.offsets.len() {
                    // SAFETY: likewise.
                    unsafe { weights::<S, M, 1>(simd, op, o, k, dw) };
                    k += 1;
                }
            }

            impl WithSimd for Weights<'_> {
                type Output = ();
                #[inline(always)]
                fn with_simd<S: Simd>(self, simd: S) {
                    let Self(op, dw) = self;
                    let outputs = dw.len() / op.offsets.len();
                    // 32 registers hold 4x6 sums, 16 hold 4x2.
                    let wide = size_of::<S::$vec>() == 64;
                    for o in (0..outputs).step_by(4) {
                        match (o + 4 <= outputs, wide) {
                            (true, true) => weight_rows::<S, 4, 6>(simd, &op, o, dw),
                            (true, false) => weight_rows::<S, 4, 2>(simd, &op, o, dw),
                            (false, _) => {
                                for o in o..outputs {
                                    weight_rows::<S, 1, 6>(simd, &op, o, dw);
                                }
                            }
                        }
                    }
                }
            }

            impl Kernels for $t {
                fn correlate(op: Correlate<'_, Self>, out: &mut [Self]) {
                    let last = op.offsets.iter().copied().max().map_or(0, |o| o + op.len);
                    assert!(
                        op.len.is_multiple_of(LANES) && op.rows <= ROWS,
                        "correlate: len, rows"
                    );
                    assert!(last <= op.planes.len(), "correlate: planes");
                    assert!(op.offsets.len() * ROWS <= op.weights.len(), "correlate: weights");
                    assert!(ROWS * op.len <= out.len(), "correlate: out");
                    Arch::new().dispatch(Forward(op, out));
                }

                fn correlate_weights(op: CorrelateWeights<'_, Self>, dw: &mut [Self]) {
                    if op.offsets.is_empty() || op.samples == 0 {
                        return;
                    }
                    let outputs = dw.len() / op.offsets.len();
                    let furthest = op.offsets.iter().copied().max().unwrap_or(0);
                    let x_end = (op.samples - 1) * op.x_sample + furthest + op.len;
                    let dy_end = (op.samples - 1) * op.dy_sample
                        + op.dy_first
                        + outputs.saturating_sub(1) * op.dy_plane
                        + op.len;
                    assert!(op.len.is_multiple_of(LANES), "correlate_weights: len");
                    assert!(x_end <= op.x.len(), "correlate_weights: x");
                    assert!(dy_end <= op.dy.len(), "correlate_weights: dy");
                    Arch::new().dispatch(Weights(op, dw));
                }
            }
        }
    };
}

kernels!(f32, single, f32s, F32_LANES, splat_f32s, mul_add_e_f32s, reduce_sum_f32s);
kernels!(f64, double, f64s, F64_LANES, splat_f64s, mul_add_e_f64s, reduce_sum_f64s);

#[cfg(test)]
mod tests {
    use super::*;

    /// Roundings of f64 in sums of three products of order 10.
    const ROUNDING: f64 = 1e-12;

    #[test]
    fn correlate_is_the_sum_it_says() {
        let planes: Vec<f64> = (0..100).map(|i| f64::from(i % 7) - 2.5).collect();
        let weights: Vec<f64> = (0..3 * ROWS).map(|i| i as f64 / 5.0 - 2.0).collect();
        let offsets = [0, 5, 33];
        for rows in [1, 4, 5, 8] {
            let mut out = vec![0.0; ROWS * 48];
            let op =
                Correlate { weights: &weights, offsets: &offsets, planes: &planes, len: 48, rows };
            f64::correlate(op, &mut out);
            for r in 0..rows {
                for p in 0..48 {
                    let want: f64 =
                        (0..3).map(|k| weights[k * ROWS + r] * planes[offsets[k] + p]).sum();
                    assert!((out[r * 48 + p] - want).abs() < ROUNDING, "{r} {p}");
                }
            }
        }
    }
}
