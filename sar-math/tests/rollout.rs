//! Properties of rollout plans, for every way of training and any schedule.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sar_math::rollout::{
    Decode, Extent, Method, Pass, Plan, PlanError, Rollout, SarSettings, Source, StudentTarget,
    Target,
};
use sar_math::{MAX_SCALES, ScaleSchedule};

fn methods() -> impl Strategy<Value = Method> {
    prop_oneof![
        Just(Method::Teacher),
        Just(Method::Sar(Extent::All)),
        Just(Method::Sar(Extent::Last)),
        Just(Method::Sar(Extent::Random)),
        Just(Method::Student),
        (0usize..12).prop_map(|teacher_scales| Method::Hybrid { teacher_scales }),
        Just(Method::Interleaved),
    ]
}

fn targets() -> impl Strategy<Value = StudentTarget> {
    prop::sample::select(vec![
        StudentTarget::TeacherHard,
        StudentTarget::TeacherSoft,
        StudentTarget::GroundTruth,
    ])
}

fn schedules() -> impl Strategy<Value = ScaleSchedule> {
    prop::collection::btree_set(2usize..20, 0..11).prop_map(|sides| {
        let sides: Vec<usize> = std::iter::once(1).chain(sides).collect();
        ScaleSchedule::from_sides(&sides).unwrap()
    })
}

/// What holds for every pass of every plan over `whole`.
fn check_pass(pass: &Pass, whole: &ScaleSchedule) -> Result<(), TestCaseError> {
    let len = pass.schedule.len();
    prop_assert_eq!(ScaleSchedule::new(pass.schedule.scales()), Ok(pass.schedule));
    let mut end = 0;
    for i in 0..len {
        // Offsets tile the pass, and its scales are scales of the whole in order.
        prop_assert_eq!(pass.schedule.range(i).start, end);
        end = pass.schedule.range(i).end;
        prop_assert_eq!(pass.schedule.scales()[i], whole.scales()[pass.origin[i]]);
        prop_assert!(i == 0 || pass.origin[i - 1] < pass.origin[i]);
        // Every source is the scale right before the one generated; the first is the class token.
        match pass.source[i] {
            Source::Class => prop_assert_eq!(i, 0),
            Source::GroundTruth { scale } | Source::Rollout { scale } => {
                prop_assert!(i > 0);
                prop_assert_eq!(scale + 1, pass.origin[i]);
            }
            Source::None => prop_assert!(false, "scale {} has no source", i),
        }
        // A target is of the scale generated.
        match pass.target[i] {
            Target::None => prop_assert_eq!(i, 0),
            Target::GroundTruth { scale }
            | Target::Rollout { scale }
            | Target::TeacherSoft { scale } => prop_assert_eq!(scale, pass.origin[i]),
        }
    }
    prop_assert_eq!(end, pass.schedule.tokens());
    for i in len..MAX_SCALES {
        prop_assert_eq!((pass.source[i], pass.target[i]), (Source::None, Target::None));
    }
    Ok(())
}

/// Whether the rollout has decoded `scale` by the time a pass reads it.
fn decoded(rollout: &Rollout, scale: usize) -> bool {
    match rollout {
        Rollout::None => false,
        Rollout::Parallel { needed } => needed[scale],
        Rollout::ScaleByScale { scales } => scale < *scales,
    }
}

proptest! {
    #[test]
    fn nothing_reads_what_does_not_exist(
        method in methods(), target in targets(), whole in schedules(), seed: u64, step: u64,
    ) {
        let plan = match Plan::new(method, target, &whole, seed, step) {
            Ok(plan) => plan,
            Err(PlanError::OneScale) => {
                prop_assert_eq!(whole.len(), 1);
                return Ok(());
            }
            Err(error) => {
                prop_assert!(matches!(error, PlanError::HybridScales { asked, scales }
                    if asked == 0 || asked > scales), "{}", error);
                return Ok(());
            }
        };
        check_pass(&plan.first, &whole)?;
        prop_assert_eq!(plan.first.schedule, whole);
        prop_assert!(plan.first.with_start);
        prop_assert_eq!(plan.first.supervised_tokens(), whole.tokens());
        let before_first = matches!(plan.rollout, Rollout::ScaleByScale { .. });
        for (i, source) in plan.first.source.iter().enumerate() {
            if let Source::Rollout { scale } = *source {
                prop_assert!(before_first && decoded(&plan.rollout, scale), "scale {}", i);
            }
        }
        for target in plan.first.target {
            let truth = matches!(target, Target::None | Target::GroundTruth { .. });
            prop_assert!(truth, "{:?}", target);
        }
        if let Some(second) = plan.second {
            check_pass(&second, &whole)?;
            prop_assert!(!second.with_start && !second.supervised(0));
            prop_assert_eq!(second.supervised_tokens(), second.schedule.tokens() - 1);
            for i in 1..second.schedule.len() {
                prop_assert!(second.supervised(i));
                let Source::Rollout { scale } = second.source[i] else {
                    return Err(TestCaseError::fail("a student reads the rollout"));
                };
                prop_assert!(decoded(&plan.rollout, scale) && second.reads_rollout()[scale]);
                if let Target::Rollout { scale } = second.target[i] {
                    prop_assert!(decoded(&plan.rollout, scale));
                }
            }
        }
    }

    #[test]
    fn a_scale_by_scale_decode_reads_only_what_it_has_decoded(
        method in methods(), whole in schedules(),
    ) {
        if let Ok(plan) = Plan::new(method, StudentTarget::TeacherHard, &whole, 0, 0)
            && let Rollout::ScaleByScale { scales } = plan.rollout
        {
            prop_assert!(scales < whole.len());
            for i in 0..scales {
                if let Source::Rollout { scale } = plan.first.source[i] {
                    prop_assert!(scale < i);
                }
            }
            // Nothing is decoded in vain.
            prop_assert!(plan.first.reads_rollout()[scales - 1]);
        }
    }

    #[test]
    fn names_round_trip(method in methods(), target in targets()) {
        prop_assert_eq!(method.to_string().parse(), Ok(method));
        prop_assert_eq!(target.to_string().parse(), Ok(target));
    }
}

fn plan(method: &str, schedule: &str) -> Plan {
    let schedule = schedule.parse().unwrap();
    Plan::new(method.parse().unwrap(), StudentTarget::TeacherHard, &schedule, 1, 2).unwrap()
}

/// One letter a scale: class token, ground truth, rollout.
fn sources(pass: &Pass) -> String {
    let letter = |s: &Source| match s {
        Source::None => "",
        Source::Class => "c",
        Source::GroundTruth { .. } => "g",
        Source::Rollout { .. } => "r",
    };
    pass.source.iter().map(letter).collect()
}

#[test]
fn the_ways_of_training_read_what_their_names_say() {
    let first = |method: &str| sources(&plan(method, "1_2_3_4_5").first);
    assert_eq!(first("teacher"), "cgggg");
    assert_eq!(first("sar-all"), "cgggg");
    assert_eq!(first("student"), "crrrr");
    assert_eq!(first("hybrid:1"), "crrrr");
    assert_eq!(first("hybrid:3"), "cggrr");
    assert_eq!(first("hybrid:5"), "cgggg");
    assert_eq!(first("interleaved"), "crgrg");

    let second = |method: &str| plan(method, "1_2_3_4_5").second.unwrap();
    assert_eq!(
        (sources(&second("sar-all")), second("sar-all").schedule.len()),
        ("crrrr".into(), 5)
    );
    assert_eq!(second("sar-last").schedule, "1_5".parse().unwrap());
    assert_eq!(second("sar-last").source[1], Source::Rollout { scale: 3 });
    assert_eq!(second("sar-last").target[1], Target::Rollout { scale: 4 });
    assert_eq!(plan("hybrid:5", "1_2_3_4_5").rollout, Rollout::None);
    assert_eq!(plan("interleaved", "1_2_3_4_5").rollout, Rollout::ScaleByScale { scales: 3 });
}

#[test]
fn random_extent_reaches_every_transition_and_repeats_itself() {
    let schedule: ScaleSchedule = "1_2_3_4".parse().unwrap();
    let mut seen = [false; 4];
    for step in 0..100 {
        let method = Method::Sar(Extent::Random);
        let draw = || Plan::new(method, StudentTarget::GroundTruth, &schedule, 9, step).unwrap();
        assert_eq!(draw(), draw());
        let second = draw().second.unwrap();
        assert_eq!(second.schedule.len(), 2);
        seen[second.origin[1]] = true;
        // Ground-truth targets need only the codes that are read.
        let Rollout::Parallel { needed } = draw().rollout else { panic!("a parallel rollout") };
        assert_eq!(needed, second.reads_rollout());
    }
    assert_eq!(seen, [false, true, true, true]);
}

#[test]
fn errors_say_what_was_expected() {
    let one: ScaleSchedule = "1".parse().unwrap();
    let error = Plan::new(Method::Student, StudentTarget::TeacherHard, &one, 0, 0).unwrap_err();
    assert!(error.to_string().contains("1 scale, expected at least 2"), "{error}");
    let three: ScaleSchedule = "1_2_3".parse().unwrap();
    let hybrid = Method::Hybrid { teacher_scales: 4 };
    let error = Plan::new(hybrid, StudentTarget::TeacherHard, &three, 0, 0).unwrap_err();
    assert!(error.to_string().contains("4 scales from the teacher, expected 1 to 3"), "{error}");
    assert!("sar".parse::<Method>().unwrap_err().to_string().contains("sar-last"));
    assert!("soft".parse::<StudentTarget>().unwrap_err().to_string().contains("teacher-soft"));
    assert!(SarSettings::preset("papr").unwrap_err().to_string().contains("paper or release"));
}

#[test]
fn presets_are_the_published_settings() {
    let (paper, release) =
        (SarSettings::preset("paper").unwrap(), SarSettings::preset("release").unwrap());
    assert_eq!((paper.extent, paper.sigma), (Extent::All, 0.1));
    assert_eq!((release.extent, release.sigma), (Extent::Last, 0.01));
    for preset in [paper, release] {
        assert_eq!(preset.target, StudentTarget::TeacherHard);
        let Decode { draw: Some(filter), guidance } = preset.decode else { panic!("sampled") };
        assert_eq!((filter.top_k, filter.top_p), (900, 0.96));
        assert_eq!(guidance.ramp(3).is_some(), preset == release);
    }
}
