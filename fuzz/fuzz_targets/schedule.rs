//! A schedule from text: what parses is shown as it is read, and its tokens tile the sequence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_math::ScaleSchedule;

fuzz_target!(|text: &str| {
    let Ok(schedule) = text.parse::<ScaleSchedule>() else { return };
    assert_eq!(schedule.to_string().parse(), Ok(schedule));
    let mut end = 0;
    for scale in 0..schedule.len() {
        let range = schedule.range(scale);
        assert_eq!(range.start, end);
        end = range.end;
    }
    assert_eq!(end, schedule.tokens());
});
