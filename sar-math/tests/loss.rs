//! The losses on the toy backend: value, gradient by central differences, reports, micro-batches.
#![allow(clippy::unwrap_used)]

#[path = "../examples/03_loss_on_toy_backend/toy.rs"]
mod toy;

use proptest::prelude::*;
use sar_math::loss::{
    LossBatch, ScaleReport, StudentForcing, StudentTargets, Supervision, TeacherForcing,
};
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Extent, Method, Pass, Plan, StudentTarget};
use sar_math::{MAX_SCALES, ScaleSchedule};
use toy::Toy;

const WHOLE: &str = "1_2_2x3";
const VOCAB: usize = 5;
/// Central differences of step 1e-5: truncation and cancellation are both near 1e-10.
const STEP: f64 = 1e-5;
const DIFFERENCE_TOLERANCE: f64 = 1e-8;
/// Sums of some hundred numbers of order 1.
const TOLERANCE: f64 = 1e-12;

fn normals(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = Stream::new(seed, Purpose::Test, 0);
    (0..len).map(|_| 2.0 * rng.normal()).collect()
}

fn ids(len: usize, seed: u64) -> Vec<u32> {
    let mut rng = Stream::new(seed, Purpose::Test, 1);
    (0..len).map(|_| rng.below(VOCAB) as u32).collect()
}

fn batch(samples: usize, divisor: usize, smoothing: f64) -> LossBatch {
    LossBatch { samples, divisor, vocab: VOCAB, smoothing }
}

fn student_pass(whole: &ScaleSchedule, extent: Extent) -> Pass {
    let method = Method::Sar(extent);
    Plan::new(method, StudentTarget::TeacherHard, whole, 3, 0).unwrap().second.unwrap()
}

/// Gradient of `loss` at `x` by central differences.
fn differences(x: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + STEP;
            let up = loss(&x);
            x[i] = at - STEP;
            let down = loss(&x);
            x[i] = at;
            (up - down) / (2.0 * STEP)
        })
        .collect()
}

fn assert_near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance, "at {i}: {g} against {w}");
    }
}

fn teacher(
    batch: LossBatch,
    whole: &ScaleSchedule,
    logits: &Vec<f64>,
    codes: &Vec<u32>,
) -> (Vec<f64>, ScaleReport) {
    let mut loss = TeacherForcing::new(&Toy, batch.samples * whole.tokens(), 1).unwrap();
    let pass = Pass::teacher(whole);
    let asked = Supervision::teacher(batch, &pass);
    loss.forward(&Toy, &asked, 0..batch.samples, logits, codes).unwrap();
    let mut gradient = logits.clone();
    loss.backward(&Toy, &asked, 0..batch.samples, &mut gradient, codes).unwrap();
    loss.keep(&Toy, &asked, 0).unwrap();
    (gradient, loss.report(&Toy, &asked, 0).unwrap())
}

fn student(
    batch: LossBatch,
    pass: &Pass,
    sigma: f64,
    logits: &Vec<f64>,
    targets: StudentTargets<'_, Toy>,
) -> (Vec<f64>, ScaleReport, Supervision) {
    let whole = WHOLE.parse().unwrap();
    let mut loss = StudentForcing::new(&Toy, batch.samples * pass.schedule.tokens(), 1).unwrap();
    let asked = Supervision::student(batch, pass, &whole, sigma);
    loss.forward(&Toy, &asked, 0..batch.samples, logits, targets).unwrap();
    let mut gradient = logits.clone();
    loss.backward(&Toy, &asked, 0..batch.samples, &mut gradient, targets).unwrap();
    loss.keep(&Toy, &asked, 0).unwrap();
    (gradient, loss.report(&Toy, &asked, 0).unwrap(), asked)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn teacher_forcing_has_the_gradient_of_its_total(
        seed: u64, samples in 1usize..4, smoothing in prop::sample::select(vec![0.0, 0.1]),
    ) {
        let whole: ScaleSchedule = WHOLE.parse().unwrap();
        let rows = samples * whole.tokens();
        let (logits, codes) = (normals(rows * VOCAB, seed), ids(rows, seed));
        let batch = batch(samples, 7, smoothing);
        let (gradient, report) = teacher(batch, &whole, &logits, &codes);
        let want = differences(&logits, |l| teacher(batch, &whole, &l.to_vec(), &codes).1.total);
        assert_near(&gradient, &want, DIFFERENCE_TOLERANCE);
        // The mean is over tokens, whatever the divisor.
        let scaled = report.total * 7.0 / samples as f64;
        prop_assert!((scaled - report.mean_loss()).abs() < TOLERANCE);
    }

    #[test]
    fn student_forcing_has_the_gradient_of_its_total_and_spares_the_class_token(
        seed: u64,
        extent in prop::sample::select(vec![Extent::All, Extent::Last, Extent::Random]),
        soft: bool,
    ) {
        let whole: ScaleSchedule = WHOLE.parse().unwrap();
        let pass = student_pass(&whole, extent);
        let logits = normals(2 * pass.schedule.tokens() * VOCAB, seed);
        let codes = ids(2 * whole.tokens(), seed);
        let teacher = normals(2 * whole.tokens() * VOCAB, seed ^ 1);
        let targets =
            if soft { StudentTargets::Soft(&teacher) } else { StudentTargets::Hard(&codes) };
        let batch = batch(2, 2, 0.1);
        let (gradient, report, _) = student(batch, &pass, 0.3, &logits, targets);
        let total = |l: &[f64]| student(batch, &pass, 0.3, &l.to_vec(), targets).1.total;
        assert_near(&gradient, &differences(&logits, total), DIFFERENCE_TOLERANCE);
        let per_sample = pass.schedule.tokens() * VOCAB;
        for sample in gradient.chunks_exact(per_sample) {
            prop_assert!(sample[..VOCAB].iter().all(|&g| g == 0.0));
        }
        prop_assert!((report.total - 0.3 * report.mean_loss()).abs() < TOLERANCE);
        // Reports are by the whole schedule's scales.
        for scale in 0..MAX_SCALES {
            let there = (1..pass.schedule.len()).any(|i| pass.origin[i] == scale);
            prop_assert_eq!(report.tokens[scale] > 0, there);
        }
    }

    /// Logits some samples at a time: gradients and reports are those of all at once, to the bit.
    #[test]
    fn parts_of_a_batch_are_the_batch(seed: u64, extent in prop::sample::select(vec![
        Extent::All, Extent::Last,
    ]), soft: bool) {
        let whole: ScaleSchedule = WHOLE.parse().unwrap();
        let (batch, codes) = (batch(4, 4, 0.1), ids(4 * whole.tokens(), seed));
        let row = whole.tokens() * VOCAB;
        let logits = normals(4 * row, seed);
        let (want, report) = teacher(batch, &whole, &logits, &codes);
        let asked = Supervision::teacher(batch, &Pass::teacher(&whole));
        let mut loss = TeacherForcing::new(&Toy, 4 * whole.tokens(), 1).unwrap();
        for samples in [0..1, 1..4] {
            let mut part = logits[samples.start * row..samples.end * row].to_vec();
            loss.forward(&Toy, &asked, samples.clone(), &part, &codes).unwrap();
            loss.backward(&Toy, &asked, samples.clone(), &mut part, &codes).unwrap();
            prop_assert_eq!(&part, &want[samples.start * row..samples.end * row]);
        }
        loss.keep(&Toy, &asked, 0).unwrap();
        prop_assert_eq!(loss.report(&Toy, &asked, 0).unwrap(), report);

        let pass = student_pass(&whole, extent);
        let (of_teacher, row) = (normals(4 * row, seed ^ 1), pass.schedule.tokens() * VOCAB);
        let logits = normals(4 * row, seed ^ 2);
        let targets = match soft {
            true => StudentTargets::Soft(&of_teacher),
            false => StudentTargets::Hard(&codes),
        };
        let (want, report, asked) = student(batch, &pass, 0.3, &logits, targets);
        let mut loss = StudentForcing::new(&Toy, 4 * pass.schedule.tokens(), 1).unwrap();
        for samples in [0..3, 3..4] {
            let range = |row: usize| samples.start * row..samples.end * row;
            let mut part = logits[range(row)].to_vec();
            // A teacher's logits are of the same samples.
            let of_teacher = of_teacher[range(whole.tokens() * VOCAB)].to_vec();
            let targets = match soft {
                true => StudentTargets::Soft(&of_teacher),
                false => StudentTargets::Hard(&codes),
            };
            loss.forward(&Toy, &asked, samples.clone(), &part, targets).unwrap();
            loss.backward(&Toy, &asked, samples.clone(), &mut part, targets).unwrap();
            prop_assert_eq!(&part, &want[range(row)]);
        }
        loss.keep(&Toy, &asked, 0).unwrap();
        prop_assert_eq!(loss.report(&Toy, &asked, 0).unwrap(), report);
    }

    #[test]
    fn micro_batches_add_up(seed: u64) {
        let whole: ScaleSchedule = WHOLE.parse().unwrap();
        let (row, rows) = (whole.tokens() * VOCAB, 3 * whole.tokens());
        let (logits, codes) = (normals(rows * VOCAB, seed), ids(rows, seed));
        let (all, report) = teacher(batch(3, 3, 0.0), &whole, &logits, &codes);
        let (mut parts, mut merged) = (vec![], ScaleReport::default());
        let mut loss = TeacherForcing::new(&Toy, 2 * whole.tokens(), 2).unwrap();
        let micro_batches = [(0, 2), (2, 3)].map(|(from, to)| {
            (from, to, Supervision::teacher(batch(to - from, 3, 0.0), &Pass::teacher(&whole)))
        });
        for (n, (from, to, asked)) in micro_batches.iter().enumerate() {
            let mut part = logits[from * row..to * row].to_vec();
            let codes = codes[from * whole.tokens()..to * whole.tokens()].to_vec();
            loss.forward(&Toy, asked, 0..to - from, &part, &codes).unwrap();
            loss.backward(&Toy, asked, 0..to - from, &mut part, &codes).unwrap();
            loss.keep(&Toy, asked, n).unwrap();
            parts.extend(part);
        }
        for (n, (_, _, asked)) in micro_batches.iter().enumerate() {
            merged.merge(&loss.report(&Toy, asked, n).unwrap());
        }
        prop_assert!(loss.keep(&Toy, &micro_batches[0].2, 2).is_err());
        assert_near(&parts, &all, TOLERANCE);
        prop_assert_eq!(merged.tokens, report.tokens);
        assert_near(&merged.loss, &report.loss, TOLERANCE);
        assert_near(&merged.accuracy, &report.accuracy, TOLERANCE);
        prop_assert!((merged.total - report.total).abs() < TOLERANCE);
    }
}

/// One token certain and right, the others undecided: losses and accuracies known by heart.
#[test]
fn reports_are_per_scale() {
    let whole: ScaleSchedule = "1_2".parse().unwrap();
    let mut logits = vec![0.0; 5 * VOCAB];
    logits[3] = 100.0;
    let codes = vec![3, 0, 0, 1, 2];
    let (_, report) = teacher(batch(1, 1, 0.0), &whole, &logits, &codes);
    assert_eq!((report.tokens[0], report.tokens[1], report.tokens[2]), (1, 4, 0));
    assert_near(&report.loss[..2], &[0.0, (VOCAB as f64).ln()], TOLERANCE);
    // Undecided tokens count as a choice of the lowest index.
    assert_near(&report.accuracy[..3], &[1.0, 0.5, 0.0], 0.0);
    assert!((report.mean_accuracy() - 3.0 / 5.0).abs() < TOLERANCE);
}

#[test]
fn sigma_zero_still_reports_but_has_no_gradient() {
    let whole: ScaleSchedule = WHOLE.parse().unwrap();
    let pass = student_pass(&whole, Extent::All);
    let (logits, codes) = (normals(whole.tokens() * VOCAB, 1), ids(whole.tokens(), 1));
    let targets = StudentTargets::Hard(&codes);
    let (gradient, report, asked) = student(batch(1, 1, 0.0), &pass, 0.0, &logits, targets);
    assert!(gradient.iter().all(|&g| g == 0.0));
    assert!(report.total == 0.0 && report.mean_loss() > 0.0);
    assert_eq!((asked.dims.targets.tokens, asked.dims.targets.shift), (whole.tokens(), 0));
}

#[test]
fn a_staggered_pass_reads_the_last_columns_of_its_targets() {
    let whole: ScaleSchedule = WHOLE.parse().unwrap();
    let rows = student_pass(&whole, Extent::Last).target_rows(&whole);
    assert_eq!((rows.tokens, rows.shift), (11, 4));
    assert_eq!(rows.of(7 + 1, 7), 11 + 5); // second sample, first token of the last scale
}

#[test]
fn bad_operands_are_errors() {
    let whole: ScaleSchedule = WHOLE.parse().unwrap();
    let mut loss = TeacherForcing::new(&Toy, whole.tokens(), 1).unwrap();
    let (logits, codes) = (normals(whole.tokens() * VOCAB, 1), ids(whole.tokens(), 1));
    let pass = Pass::teacher(&whole);
    let asked = Supervision::teacher(batch(1, 1, 0.0), &pass);
    let mut forward = |samples, logits: &Vec<f64>, codes: &Vec<u32>| {
        loss.forward(&Toy, &asked, samples, logits, codes)
    };
    assert!(forward(0..1, &logits, &codes).is_ok());
    let error = forward(0..1, &vec![0.0; 3], &codes).unwrap_err();
    assert_eq!(error.to_string(), "cross_entropy: logits (b*l*v): expected 55, found 3");
    assert!(forward(0..1, &logits, &vec![VOCAB as u32; 11]).is_err());
    let error = forward(1..2, &logits, &codes).unwrap_err();
    assert_eq!(error.to_string(), "loss: samples of the batch: expected 2, found 1");
}
