//! What is drawn at random: labels, branches and schedules.

use super::*;

/// Rows of the class table that took a gradient in the last step.
fn rows_touched(world: &World, trainer: &Trainer<'_, Cpu>) -> Vec<usize> {
    let slot = world.generator.layout().get("class_emb.weight").unwrap().slot;
    let rows = trainer.gradients().as_slice()[slot.range()].chunks(16);
    let touched = rows.enumerate().filter(|(_, row)| row.iter().any(|g| *g != 0.0));
    touched.map(|(i, _)| i).collect()
}

#[test]
fn dropped_labels_become_the_unconditional_class_at_their_rate() {
    let world = World::new(1);
    let mut config = config(Mode::Teacher);
    config.train.batch = 1;
    for (rate, expected) in [(0.0, 0..=0), (1.0, 200..=200), (0.3, 34..=86)] {
        config.train.class_dropout = rate;
        let mut trainer = world.trainer(&config);
        let mut dropped = 0;
        for _ in 0..200 {
            trainer.step(&mut world.images(1)).unwrap();
            match rows_touched(&world, &trainer).as_slice() {
                [0] => {}
                [CLASSES] => dropped += 1,
                other => panic!("rows {other:?} of the class table took a gradient"),
            }
        }
        // 200 draws with probability 0.3: within four deviations of 60.
        assert!(expected.contains(&dropped), "{dropped} of 200 dropped at a rate of {rate}");
    }
}

/// Linear over depth from nothing at the first block; what stays is scaled up.
#[test]
fn drop_path_rises_over_depth_and_keeps_the_mean() {
    let world = World::new(4);
    let mut config = config(Mode::Teacher);
    config.train.drop_path = Some(0.4);
    let mut trainer = world.trainer(&config);
    let mut dropped = [0; 4];
    for _ in 0..100 {
        trainer.step(&mut world.images(4)).unwrap();
        // Of the first sum of attention, the first of the FFN, and those of the second block.
        for (branch, keep) in trainer.replica.memory.given.keep.as_slice().chunks(4).enumerate() {
            let kept = if branch < 2 { 1.0 } else { 1.0 / 0.6 };
            for &keep in keep {
                assert!(keep == 0.0 || (keep - kept).abs() < REORDERED, "{keep}");
                dropped[branch] += usize::from(keep == 0.0);
            }
        }
    }
    assert_eq!(dropped[..2], [0, 0]);
    // 400 draws with probability 0.4: within four deviations of 160.
    assert!(dropped[2..].iter().all(|n| (121..=199).contains(n)), "{dropped:?}");
    assert_eq!(config.train.last_drop_path(2), 0.4);
    config.train.drop_path = None;
    near(config.train.last_drop_path(12), 0.05, REORDERED);
}

/// A schedule for each step, the same for all its micro-batches, in every way of training.
#[test]
fn schedules_are_drawn_for_each_step() {
    let world = World::new(8);
    let own: ScaleSchedule = "1_2_3_4".parse().unwrap();
    let hybrid = Mode::Hybrid { teacher_scales: 4 };
    for mode in [Mode::Teacher, Mode::Ssr, Mode::Student, Mode::Interleaved, hybrid] {
        let mut config = config(mode);
        config.generator.schedule = own;
        (config.train.batch, config.train.accumulate) = (2, 2);
        (config.train.random_schedules, config.train.seed) = (true, 9);
        let mut trainer = world.trainer(&config);
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..40 {
            assert!(!trainer.step(&mut world.images(2)).unwrap(), "{mode}");
            let report = trainer.report().unwrap().unwrap();
            let expected = own.random_at(9, step);
            assert_eq!(report.schedule, expected.to_string(), "{mode}");
            let of_passes = trainer.replica.memory.supervised.iter().map(|(s, _)| s.dims.schedule);
            assert_eq!(of_passes.collect::<Vec<_>>(), [expected; 2], "{mode}");
            assert_eq!(report.scale_loss.len(), expected.len());
            seen.insert(report.schedule);
        }
        assert!(seen.len() > 1, "{mode} saw {seen:?} alone");
    }
}

/// What the program checks before it makes a folder, the library refuses as well.
#[test]
fn what_cannot_be_trained_is_refused_when_the_trainer_is_made() {
    let world = World::new(4);
    let refused = |change: fn(&mut Config)| {
        let mut config = config(Mode::Teacher);
        change(&mut config);
        let (weights, quantizer) = (&world.weights, &world.quantizer);
        let generator = world.generator.clone();
        let made = Trainer::new(&world.backend, generator, &config, weights, quantizer, (3, 3));
        made.map_or_else(|e| e.to_string(), |_| String::new())
    };
    assert_eq!(refused(|_| {}), "");
    for (change, said) in [
        ((|c| c.train.accumulate = 0) as fn(&mut Config), "train.accumulate is 0"),
        (|c| c.train.batch = 0, "train.batch is 0"),
        (|c| c.train.mode = Mode::Hybrid { teacher_scales: 9 }, "9"),
    ] {
        let found = refused(change);
        assert!(found.contains(said), "'{found}' does not say '{said}'");
    }
}
