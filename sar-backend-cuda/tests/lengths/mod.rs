//! Lengths that every op that runs over tokens is tested at.

use sar_math::ScaleSchedule;

/// Schedules of 1, 5, 311, 591, 680 (the published one) and 1469 tokens: of one token, of fewer than a tile, and
/// that end within one; scales that are not square; beyond what a model was trained on.
pub fn schedules() -> impl Iterator<Item = ScaleSchedule> {
    let all = [
        (1, "1"),
        (5, "1_2"),
        (311, "1_2_3_4_5_6_8_12x13"),
        (591, "1_2_3_4_6_10_13_16"),
        (680, "1_2_3_4_5_6_8_10_13_16"),
        (1469, "1_2_3_4_5_6_8_10_13_16x20_25x29"),
    ];
    all.into_iter().map(|(tokens, scales)| {
        let schedule: ScaleSchedule = scales.parse().unwrap();
        assert_eq!(schedule.tokens(), tokens, "{scales}");
        schedule
    })
}
