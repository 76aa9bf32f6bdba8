//! The global norm of a gradient.

use crate::Element;
use crate::simd::vectorized;
use rayon::prelude::*;

/// Elements of one partial sum. Fixed, so that the sum is the same whatever the thread count.
const CHUNK: usize = 1 << 16;
/// Interleaved sums of a chunk: two AVX-512 vectors of f64.
const LANES: usize = 16;

/// `‖grads‖₂`, summed in f64; not finite where an element is not.
pub(crate) fn forward<T: Element>(grads: &[T]) -> T {
    let partial: Vec<f64> =
        grads.par_chunks(CHUNK).map(|chunk| vectorized!(sum_squares(chunk))).collect();
    T::of(partial.iter().sum::<f64>().sqrt())
}

#[inline(always)]
fn sum_squares<T: Element>(chunk: &[T]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let blocks = chunk.chunks_exact(LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += x.wide() * x.wide();
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x.wide() * x.wide();
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding the root of a sum in f64 to f32 moves it by 2⁻²⁴ of itself at most.
    const ROUNDED_ONCE: f64 = 1e-7;

    #[test]
    fn norm_of_a_triangle_and_of_what_is_not_finite() {
        assert_eq!(forward(&[3.0f32, 4.0]), 5.0);
        assert_eq!(forward::<f64>(&[]), 0.0);
        assert!(!forward(&[1.0f32, f32::NAN]).is_finite());
        // Squares that overflow f32 are summed in f64.
        assert_eq!(forward(&[3e30f32, 4e30]), 5e30);
    }

    #[test]
    fn long_gradients_sum_every_chunk() {
        let grads = vec![0.5f32; 3 * CHUNK + 7];
        let want = (grads.len() as f64 * 0.25).sqrt();
        assert!((f64::from(forward(&grads)) - want).abs() < ROUNDED_ONCE * want);
    }
}
