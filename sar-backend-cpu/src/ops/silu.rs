//! SiLU: `x·σ(x)`.

use crate::Element;
use crate::simd::{CHUNK, vectorized};
use rayon::prelude::*;

pub(crate) fn forward<T: Element>(x: &[T], y: &mut [T]) {
    x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| {
        vectorized!({
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * sigmoid(x);
            }
        });
    });
}

/// `dy` becomes `dy·s(1 + x(1−s))`, where `s = σ(x)`.
pub(crate) fn backward<T: Element>(x: &[T], dy: &mut [T]) {
    x.par_chunks(CHUNK).zip(dy.par_chunks_mut(CHUNK)).for_each(|(x, dy)| {
        vectorized!({
            for (dy, &x) in dy.iter_mut().zip(x) {
                let s = sigmoid(x);
                *dy *= s * (T::one() + x * (T::one() - s));
            }
        });
    });
}

#[inline(always)]
fn sigmoid<T: Element>(x: T) -> T {
    T::one() / (T::one() + (-x).vexp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few roundings of f32 at the size of the value.
    const TOLERANCE: f64 = 1e-6;

    #[test]
    fn value_and_slope_match_the_formula_in_f64() {
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.01).collect();
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![1.0; x.len()]);
        forward(&x, &mut y);
        backward(&x, &mut dx);
        for ((&x, &y), &dx) in x.iter().zip(&y).zip(&dx) {
            let x = f64::from(x);
            let s = 1.0 / (1.0 + (-x).exp());
            assert!((f64::from(y) - x * s).abs() <= TOLERANCE * (1.0 + x.abs()), "{x}: {y}");
            let slope = s * (1.0 + x * (1.0 - s));
            assert!((f64::from(dx) - slope).abs() <= TOLERANCE, "{x}: {dx}");
        }
    }
}
