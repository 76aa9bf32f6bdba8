//! Running average of the parameters.

use crate::Element;
use crate::simd::vectorized;
use rayon::prelude::*;

/// Elements of one task.
const CHUNK: usize = 1 << 16;

/// `average = decay·average + (1−decay)·params`.
pub(crate) fn forward<T: Element>(decay: f64, params: &[T], average: &mut [T]) {
    let (decay, rest) = (T::of(decay), T::of(1.0 - decay));
    (average.par_chunks_mut(CHUNK), params.par_chunks(CHUNK)).into_par_iter().for_each(
        |(average, params)| {
            vectorized!({
                for (average, &param) in average.iter_mut().zip(params) {
                    *average = decay * *average + rest * param;
                }
            });
        },
    );
}

#[cfg(test)]
mod tests {
    #[test]
    fn moves_by_the_rest_of_the_decay() {
        let mut average = [1.0f64, -2.0];
        super::forward(0.75, &[5.0, 2.0], &mut average);
        assert_eq!(average, [2.0, -1.0]);
    }
}
