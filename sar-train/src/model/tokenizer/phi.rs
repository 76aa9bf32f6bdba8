//! The convolutions φ through which the maps of the scales add up.

use crate::params::ALIGNMENT;
use sar_math::Real;
use sar_math::backend::{Conv, Slot};

/// Share of the convolution in φ(h) = (1−r)·h + r·conv(h), as published (`quant_resi`).
const CONVOLVED: f64 = 0.5;

/// φ as one convolution, and its negative, which subtracts.
#[derive(Clone, Copy)]
pub(super) struct Phi {
    pub(super) add: Conv,
    pub(super) take: Conv,
}

/// Appends φ, or its negative, as one convolution: the unchanged share of h is added to the
/// kernels' centres.
pub(super) fn fold<T: Real>(weight: &[T], bias: &[T], sign: f64, to: &mut Vec<T>) -> Conv {
    const PLACES: usize = 9;
    const CENTRE: usize = 4;
    let start = align(to);
    let channels = bias.len();
    for (i, value) in weight.iter().enumerate() {
        let (output, input, place) = (i / PLACES / channels, i / PLACES % channels, i % PLACES);
        let stays = if output == input && place == CENTRE { 1.0 - CONVOLVED } else { 0.0 };
        to.push(T::of(sign * (CONVOLVED * value.wide() + stays)));
    }
    let weight = Slot { offset: start, len: weight.len() };
    let bias_at = align(to);
    to.extend(bias.iter().map(|b| T::of(sign * CONVOLVED * b.wide())));
    Conv { weight, bias: Slot { offset: bias_at, len: channels } }
}

/// Pads to the alignment of a model's tensors; returns the new length.
fn align<T: Real>(values: &mut Vec<T>) -> usize {
    values.resize(values.len().next_multiple_of(ALIGNMENT), T::zero());
    values.len()
}

/// Returns which of `count` convolutions scale i of n uses: the published rule, in the same
/// arithmetic, since several scales lie half-way between two.
pub(super) fn phi_of(count: usize, i: usize, n: usize) -> usize {
    // `numpy.linspace(first, 1 − first, count)`.
    let first = if count == 4 { 1.0 / 3.0 / count as f64 } else { 0.5 / count as f64 };
    let step = (1.0 - first - first) / (count.max(2) - 1) as f64;
    let tick = |k: usize| match k {
        _ if count > 1 && k + 1 == count => 1.0 - first,
        _ => k as f64 * step + first,
    };
    let at = i as f64 / (n.max(2) - 1) as f64;
    let distance = |k: usize| (tick(k) - at).abs();
    (0..count).reduce(|best, k| if distance(k) < distance(best) { k } else { best }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same choices as numpy's `argmin(|ticks − i/(n−1)|)`, including the half-way cases.
    #[test]
    fn scales_take_the_published_convolutions() {
        let chosen = |count, n| (0..n).map(|i| phi_of(count, i, n)).collect::<Vec<_>>();
        assert_eq!(chosen(4, 10), [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
        assert_eq!(chosen(4, 5), [0, 1, 2, 2, 3]);
        assert_eq!(chosen(1, 3), [0, 0, 0]);
        assert_eq!(chosen(2, 4), [0, 0, 1, 1]);
        assert_eq!(chosen(4, 1), [0]);
    }

    #[test]
    fn half_of_the_map_stays() {
        let weight: Vec<f64> = (0..36).map(f64::from).collect();
        let mut folded = vec![9.0; 3];
        let conv = fold(&weight, &[1.0, -3.0], -1.0, &mut folded);
        assert_eq!(conv.weight, Slot { offset: ALIGNMENT, len: 36 });
        assert_eq!(folded[conv.bias.range()], [-0.5, 1.5]);
        let kernel = &folded[conv.weight.range()];
        // The centres: input 0 of output 0, and input 1 of output 1.
        assert_eq!([kernel[4], kernel[31]], [-2.5, -16.0]);
        assert_eq!([kernel[0], kernel[13], kernel[22]], [0.0, -6.5, -11.0]);
    }
}
