//! What rollouts decode, against logits taken by a pass of their own.

use super::*;
use crate::config::{Decode, Preset, SarConfig};
use sar_math::rollout::{Extent, StudentTarget};

/// Tokens of [`SCHEDULE`].
const TOKENS: usize = 14;

/// A token's logits of a guided teacher pass: `(1+t)·c − t·u` with t = g·½·(1+i/(N−1)).
fn guided(world: &World, trainer: &Trainer<'_, Cpu>, labels: &[u32], g: f64) -> Vec<f64> {
    let schedule: ScaleSchedule = SCHEDULE.parse().unwrap();
    let codes = world.codes(4, &schedule);
    let twice: Vec<u32> =
        labels.iter().copied().chain(std::iter::repeat_n(CLASSES as u32, 4)).collect();
    let logits = world.logits(trainer.params(), &schedule, &codes, &twice, 4);
    let (conditional, unconditional) = logits.split_at(4 * TOKENS * VOCAB);
    let pairs = conditional.iter().zip(unconditional).enumerate();
    let blend = |(at, (c, u)): (usize, (&f64, &f64))| {
        let token = at / VOCAB % TOKENS;
        let scale = (0..3).find(|&i| token < schedule.range(i).end).unwrap();
        let t = g * 0.5 * (1.0 + scale as f64 / 2.0);
        (1.0 + t) * c - t * u
    };
    pairs.map(blend).collect()
}

/// Codes from the most likely down.
fn ranked(logits: &[f64]) -> Vec<u32> {
    let mut codes: Vec<u32> = (0..logits.len() as u32).collect();
    codes.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    codes
}

#[test]
fn the_release_rollout_decodes_guided_logits_of_the_labels_trained_on() {
    let world = World::new(4);
    let mut config = config(Mode::Ssr);
    // Strong guidance, so that it changes what is most likely; labels dropped now and then.
    let decode = Decode::Argmax;
    config.sar = SarConfig { guidance: 8.0, decode, ..SarConfig::preset(Preset::Release) };
    (config.train.class_dropout, config.train.seed) = (0.5, 4);
    let mut trainer = world.trainer(&config);
    let labels = {
        // A step that moves nothing tells which labels are dropped.
        let mut still = config.clone();
        still.train.lr = Some(1e-30);
        let mut trainer = world.trainer(&still);
        trainer.step(&mut world.images(4)).unwrap();
        trainer.replica.memory.labels[..4].to_vec()
    };
    let dropped = labels.iter().filter(|&&l| l == CLASSES as u32).count();
    assert!((1..4).contains(&dropped), "the seed drops {dropped} of four labels");
    let logits = guided(&world, &trainer, &labels, 8.0);
    let plain = guided(&world, &trainer, &labels, 0.0);
    trainer.step(&mut world.images(4)).unwrap();
    let own = trainer.replica.memory.own.as_slice();
    let best =
        |logits: &[f64]| -> Vec<u32> { logits.chunks(VOCAB).map(|row| ranked(row)[0]).collect() };
    assert_eq!(own[..4 * TOKENS], best(&logits));
    assert_ne!(best(&logits), best(&plain), "guidance must show");
}

#[test]
fn the_filter_of_the_rollout_is_the_configurations() {
    let world = World::new(4);
    let mut config = config(Mode::Ssr);
    config.sar = SarConfig { top_k: 3, ..SarConfig::preset(Preset::Paper) };
    let mut trainer = world.trainer(&config);
    let logits = guided(&world, &trainer, &world.labels, 0.0);
    trainer.step(&mut world.images(4)).unwrap();
    let own = trainer.replica.memory.own.as_slice();
    let rank = |(row, code): (&[f64], &u32)| ranked(row).iter().position(|c| c == code).unwrap();
    let ranks: Vec<usize> = logits.chunks(VOCAB).zip(own).map(rank).collect();
    assert!(ranks.iter().all(|&rank| rank < 3), "{ranks:?}");
    assert!((1..3).all(|rank| ranks.contains(&rank)), "56 draws are not all the most likely");
}

/// Own samples are decoded with the labels that the pass trains on, dropped ones as well.
#[test]
fn student_forcing_decodes_what_its_pass_repeats() {
    let world = World::new(4);
    let schedule: ScaleSchedule = SCHEDULE.parse().unwrap();
    let mut config = config(Mode::Student);
    // Greedy, so that each code is the largest logit of the pass that reads the codes before it.
    config.sar.top_k = 1;
    (config.train.class_dropout, config.train.seed) = (0.5, 4);
    let mut trainer = world.trainer(&config);
    let params = {
        let mut params = world.backend.params(world.weights.len()).unwrap();
        world.backend.upload_params(trainer.params().as_slice(), &mut params, 0).unwrap();
        params
    };
    trainer.step(&mut world.images(4)).unwrap();
    let labels = trainer.replica.memory.labels[..4].to_vec();
    let dropped = labels.iter().filter(|&&l| l == CLASSES as u32).count();
    assert!((1..4).contains(&dropped), "the seed drops {dropped} of four labels");
    // The last scale is no input, and so not decoded.
    let read = schedule.range(2).start;
    let own = &trainer.replica.memory.own;
    let logits = world.logits(&params, &schedule, own, &labels, 4);
    for (image, row) in logits.chunks(TOKENS * VOCAB).enumerate() {
        for token in 0..read {
            let best = ranked(&row[token * VOCAB..][..VOCAB])[0];
            assert_eq!(
                own.as_slice()[image * TOKENS + token],
                best,
                "image {image}, token {token}"
            );
        }
    }
}

/// ℓ is the same in both losses: codes are smoothed as targets, in proportion to ε, and the teacher's probabilities are not.
#[test]
fn the_students_targets_are_smoothed_where_they_are_codes() {
    let world = World::new(4);
    let loss = |target, smoothing: f64| {
        let mut config = config(Mode::Ssr);
        (config.sar.target, config.sar.decode) = (target, Decode::Argmax);
        config.train.label_smoothing = smoothing;
        let mut trainer = world.trainer(&config);
        trainer.step(&mut world.images(4)).unwrap();
        trainer.report().unwrap().unwrap().loss_csf.unwrap()
    };
    for target in [StudentTarget::TeacherHard, StudentTarget::GroundTruth] {
        let [none, half, whole] = [0.0, 0.1, 0.2].map(|smoothing| loss(target, smoothing));
        assert!((whole - none).abs() > SHOWS, "{none} {whole}");
        near(whole - none, 2.0 * (half - none), SUMMED);
    }
    assert_eq!(loss(StudentTarget::TeacherSoft, 0.2), loss(StudentTarget::TeacherSoft, 0.0));
}

/// The switches of the presets, the table of `docs/method.md`, as a step takes them.
#[test]
fn presets_are_the_published_settings() {
    use sar_math::backend::Filter;
    use sar_math::guidance::Guidance;
    use sar_math::rollout::{self, SarSettings};
    let filter = Filter { top_k: 900, top_p: 0.96 };
    let with = |guidance, extent, sigma| SarSettings {
        extent,
        target: StudentTarget::TeacherHard,
        decode: rollout::Decode { draw: Some(filter), guidance },
        sigma,
    };
    let of = |preset| SarConfig::preset(preset).settings();
    assert_eq!(of(Preset::Paper), with(Guidance::Off, Extent::All, 0.1));
    assert_eq!(of(Preset::Release), with(Guidance::Rollout(1.2), Extent::Last, 0.01));
    // Each switch on its own: what is most likely once guided, too.
    let argmax = SarConfig { decode: Decode::Argmax, ..SarConfig::preset(Preset::Release) };
    let guidance = Guidance::Rollout(1.2);
    assert_eq!(argmax.settings().decode, rollout::Decode { draw: None, guidance });
}
