//! Sums of per-token values by scale.

use crate::Element;
use sar_math::ScaleSchedule;

/// `sums[i] = Σ values[b, l]` over the batch and the tokens of scale i, summed in f64 and in order.
pub(crate) fn forward<T: Element>(schedule: &ScaleSchedule, values_bl: &[T], sums: &mut [T]) {
    let tokens = schedule.tokens().max(1);
    for (i, sum) in sums.iter_mut().enumerate() {
        let range = schedule.range(i);
        let of_sample = |sample: &[T]| sample[range.clone()].iter().map(|v| v.wide()).sum::<f64>();
        *sum = T::of(values_bl.chunks_exact(tokens).map(of_sample).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_batch_and_grid() {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0];
        let mut sums = [7.0f64; 2];
        forward(&schedule, &values, &mut sums);
        assert_eq!(sums, [11.0, 154.0]);
    }
}
