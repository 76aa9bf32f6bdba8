//! Mean squared error and its gradient.

use crate::Element;
use crate::simd::{sum1, vectorized};

/// Returns `mean (x−target)²`; `dx = weight·2(x−target)/len`.
pub(crate) fn squared_error<T: Element>(x: &[T], target: &[T], weight: f64, dx: &mut [T]) -> T {
    if x.is_empty() {
        return T::zero();
    }
    let factor = T::of(2.0 * weight / x.len() as f64);
    vectorized!({
        for ((dx, &x), &t) in dx.iter_mut().zip(x).zip(target) {
            *dx = x - t;
        }
        let mean = sum1(dx, |v| v * v) / T::of(x.len() as f64);
        for dx in dx.iter_mut() {
            *dx *= factor;
        }
        mean
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::{Random, central_difference};
    use super::*;
    use proptest::prelude::*;

    /// A few roundings of f64, of numbers of order 1.
    const ROUNDING: f64 = 1e-14;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn gradient_is_the_slope(seed: u64, len in 1..70usize, weight in -2.0..2.0f64) {
            let mut random = Random(seed);
            let (x, target) = (random.values(len), random.values(len));
            let mut dx = vec![f64::NAN; len];
            let loss = squared_error(&x, &target, weight, &mut dx);
            let plain = x.iter().zip(&target).map(|(x, t)| (x - t) * (x - t)).sum::<f64>();
            prop_assert!((loss - plain / len as f64).abs() < ROUNDING);
            central_difference("dx", &x, &dx, &[weight], |x| {
                vec![squared_error(x, &target, weight, &mut vec![0.0; len])]
            });
        }
    }
}
