//! The plain f64 mathematics that several formulas share.

use alloc::vec::Vec;
use num_traits::Float;

pub(super) fn exp(x: f64) -> f64 {
    Float::exp(x)
}

pub(super) fn ln(x: f64) -> f64 {
    Float::ln(x)
}

pub(super) fn sqrt(x: f64) -> f64 {
    Float::sqrt(x)
}

pub(super) fn tanh(x: f64) -> f64 {
    Float::tanh(x)
}

pub(super) fn floor(x: f64) -> f64 {
    Float::floor(x)
}

/// Σ aᵢ·bᵢ.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// `max(‖v‖₂, least)`.
pub(super) fn norm(v: &[f64], least: f64) -> f64 {
    sqrt(dot(v, v)).max(least)
}

/// `v / max(‖v‖₂, 1e-12)`.
pub(super) fn normalised(v: &[f64]) -> Vec<f64> {
    let n = norm(v, crate::backend::NORMALIZE_EPS);
    v.iter().map(|x| x / n).collect()
}

/// `ln Σ exp(v)`.
pub(super) fn log_sum_exp(v: &[f64]) -> f64 {
    let top = v.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    top + ln(v.iter().map(|&x| exp(x - top)).sum())
}

/// `exp(v) / Σ exp(v)`.
pub(super) fn softmax(v: &[f64]) -> Vec<f64> {
    let lse = log_sum_exp(v);
    v.iter().map(|&x| exp(x - lse)).collect()
}

/// Index of the largest element, the lowest on ties; NaN counts as −∞, and the index is 0 where
/// nothing is above that.
pub(super) fn argmax(v: &[f64]) -> usize {
    let (mut best, mut largest) = (0, f64::NEG_INFINITY);
    for (i, &x) in v.iter().enumerate() {
        if x > largest {
            (best, largest) = (i, x);
        }
    }
    best
}

/// Area resampling of a map `[h, w]` to `[to_h, to_w]`: output o averages the inputs
/// ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉−1.
pub(super) fn area(map: &[f64], (h, w): (usize, usize), (to_h, to_w): (usize, usize)) -> Vec<f64> {
    let window = |o: usize, n: usize, m: usize| o * n / m..((o + 1) * n).div_ceil(m);
    let mut out = Vec::new();
    for y in 0..to_h {
        for x in 0..to_w {
            let (rows, columns) = (window(y, h, to_h), window(x, w, to_w));
            let count = (rows.len() * columns.len()) as f64;
            let sum: f64 = rows.map(|r| columns.clone().map(|c| map[r * w + c]).sum::<f64>()).sum();
            out.push(sum / count);
        }
    }
    out
}

/// Bicubic resampling of a map `[h, w]` to `[to_h, to_w]`: cubic convolution with a = −0.75,
/// half-pixel centres, clamped borders, no antialiasing.
pub(super) fn bicubic(
    map: &[f64],
    (h, w): (usize, usize),
    (to_h, to_w): (usize, usize),
) -> Vec<f64> {
    let mut out = Vec::new();
    for y in 0..to_h {
        for x in 0..to_w {
            let mut sum = 0.0;
            for (row, weight_y) in cubic_taps(y, h, to_h) {
                for (column, weight_x) in cubic_taps(x, w, to_w) {
                    sum += weight_y * weight_x * map[row * w + column];
                }
            }
            out.push(sum);
        }
    }
    out
}

fn cubic_taps(o: usize, n: usize, m: usize) -> [(usize, f64); 4] {
    const A: f64 = -0.75;
    let source = (o as f64 + 0.5) * n as f64 / m as f64 - 0.5;
    let first = floor(source) as isize - 1;
    core::array::from_fn(|tap| {
        let place = first + tap as isize;
        let d = (source - place as f64).abs();
        let weight = if d <= 1.0 {
            ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
        } else {
            ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A
        };
        (place.clamp(0, n as isize - 1) as usize, weight)
    })
}

/// The gradient of `f` at `at[which]` by fourth-order central differences.
pub(super) fn central_gradient(
    at: &mut [Vec<f64>],
    which: usize,
    step: f64,
    f: impl Fn(&[Vec<f64>]) -> f64,
) -> Vec<f64> {
    let len = at[which].len();
    let mut gradient = Vec::with_capacity(len);
    for i in 0..len {
        let centre = at[which][i];
        let mut sum = 0.0;
        for (steps, weight) in [(-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0)] {
            at[which][i] = centre + steps * step;
            sum += weight * f(at);
        }
        at[which][i] = centre;
        gradient.push(sum / (12.0 * step));
    }
    gradient
}
