//! Guidance of features, before a linear head.

use crate::Element;
use crate::simd::vectorized;
use rayon::prelude::*;
use sar_math::guidance::guide;

/// Elements of one task.
const CHUNK: usize = 1 << 14;

/// `conditional` becomes `(1+t)·conditional − t·unconditional`.
pub(crate) fn forward<T: Element>(t: f64, conditional: &mut [T], unconditional: &[T]) {
    let t = T::of(t);
    (conditional.par_chunks_mut(CHUNK), unconditional.par_chunks(CHUNK)).into_par_iter().for_each(
        |(conditional, unconditional)| {
            vectorized!({
                for (c, &u) in conditional.iter_mut().zip(unconditional) {
                    *c = guide(t, *c, u);
                }
            });
        },
    );
}

#[cfg(test)]
mod tests {
    #[test]
    fn moves_away_from_the_unconditional() {
        let mut x = [1.0f64, -2.0];
        super::forward(0.5, &mut x, &[3.0, -2.0]);
        assert_eq!(x, [0.0, -2.0]);
    }
}
