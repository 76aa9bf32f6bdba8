//! The optimiser's step, micro-batches, and held-out loss.

use super::*;
use crate::run::Interrupt;
use crate::sample::Model;
use crate::train::{HeldOut, StepReport, held_out_loss};
use sar_math::anneal::Shape;

/// Parameters that weight decay leaves alone, by name.
fn exempt(name: &str) -> bool {
    name.ends_with(".bias")
        || name.ends_with("_bias")
        || name.contains("scale_mul")
        || name == "pos_1LC"
        || name == "pos_start"
}

/// Warm-up, decay of rate and weights, clipping, moments and average, step by step.
#[test]
fn an_update_is_adamw_by_the_schedules() {
    let world = World::new(8);
    let mut config = config(Mode::Teacher);
    let t = &mut config.train;
    (t.steps, t.warmup, t.lr_start, t.lr_end) = (4, 2, 0.25, 0.5);
    t.lr_shape = Shape::Linear;
    (t.weight_decay, t.weight_decay_end) = (0.4, Some(0.2));
    (t.beta1, t.beta2, t.eps) = (0.8, 0.9, 1e-6);
    (t.clip, t.ema) = (0.05, 0.2);
    let mut trainer = world.trainer(&config);
    let len = world.weights.len();
    let mut weights: Vec<f64> = world.weights.iter().map(|&w| f64::from(w)).collect();
    let mut average = weights.clone();
    let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
    // Warm-up from a quarter to the peak in two steps, then straight to half of it at the last; decay of
    // the weights by half a cosine over all four.
    let rates = [0.25, 0.625, 1.0, 0.5].map(|factor: f64| factor * 1e-2);
    let decays = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]
        .map(|u: f64| 0.2 + 0.2 * (0.5 + 0.5 * (std::f64::consts::PI * u).cos()));
    let mut images = world.images(4);
    for (step, (lr, decay)) in rates.into_iter().zip(decays).enumerate() {
        assert!(!trainer.step(&mut images).unwrap());
        let gradient = trainer.gradients().as_slice().to_vec();
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 0.05, "the clip of this test must bite");
        let report = trainer.report().unwrap().unwrap();
        near(report.grad_norm, norm, REORDERED);
        near(report.lr, lr, REORDERED);
        let n = step as f64;
        let bias = [0.8f64, 0.9].map(|beta| 1.0 - beta.powi(step as i32 + 1));
        for t in world.generator.layout().tensors() {
            let decay = if exempt(&t.name) { 0.0 } else { decay };
            for i in t.slot.range() {
                let g = gradient[i] * 0.05 / (norm + 1e-6);
                m[i] = 0.8 * m[i] + 0.2 * g;
                v[i] = 0.9 * v[i] + 0.1 * g * g;
                let step = (m[i] / bias[0]) / ((v[i] / bias[1]).sqrt() + 1e-6);
                weights[i] -= lr * (step + decay * weights[i]);
                // At most (1+n)/(10+n) after n updates, which is below 0.2 in all but the last.
                let kept = ((1.0 + n) / (10.0 + n)).min(0.2);
                average[i] = kept * average[i] + (1.0 - kept) * weights[i];
            }
        }
        let found = trainer.params().as_slice();
        let ema = trainer.ema.as_ref().unwrap().as_slice();
        for t in world.generator.layout().tensors() {
            for i in t.slot.range() {
                near(found[i], weights[i], REORDERED);
                near(ema[i], average[i], REORDERED);
            }
        }
    }
}

/// Gradient, update and what is told of a step do not depend on how its images are split: also not where labels and
/// branches are dropped and codes drawn, with an unconditional half and without.
#[test]
fn micro_batches_are_told_as_the_batch_that_they_make() {
    let world = World::new(8);
    let modes = [Mode::Teacher, Mode::Ssr, Mode::Ssr, Mode::Student, Mode::Interleaved];
    for (mode, guidance) in modes.into_iter().zip([0.0, 0.0, 1.5, 0.0, 0.0]) {
        let mut config = config(mode);
        (config.sar.decode, config.sar.guidance) = (crate::config::Decode::Sample, guidance);
        (config.train.class_dropout, config.train.drop_path) = (0.4, Some(0.5));
        let mut whole = world.trainer(&config);
        (config.train.batch, config.train.accumulate) = (1, 4);
        let mut parts = world.trainer(&config);
        let (mut four, mut single) = (world.images(4), world.images(1));
        for _ in 0..2 {
            whole.step(&mut four).unwrap();
            parts.step(&mut single).unwrap();
            let (a, b) = (whole.report().unwrap().unwrap(), parts.report().unwrap().unwrap());
            near(b.loss, a.loss, SUMMED);
            near(b.grad_norm, a.grad_norm, SUMMED);
            assert_eq!(a.loss_csf.is_some(), mode == Mode::Ssr);
            near(b.loss_csf.unwrap_or(0.0), a.loss_csf.unwrap_or(0.0), SUMMED);
            let supervised = |of: &StepReport| -> Vec<f64> {
                let student = of.student_scale_loss.iter().flatten();
                of.scale_loss.iter().chain(&of.scale_acc).chain(student).copied().collect()
            };
            let (a, b) = (supervised(&a), supervised(&b));
            assert_eq!(a.len(), b.len());
            a.iter().zip(&b).for_each(|(a, b)| near(*b, *a, SUMMED));
        }
        let (a, b) = (whole.params().as_slice(), parts.params().as_slice());
        a.iter().zip(b).for_each(|(a, b)| near(*b, *a, SUMMED));
    }
}

/// A step has nothing of what its gradients' memory held: all of it is overwritten or set to zero, also after a step
/// that was skipped for numbers that are none.
#[test]
fn gradients_begin_anew_with_every_step() {
    let world = World::new(8);
    let modes = [Mode::Teacher, Mode::Ssr, Mode::Student, Mode::Interleaved];
    for (mode, accumulate) in modes.into_iter().flat_map(|mode| [(mode, 1), (mode, 2)]) {
        let mut config = config(mode);
        (config.train.batch, config.train.accumulate) = (4 / accumulate, accumulate);
        let gradient = |held: f64| {
            let mut trainer = world.trainer(&config);
            let len = trainer.generator().layout().len();
            let grads = &mut trainer.replica.memory.grads.params;
            world.backend.upload_accum(&vec![held; len], grads, 0).unwrap();
            assert!(!trainer.step(&mut world.images(4 / accumulate)).unwrap());
            trainer.gradients().as_slice().to_vec()
        };
        let clean = gradient(0.0);
        assert!(clean.iter().any(|&g| g != 0.0));
        assert_eq!(gradient(f64::NAN), clean, "{mode}, {accumulate} parts");
    }
}

/// The loss told is the formula's, smoothed in training alone, and held-out images see no dropout.
#[test]
fn losses_are_those_of_the_formula() {
    let world = World::new(4);
    let schedule = SCHEDULE.parse().unwrap();
    let codes = world.codes(4, &schedule);
    let mut config = config(Mode::Teacher);
    config.train.label_smoothing = 0.2;
    let mut trainer = world.trainer(&config);
    let logits = world.logits(trainer.params(), &schedule, &codes, &world.labels, 4);
    let mean = |smoothing: f64| {
        let rows = logits.chunks(VOCAB).zip(codes.as_slice());
        rows.map(|(l, &c)| cross_entropy(l, c, smoothing)).sum::<f64>() / (4.0 * 14.0)
    };
    trainer.step(&mut world.images(4)).unwrap();
    let told = trainer.report().unwrap().unwrap();
    near(told.loss_tf, mean(0.2), SUMMED);
    assert!((mean(0.2) - mean(0.0)).abs() > SHOWS, "smoothing must show");

    // Parts of 3 and 1: the mean is over images, not over parts; all that drops is on.
    let t = &mut config.train;
    (t.batch, t.class_dropout, t.drop_path) = (3, 1.0, Some(0.9));
    let mut trainer = world.trainer(&config);
    let held = HeldOut { latents: world.latents.clone(), labels: world.labels.clone() };
    let report = trainer.held_out(&held).unwrap();
    near(report.heldout_loss, mean(0.0), SUMMED);
    let first = (0..4)
        .map(|i| cross_entropy(&logits[i * 14 * VOCAB..][..VOCAB], codes.as_slice()[i * 14], 0.0));
    near(report.heldout_scale_loss[0], first.sum::<f64>() / 4.0, SUMMED);
    // And of weights that are not trained, in memory of their own.
    let (generator, quantizer) = (&world.generator, &world.quantizer);
    let model = Model { generator, params: trainer.params(), quantizer };
    let (b, never) = (&world.backend, Interrupt::none());
    let alone = held_out_loss(b, model, &schedule, &held, 3, (SIDE, SIDE), &never).unwrap();
    assert_eq!(alone.unwrap(), report);
}

/// A step can still be told after held-out images were measured in the same memory.
#[test]
fn held_out_images_leave_the_report_of_the_step() {
    let world = World::new(4);
    let mut trainer = world.trainer(&config(Mode::Teacher));
    trainer.step(&mut world.images(4)).unwrap();
    let before = trainer.report().unwrap();
    let held = HeldOut { latents: world.latents[..36].to_vec(), labels: vec![2] };
    trainer.held_out(&held).unwrap();
    assert_eq!(trainer.report().unwrap(), before);
}

#[test]
fn held_out_latents_must_be_those_of_their_labels() {
    let world = World::new(4);
    let mut trainer = world.trainer(&config(Mode::Teacher));
    for (latents, labels) in [(0, 0), (36, 0), (35, 1), (36, 2), (0, 1)] {
        let held = HeldOut { latents: world.latents[..latents].to_vec(), labels: vec![0; labels] };
        let refused = trainer.held_out(&held);
        assert!(matches!(refused, Err(TrainError::Length { .. })), "{latents} {labels}");
    }
}

/// How many steps in a row are too many is said by the configuration that a run goes on with.
#[test]
fn a_run_goes_on_with_another_limit_of_steps_that_are_not_finite() {
    let world = World::new(4);
    let mut config = config(Mode::Teacher);
    let mut state = world.trainer(&config).state().clone();
    (state.non_finite.skipped, state.non_finite.in_a_row) = (7, 2);
    config.train.non_finite_limit = 9;
    let mut trainer = world.trainer(&config);
    let zeros = vec![0.0; world.weights.len()];
    trainer.restore(state.clone(), &zeros, &zeros, None).unwrap();
    state.non_finite.limit = 9;
    assert_eq!(trainer.state(), &state);
}
