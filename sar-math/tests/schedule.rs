//! Properties of schedules through the public API.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sar_math::{MAX_SCALES, Scale, ScaleSchedule, ScheduleError};

/// Any valid schedule, square or rectangular.
fn schedules() -> impl Strategy<Value = ScaleSchedule> {
    let growth = prop_oneof![(1usize..3, 0usize..3), (0usize..3, 1usize..3)];
    prop::collection::vec(growth, 0..MAX_SCALES).prop_map(|growth| {
        let mut scales = vec![Scale::square(1)];
        for (h, w) in growth {
            let before = scales[scales.len() - 1];
            scales.push(Scale { height: before.height + h, width: before.width + w });
        }
        ScaleSchedule::new(&scales).unwrap()
    })
}

proptest! {
    #[test]
    fn offsets_tile_the_sequence(schedule in schedules()) {
        let mut end = 0;
        for (i, scale) in schedule.scales().iter().enumerate() {
            let range = schedule.range(i);
            prop_assert_eq!(range.start, end);
            prop_assert_eq!(range.len(), scale.tokens());
            prop_assert_eq!(schedule.span(i..i + 1), range.clone());
            end = range.end;
        }
        prop_assert_eq!(end, schedule.tokens());
        prop_assert_eq!(schedule.span(0..schedule.len()), 0..end);
        prop_assert!(schedule.range(schedule.len()).is_empty());
    }

    #[test]
    fn tokens_and_places_round_trip(schedule in schedules()) {
        for token in 0..schedule.tokens() {
            let place = schedule.place(token).unwrap();
            prop_assert_eq!(schedule.token(place), Some(token));
            prop_assert_eq!(schedule.scale_of(token), Some(place.scale));
            prop_assert!(schedule.range(place.scale).contains(&token));
            // A token sees its own scale and all before it: exactly the tokens up to its scale's end.
            prop_assert_eq!(schedule.visible(token), schedule.range(place.scale).end);
        }
        prop_assert_eq!(schedule.place(schedule.tokens()), None);
        prop_assert_eq!(schedule.visible(schedule.tokens()), 0);
    }

    #[test]
    fn text_round_trips(schedule in schedules()) {
        let text = schedule.to_string();
        prop_assert_eq!(text.parse(), Ok(schedule));
        prop_assert_eq!(text.replace('_', ",").parse(), Ok(schedule));
        prop_assert_eq!(text.replace('_', " , ").parse(), Ok(schedule));
    }

    #[test]
    fn parsing_never_panics(text in "[0-9x_, ]{0,24}|\\PC{0,12}") {
        if let Ok(schedule) = text.parse::<ScaleSchedule>() {
            prop_assert_eq!(schedule.to_string().parse(), Ok(schedule));
        }
    }
}

#[test]
fn every_invalid_schedule_says_which_scale_and_why() {
    let rectangle = |height, width| Scale { height, width };
    let cases = [
        ("", ScheduleError::Empty, "no scale given"),
        ("1_0_3", ScheduleError::ZeroSide { scale: 1 }, "scale 2 has a side of 0"),
        ("1_2x0", ScheduleError::ZeroSide { scale: 1 }, "scale 2 has a side of 0"),
        (
            "1_2_1025",
            ScheduleError::TooLarge { scale: 2, side: 1025 },
            "scale 3 has a side of 1025",
        ),
        ("2_3", ScheduleError::FirstNotSingle { found: Scale::square(2) }, "scale 1 is 2"),
        (
            "1_3_2",
            ScheduleError::NotGrowing {
                scale: 2,
                found: Scale::square(2),
                before: Scale::square(3),
            },
            "scale 3 (2) does not grow over scale 2 (3)",
        ),
        (
            "1_2x3_3x2",
            ScheduleError::NotGrowing { scale: 2, found: rectangle(3, 2), before: rectangle(2, 3) },
            "scale 3 (3x2) does not grow over scale 2 (2x3)",
        ),
        ("1_2_x3", ScheduleError::NotAScale { scale: 2 }, "entry 3"),
        ("1_2_", ScheduleError::NotAScale { scale: 2 }, "entry 3"),
        ("1_-2", ScheduleError::NotAScale { scale: 1 }, "entry 2"),
        ("1_+2", ScheduleError::NotAScale { scale: 1 }, "entry 2"),
        (
            "1_99999999999999999999999",
            ScheduleError::TooLarge { scale: 1, side: usize::MAX },
            "scale 2 has a side of",
        ),
    ];
    for (text, error, message) in cases {
        assert_eq!(text.parse::<ScaleSchedule>(), Err(error), "{text}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let sides: Vec<usize> = (1..=MAX_SCALES + 1).collect();
    let error = ScaleSchedule::from_sides(&sides).unwrap_err();
    assert_eq!(error, ScheduleError::TooMany { found: MAX_SCALES + 1 });
    assert!(
        error.to_string().contains("scale 33 is one too many: 33 given, at most 32"),
        "{error}"
    );
    let text: Vec<String> = sides.iter().map(ToString::to_string).collect();
    assert_eq!(text.join("_").parse::<ScaleSchedule>(), Err(error));
    assert!(ScaleSchedule::from_sides(&sides[..MAX_SCALES]).is_ok());
}

#[test]
fn the_published_schedule_has_680_tokens() {
    let schedule = ScaleSchedule::published_256();
    assert_eq!(schedule.to_string(), "1_2_3_4_5_6_8_10_13_16");
    assert_eq!((schedule.tokens(), schedule.len(), schedule.last().tokens()), (680, 10, 256));
}

/// The names are VAR's: by the side of the image in pixels, of which a token of the last grid has sixteen.
#[test]
fn published_schedules_have_names() {
    for side in [256, 512, 1024] {
        let schedule: ScaleSchedule = side.to_string().parse().unwrap();
        assert_eq!(schedule.last(), Scale::square(side / 16));
        // Shown as what it is.
        assert_eq!(schedule.to_string().parse(), Ok(schedule));
        assert!(schedule.to_string().starts_with("1_2_3_4_"));
    }
    assert_eq!("256".parse(), Ok(ScaleSchedule::published_256()));
    assert!("128".parse::<ScaleSchedule>().is_err());
}
