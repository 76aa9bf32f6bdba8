//! Merging of ids: some scales from one set, the others from another.

use sar_math::ScaleSchedule;

/// Replaces the tokens of the scales for which `from_other` is true with those of `other`.
pub(crate) fn forward(
    schedule: &ScaleSchedule,
    from_other: &[bool],
    other_bt: &[u32],
    ids_bt: &mut [u32],
) {
    let tokens = schedule.tokens();
    for (other, ids) in other_bt.chunks_exact(tokens).zip(ids_bt.chunks_exact_mut(tokens)) {
        for (scale, _) in from_other.iter().enumerate().filter(|(_, take)| **take) {
            let range = schedule.range(scale);
            ids[range.clone()].copy_from_slice(&other[range]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_whole_scales() {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
        let mut ids = [0; 10];
        forward(&schedule, &[false, true], &[9, 1, 2, 3, 4, 9, 5, 6, 7, 8], &mut ids);
        assert_eq!(ids, [0, 1, 2, 3, 4, 0, 5, 6, 7, 8]);
    }
}
