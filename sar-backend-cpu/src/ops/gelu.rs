//! GELU, tanh form: `½x(1+tanh(u))` with `u = √(2/π)(x+0.044715x³)`, which is `x·σ(2u)`.

use crate::Element;
use crate::simd::{CHUNK, vectorized};
use rayon::prelude::*;

/// 2√(2/π).
const SLOPE: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044_715;

pub(crate) fn forward<T: Element>(x: &[T], y: &mut [T]) {
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        vectorized!({
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * gate(x).0;
            }
        });
    });
}

/// `dy` becomes `dy·(s + x·s(1−s)·2u')`, where `s = σ(2u)`.
pub(crate) fn backward<T: Element>(x: &[T], dy: &mut [T]) {
    x.par_chunks(CHUNK).zip(dy.par_chunks_mut(CHUNK)).for_each(|(x, dy)| {
        vectorized!({
            for (dy, &x) in dy.iter_mut().zip(x) {
                *dy *= slope(x, gate(x));
            }
        });
    });
}

/// [`forward`] and [`backward`] in place: `x` becomes y and `dy` becomes dx; the gate is computed
/// only once.
pub(crate) fn again_backward<T: Element>(x: &mut [T], dy: &mut [T]) {
    x.par_chunks_mut(CHUNK).zip(dy.par_chunks_mut(CHUNK)).for_each(|(x, dy)| {
        vectorized!({
            for (dy, at) in dy.iter_mut().zip(x) {
                let x = *at;
                let gate = gate(x);
                *at = x * gate.0;
                *dy *= slope(x, gate);
            }
        });
    });
}

/// gelu'(x), given the gate.
#[inline(always)]
fn slope<T: Element>(x: T, (s, x2): (T, T)) -> T {
    let slope = T::of(SLOPE) * (T::one() + T::of(3.0 * CUBIC) * x2);
    s + x * s * (T::one() - s) * slope
}

/// σ(2u) and x².
#[inline(always)]
fn gate<T: Element>(x: T) -> (T, T) {
    let x2 = x * x;
    let u = T::of(SLOPE) * x * (T::one() + T::of(CUBIC) * x2);
    (T::one() / (T::one() + (-u).vexp()), x2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few roundings of f32 at the size of the value.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn value_and_slope_match_the_formula_in_f64() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.005).collect();
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![1.0; x.len()]);
        forward(&x, &mut y);
        backward(&x, &mut dx);
        let gelu = |x: f64| {
            let u = (2.0 / core::f64::consts::PI).sqrt() * (x + CUBIC * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        };
        for ((&x, &y), &dx) in x.iter().zip(&y).zip(&dx) {
            let x = f64::from(x);
            assert!((f64::from(y) - gelu(x)).abs() <= TOLERANCE * (1.0 + x.abs()), "{x}: {y}");
            let slope = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
            assert!((f64::from(dx) - slope).abs() <= TOLERANCE * (1.0 + x.abs()), "{x}: {dx}");
        }
    }
}
