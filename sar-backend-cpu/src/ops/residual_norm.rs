//! Gated residual and modulated layer norm: `x += keep·γ·branch`, `y = LN(x)·(1+s) + b`.

use crate::Element;
use crate::simd::{Shared, sum1, sum2, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::{Modulation, TokenDims, Write};

/// Rows that one task handles. The backward first adds up the gradients of a sample's modulation
/// over this many rows, so that the order of these sums does not depend on the number of threads.
const ROWS: usize = 32;

/// A branch's operands, as slices.
#[derive(Clone, Copy)]
pub(crate) struct BranchSlices<'a, T> {
    pub value: &'a [T],
    /// Column offset of the gate in `ada`.
    pub gate: usize,
    /// Drop-path factor of each sample.
    pub keep: Option<&'a [T]>,
}

impl<T: Element> BranchSlices<'_, T> {
    fn keep(&self, sample: usize) -> T {
        self.keep.map_or(T::one(), |keep| keep[sample])
    }
}

/// Where the modulation of all samples lies.
#[derive(Clone, Copy)]
pub(crate) struct Ada<'a, T> {
    pub values: &'a [T],
    pub at: Modulation,
}

impl<T> Ada<'_, T> {
    /// C values of a sample from column `offset` on.
    fn of(&self, sample: usize, offset: usize, width: usize) -> &[T] {
        &self.values[sample * self.at.stride + offset..][..width]
    }
}

/// Writes `sum` (where there is a branch), `y` and `stats`.
pub(crate) fn forward<T: Element>(
    dims: TokenDims,
    eps: f64,
    x: &[T],
    branch: Option<BranchSlices<'_, T>>,
    ada: Ada<'_, T>,
    sum: &mut [T],
    y: &mut [T],
    stats: &mut [T],
) {
    let width = dims.width;
    if dims.is_empty() {
        return;
    }
    let sum = Shared::new(sum);
    let chunks = y.par_chunks_mut(ROWS * width).zip(stats.par_chunks_mut(2 * ROWS));
    chunks.enumerate().for_each(|(chunk, (y, stats))| {
        vectorized!({
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let row = chunk * ROWS + i;
                let sample = row / dims.tokens;
                let mut x = &x[row * width..][..width];
                if let Some(branch) = branch {
                    // SAFETY: a row of this chunk, which no other task touches.
                    let sum = unsafe { sum.part(row * width, width) };
                    let gate = ada.of(sample, branch.gate, width);
                    add_branch(x, &branch.value[row * width..], gate, branch.keep(sample), sum);
                    x = sum;
                }
                let (mean, inverse_std) = moments(x, T::of(eps));
                (stats[2 * i], stats[2 * i + 1]) = (mean, inverse_std);
                let scale = ada.of(sample, ada.at.scale, width);
                let shift = ada.of(sample, ada.at.shift, width);
                modulate(x, mean, inverse_std, scale, shift, y);
            }
        });
    });
}

/// The `y` of [`forward`] from its statistics and its `x` and `branch`, or from its sum and no branch.
pub(crate) fn renorm<T: Element>(
    dims: TokenDims,
    x: &[T],
    branch: Option<BranchSlices<'_, T>>,
    stats: &[T],
    ada: Ada<'_, T>,
    y: &mut [T],
) {
    let width = dims.width;
    if dims.is_empty() {
        return;
    }
    y.par_chunks_mut(ROWS * width).enumerate().for_each(|(chunk, y)| {
        with_scratch(width, |sum: &mut [T]| {
            vectorized!({
                for (i, y) in y.chunks_exact_mut(width).enumerate() {
                    let row = chunk * ROWS + i;
                    let sample = row / dims.tokens;
                    let x = seen_row(x, branch, ada, sample, row, sum);
                    let scale = ada.of(sample, ada.at.scale, width);
                    let shift = ada.of(sample, ada.at.shift, width);
                    modulate(x, stats[2 * row], stats[2 * row + 1], scale, shift, y);
                }
            });
        });
    });
}

/// What the norm of a row sees: `x`, with the branch added into `sum` where there is one.
#[inline(always)]
fn seen_row<'a, T: Element>(
    x: &'a [T],
    branch: Option<BranchSlices<'_, T>>,
    ada: Ada<'_, T>,
    sample: usize,
    row: usize,
    sum: &'a mut [T],
) -> &'a [T] {
    let width = sum.len();
    let x = &x[row * width..][..width];
    let Some(branch) = branch else { return x };
    let gate = ada.of(sample, branch.gate, width);
    add_branch(x, &branch.value[row * width..], gate, branch.keep(sample), sum);
    sum
}

#[inline(always)]
fn add_branch<T: Element>(x: &[T], value: &[T], gate: &[T], keep: T, sum: &mut [T]) {
    let (value, gate, sum) = (&value[..x.len()], &gate[..x.len()], &mut sum[..x.len()]);
    for i in 0..x.len() {
        sum[i] = x[i] + keep * gate[i] * value[i];
    }
}

/// Mean and 1/σ of a row.
#[inline(always)]
fn moments<T: Element>(x: &[T], eps: T) -> (T, T) {
    let share = T::one() / T::of(x.len() as f64);
    let mean = sum1(x, |x| x) * share;
    let variance = sum1(x, |x| (x - mean) * (x - mean)) * share;
    (mean, T::one() / (variance + eps).sqrt())
}

#[inline(always)]
fn modulate<T: Element>(x: &[T], mean: T, inverse_std: T, scale: &[T], shift: &[T], y: &mut [T]) {
    let (scale, shift, y) = (&scale[..x.len()], &shift[..x.len()], &mut y[..x.len()]);
    for i in 0..x.len() {
        y[i] = (x[i] - mean) * inverse_std * (T::one() + scale[i]) + shift[i];
    }
}

/// What the backward reads.
pub(crate) struct Saved<'a, T> {
    pub dy: &'a [T],
    /// What the norm saw or, if the branch is added `again`, what it was added to.
    pub seen: &'a [T],
    pub again: bool,
    pub stats: &'a [T],
    pub branch: Option<BranchSlices<'a, T>>,
    pub ada: Ada<'a, T>,
}

/// Gradients of x, of the branch (empty where there is none) and of the modulation.
pub(crate) fn backward<T: Element>(
    dims: TokenDims,
    saved: &Saved<'_, T>,
    write: Write,
    dx: &mut [T],
    dbranch: &mut [T],
    d_ada: &mut [T],
) {
    let width = dims.width;
    let chunks = dims.tokens.div_ceil(ROWS);
    let kinds = if saved.branch.is_some() { 3 } else { 2 };
    with_scratch(dims.batch * chunks * kinds * width, |partials: &mut [T]| {
        if !dims.is_empty() {
            let (dx, dbranch) = (Shared::new(dx), Shared::new(dbranch));
            partials.par_chunks_exact_mut(kinds * width).enumerate().for_each(|(task, partial)| {
                let (sample, start) = (task / chunks, task % chunks * ROWS);
                let rows = start..(start + ROWS).min(dims.tokens);
                with_scratch(2 * width, |scratch: &mut [T]| {
                    vectorized!({
                        let (g, sum) = scratch.split_at_mut(width);
                        partial.fill(T::zero());
                        for row in rows {
                            let row = sample * dims.tokens + row;
                            // SAFETY: a row of this task's, which no other task touches.
                            let dx = unsafe { dx.part(row * width, width) };
                            let dbranch = if saved.branch.is_some() {
                                // SAFETY: as above.
                                unsafe { dbranch.part(row * width, width) }
                            } else {
                                &mut []
                            };
                            let added = saved.branch.filter(|_| saved.again);
                            let x = seen_row(saved.seen, added, saved.ada, sample, row, sum);
                            backward_row(saved, sample, row, x, write, g, dx, dbranch, partial);
                        }
                    });
                });
            });
        }
        let at = saved.ada.at;
        let offsets = [Some(at.scale), Some(at.shift), saved.branch.map(|branch| branch.gate)];
        for sample in 0..dims.batch {
            for (kind, offset) in offsets.into_iter().flatten().enumerate() {
                let d = &mut d_ada[sample * at.stride + offset..][..width];
                d.fill(T::zero());
                for chunk in 0..chunks {
                    let partial = ((sample * chunks + chunk) * kinds + kind) * width;
                    for (d, &partial) in d.iter_mut().zip(&partials[partial..]) {
                        *d += partial;
                    }
                }
            }
        }
    });
}

/// Backward of one row, for which the norm saw `x`; `partial` holds the sums of the gradients of
/// scale, shift and (with a branch) gate.
#[inline(always)]
fn backward_row<T: Element>(
    saved: &Saved<'_, T>,
    sample: usize,
    row: usize,
    x: &[T],
    write: Write,
    g: &mut [T],
    dx: &mut [T],
    dbranch: &mut [T],
    partial: &mut [T],
) {
    let n = g.len();
    let (mean, inverse_std) = (saved.stats[2 * row], saved.stats[2 * row + 1]);
    let dy = &saved.dy[row * n..][..n];
    let x = &x[..n];
    let scale = saved.ada.of(sample, saved.ada.at.scale, n);
    let (dscale, rest) = partial.split_at_mut(n);
    let (dshift, dgate) = rest.split_at_mut(n);
    for i in 0..n {
        dscale[i] += dy[i] * (x[i] - mean) * inverse_std;
        dshift[i] += dy[i];
        g[i] = dy[i] * (T::one() + scale[i]);
    }
    let share = T::one() / T::of(n as f64);
    let mean_g = sum1(g, |g| g) * share;
    let mean_gx = sum2(g, x, |g, x| g * ((x - mean) * inverse_std)) * share;
    let dx = &mut dx[..n];
    let later = write == Write::Accumulate;
    for i in 0..n {
        let normed = (x[i] - mean) * inverse_std;
        let d = inverse_std * (g[i] - mean_g - normed * mean_gx);
        dx[i] = if later { dx[i] + d } else { d };
    }
    if let Some(branch) = saved.branch {
        let keep = branch.keep(sample);
        let gate = saved.ada.of(sample, branch.gate, n);
        let value = &branch.value[row * n..][..n];
        let (dbranch, dgate) = (&mut dbranch[..n], &mut dgate[..n]);
        for i in 0..n {
            let d = keep * dx[i];
            dbranch[i] = d * gate[i];
            dgate[i] += d * value[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_by_hand() {
        let dims = TokenDims { batch: 1, tokens: 1, width: 2 };
        let at = Modulation { stride: 6, scale: 0, shift: 2 };
        let ada = Ada { values: &[1.0, 0.0, 10.0, 20.0, 2.0, 1.0], at };
        let branch = BranchSlices { value: &[1.0, 4.0], gate: 4, keep: Some(&[0.5]) };
        let (mut sum, mut y, mut stats) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        forward(dims, 0.0, &[1.0, 2.0], Some(branch), ada, &mut sum, &mut y, &mut stats);
        // The sum is [1+½·2·1, 2+½·1·4], of mean 3 and deviation 1.
        assert_eq!((sum, stats, y), ([2.0, 4.0], [3.0, 1.0], [8.0, 21.0]));
        let mut again = [0.0; 2];
        renorm(dims, &sum, None, &stats, ada, &mut again);
        assert_eq!(again, y);
        renorm(dims, &[1.0, 2.0], Some(branch), &stats, ada, &mut again);
        assert_eq!(again, y);
    }

    /// ⟨y, dy⟩ of the whole op, for the central differences below.
    fn objective(dims: TokenDims, x: &[f64], value: &[f64], ada: &[f64], dy: &[f64]) -> f64 {
        let at = Modulation { stride: 3 * dims.width, scale: dims.width, shift: 0 };
        let branch = BranchSlices { value, gate: 2 * dims.width, keep: Some(&[1.5, 0.5]) };
        let mut sum = vec![0.0; dims.len()];
        let (mut y, mut stats) = (sum.clone(), vec![0.0; 2 * dims.rows()]);
        let ada = Ada { values: ada, at };
        forward(dims, 1e-6, x, Some(branch), ada, &mut sum, &mut y, &mut stats);
        y.iter().zip(dy).map(|(y, dy)| y * dy).sum()
    }

    #[test]
    fn gradients_match_central_differences() {
        /// Truncation h² and rounding 1e-16/h of a central difference with h = 1e-5.
        const TOLERANCE: f64 = 1e-8;
        let dims = TokenDims { batch: 2, tokens: 37, width: 5 };
        let noise = |n: usize, k: usize| -> Vec<f64> {
            (0..n).map(|i| ((i * 37 + k) % 101) as f64 / 50.0 - 1.0).collect()
        };
        let (x, value, dy) = (noise(370, 1), noise(370, 5), noise(370, 11));
        let values = noise(30, 7);
        let at = Modulation { stride: 15, scale: 5, shift: 0 };
        let ada = Ada { values: &values, at };
        let branch = BranchSlices { value: &value, gate: 10, keep: Some(&[1.5, 0.5]) };
        let (mut sum, mut y, mut stats) = (vec![0.0; 370], vec![0.0; 370], vec![0.0; 148]);
        forward(dims, 1e-6, &x, Some(branch), ada, &mut sum, &mut y, &mut stats);
        let (stats, branch) = (&stats, Some(branch));
        let saved = Saved { dy: &dy, seen: &sum, again: false, stats, branch, ada };
        let (mut dx, mut dbranch, mut d_ada) = (vec![2.0; 370], vec![2.0; 370], vec![2.0; 30]);
        backward(dims, &saved, Write::Overwrite, &mut dx, &mut dbranch, &mut d_ada);
        let slope = |which: usize, i: usize| {
            let mut at = [x.clone(), value.clone(), values.clone()];
            let mut side = |h: f64| {
                at[which][i] += h;
                let f = objective(dims, &at[0], &at[1], &at[2], &dy);
                at[which][i] -= h;
                f
            };
            (side(1e-5) - side(-1e-5)) / 2e-5
        };
        for i in 0..370 {
            assert!((dx[i] - slope(0, i)).abs() < TOLERANCE, "dx {i}");
            assert!((dbranch[i] - slope(1, i)).abs() < TOLERANCE, "dbranch {i}");
        }
        for i in 0..30 {
            assert!((d_ada[i] - slope(2, i)).abs() < TOLERANCE, "d_ada {i}");
        }
        let mut more = vec![2.0; 370];
        backward(dims, &saved, Write::Accumulate, &mut more, &mut dbranch, &mut d_ada);
        assert!(more.iter().zip(&dx).all(|(more, dx)| (more - dx - 2.0).abs() < TOLERANCE));
    }
}
