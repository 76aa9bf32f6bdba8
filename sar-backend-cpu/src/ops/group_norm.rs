//! Group norm, with or without SiLU after it, forward and backward.
//!
//! A group of a sample is contiguous in `[b, c, h, w]`, so each is one task; sums run over fixed lanes.

use crate::Element;
use crate::simd::{CHUNK, sum1, sum2, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::{MapDims, Write};

/// Shape and constants of one call.
#[derive(Clone, Copy)]
pub(crate) struct Norm {
    pub dims: MapDims,
    pub groups: usize,
    pub eps: f64,
    pub silu: bool,
}

impl Norm {
    fn area(self) -> usize {
        self.dims.height * self.dims.width
    }

    /// Channels of a group.
    fn width(self) -> usize {
        self.dims.channels / self.groups
    }

    /// Elements of a group.
    fn len(self) -> usize {
        self.width() * self.area()
    }

    fn min_tasks(self) -> usize {
        (CHUNK / self.len().max(1)).max(1)
    }
}

/// `y = (x−mean)/σ·weight + bias`, then SiLU; `stats[b, groups, 2]` receives mean and 1/σ.
pub(crate) fn forward<T: Element>(
    n: Norm,
    x: &[T],
    weight: &[T],
    bias: &[T],
    y: &mut [T],
    stats: &mut [T],
) {
    if n.len() == 0 {
        return;
    }
    y.par_chunks_mut(n.len())
        .zip(x.par_chunks(n.len()))
        .zip(stats.par_chunks_mut(2))
        .with_min_len(n.min_tasks())
        .enumerate()
        .for_each(|(i, ((y, x), stats))| {
            let first = (i % n.groups) * n.width();
            vectorized!({
                let count = T::of(n.len() as f64);
                let mean = sum1(x, |v| v) / count;
                let variance = sum1(x, |v| (v - mean) * (v - mean)) / count;
                let rstd = (variance + T::of(n.eps)).sqrt().recip();
                stats.copy_from_slice(&[mean, rstd]);
                let channels = y.chunks_exact_mut(n.area()).zip(x.chunks_exact(n.area()));
                for (c, (y, x)) in channels.enumerate() {
                    let scale = weight[first + c] * rstd;
                    let shift = bias[first + c] - mean * scale;
                    if n.silu {
                        for (y, &x) in y.iter_mut().zip(x) {
                            let v = x * scale + shift;
                            *y = v * sigmoid(v);
                        }
                    } else {
                        for (y, &x) in y.iter_mut().zip(x) {
                            *y = x * scale + shift;
                        }
                    }
                }
            });
        });
}

#[inline(always)]
fn sigmoid<T: Element>(v: T) -> T {
    (T::one() + (-v).vexp()).recip()
}

/// Backward of [`forward`]: `dx` written or added to, `dweight` and `dbias` added to.
pub(crate) fn backward<T: Element>(
    n: Norm,
    dy: &[T],
    x: &[T],
    stats: &[T],
    weight: &[T],
    bias: &[T],
    write: Write,
    dx: &mut [T],
    dweight: &mut [T],
    dbias: &mut [T],
) {
    if n.len() == 0 {
        return;
    }
    let (width, len) = (n.width(), n.len());
    // Parameter gradients of each sample, summed in order afterwards.
    with_scratch(n.dims.batch * n.dims.channels * 2, |sums: &mut [T]| {
        dx.par_chunks_mut(len)
            .zip(dy.par_chunks(len))
            .zip(x.par_chunks(len))
            .zip(stats.par_chunks(2))
            .zip(sums.par_chunks_mut(2 * width))
            .with_min_len(n.min_tasks())
            .enumerate()
            .for_each(|(i, ((((dx, dy), x), stats), sums))| {
                let first = (i % n.groups) * width;
                let affine = (&weight[first..][..width], &bias[first..][..width]);
                with_scratch(len, |dn: &mut [T]| {
                    vectorized!(group_backward(n, dy, x, stats, affine, write, dx, sums, dn));
                });
            });
        for sums in sums.chunks_exact(2 * n.dims.channels) {
            for (group, sums) in sums.chunks_exact(2 * width).enumerate() {
                for c in 0..width {
                    dweight[group * width + c] += sums[2 * c];
                    dbias[group * width + c] += sums[2 * c + 1];
                }
            }
        }
    });
}

/// With n = x̂·w+b and dn the gradient before SiLU: dx = (w·dn − mean(w·dn) − x̂·mean(w·dn·x̂))/σ.
#[inline(always)]
fn group_backward<T: Element>(
    n: Norm,
    dy: &[T],
    x: &[T],
    stats: &[T],
    (weight, bias): (&[T], &[T]),
    write: Write,
    dx: &mut [T],
    sums: &mut [T],
    dn: &mut [T],
) {
    let area = n.area();
    let (mean, rstd) = (stats[0], stats[1]);
    let (mut sum_g, mut sum_gx) = (T::zero(), T::zero());
    for c in 0..n.width() {
        let range = c * area..(c + 1) * area;
        let (dy, x, dn) = (&dy[range.clone()], &x[range.clone()], &mut dn[range]);
        if n.silu {
            let scale = weight[c] * rstd;
            let shift = bias[c] - mean * scale;
            for ((dn, &dy), &x) in dn.iter_mut().zip(dy).zip(x) {
                let v = x * scale + shift;
                let s = sigmoid(v);
                *dn = dy * s * (T::one() + v * (T::one() - s));
            }
        } else {
            dn.copy_from_slice(dy);
        }
        let sum_dn = sum1(dn, |dn| dn);
        let sum_dnx = sum2(dn, x, |dn, x| dn * (x - mean)) * rstd;
        sums[2 * c] = sum_dnx;
        sums[2 * c + 1] = sum_dn;
        sum_g += weight[c] * sum_dn;
        sum_gx += weight[c] * sum_dnx;
    }
    let count = T::of(n.len() as f64);
    let (mean_g, mean_gx) = (sum_g / count, sum_gx / count);
    for c in 0..n.width() {
        let range = c * area..(c + 1) * area;
        let (x, dn, dx) = (&x[range.clone()], &dn[range.clone()], &mut dx[range]);
        // rstd·(w·dn − mean_g − (x−mean)·rstd·mean_gx) as a·dn + b·x + d.
        let (a, b) = (rstd * weight[c], -rstd * rstd * mean_gx);
        let d = -rstd * mean_g - mean * b;
        if write == Write::Overwrite {
            dx.fill(T::zero());
        }
        for ((dx, &dn), &x) in dx.iter_mut().zip(dn.iter()).zip(x) {
            *dx += a * dn + b * x + d;
        }
    }
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
            seed: u64, batch in 1..3usize, groups in 1..3usize, width in 1..4usize,
            height in 1..5usize, columns in 1..6usize, silu: bool, accumulate: bool,
        ) {
            let dims = MapDims { batch, channels: groups * width, height, width: columns };
            prop_assume!(width * height * columns > 1);
            // A large eps keeps groups of two elements away from the kink where they coincide.
            let n = Norm { dims, groups, eps: 0.1, silu };
            let mut random = Random(seed);
            let (x, dy) = (random.values(dims.len()), random.values(dims.len()));
            let (w, b) = (random.values(dims.channels), random.values(dims.channels));
            let run = |x: &[f64], w: &[f64], b: &[f64]| {
                let (mut y, mut stats) = (vec![0.0; dims.len()], vec![0.0; batch * groups * 2]);
                forward(n, x, w, b, &mut y, &mut stats);
                (y, stats)
            };
            let stats = run(&x, &w, &b).1;
            let before = random.values(dims.len());
            let write = if accumulate { Write::Accumulate } else { Write::Overwrite };
            let (mut dx, mut dw, mut db) = (before.clone(), w.clone(), b.clone());
            backward(n, &dy, &x, &stats, &w, &b, write, &mut dx, &mut dw, &mut db);
            if accumulate {
                dx.iter_mut().zip(&before).for_each(|(d, b)| *d -= b);
            }
            dw.iter_mut().zip(&w).for_each(|(d, w)| *d -= w);
            db.iter_mut().zip(&b).for_each(|(d, b)| *d -= b);
            central_difference("dx", &x, &dx, &dy, |x| run(x, &w, &b).0);
            central_difference("dw", &w, &dw, &dy, |w| run(&x, w, &b).0);
            central_difference("db", &b, &db, &dy, |b| run(&x, &w, b).0);
        }
    }
}
