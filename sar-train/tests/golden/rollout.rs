//! Teacher forcing and both rollout forms: logits, losses, and every gradient.

use crate::backends::{Transfers, on_backends};
use crate::compare::Findings;
use crate::generator::{Setup, Target, Teacher, VALUE};
use crate::support::Golden;
use sar_math::backend::{Backend, TokenLoss};

on_backends!(golden_teacher_forcing, teacher_forcing);

fn teacher_forcing<B: Backend>(backend: &B) -> Findings {
    let (setup, file) = Setup::open(backend);
    let mut found = Findings::default();
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    found.value("logits", teacher.logits, file.f64("logits"), VALUE);
    found.value("token_loss", teacher.token_loss, file.f64("token_loss"), VALUE);
    found.value("loss", vec![teacher.loss], file.f64("loss"), VALUE);
    setup.add_gradients(&mut found, &file, "grad.", &grads);
    found
}

on_backends!(golden_label_smoothing, label_smoothing);

fn label_smoothing<B: Backend>(backend: &B) -> Findings {
    let (setup, file) = Setup::open(backend);
    let mut found = Findings::default();
    let logits = backend.put(&file.f64("logits"));
    for name in file.names() {
        let Some(kind) = name.strip_prefix("token_loss") else { continue };
        let mut dims = setup.loss_dims(setup.schedule, 0, 1.0);
        if !kind.is_empty() {
            let smoothing = kind.strip_prefix("_label_smoothing_").unwrap();
            dims.smoothing = smoothing.parse().unwrap();
        }
        let rows = setup.batch * setup.schedule.tokens();
        let mut loss = TokenLoss::new(backend, rows).unwrap();
        let targets = backend.put_ids(&setup.targets);
        backend.cross_entropy(&dims, &logits, &targets, &mut loss).unwrap();
        let (got, want) = (backend.get_accum(&loss.loss_bl, rows), file.f64(&name));
        found.value(name, got, want, VALUE);
    }
    found
}

/// Records the teacher's predictions, and returns those of the file to roll out.
///
/// Students are fed the file's ids whatever was predicted: where rounding turned one, the student
/// would see another input and have another target, and nothing of it could be compared.
fn predictions<B: Backend>(
    setup: &Setup<'_, B>,
    teacher: &Teacher,
    file: &Golden,
    found: &mut Findings,
) -> Vec<u32> {
    let vocab = setup.generator.shape().vocab;
    for (id, logits) in teacher.predictions.iter().zip(teacher.logits.chunks(vocab)) {
        assert_eq!(*id, argmax(logits), "the largest of the backend's own logits");
    }
    let logits = Golden::open("teacher_forcing").f64("logits");
    let ids = file.ids("teacher_predictions");
    found.value("teacher_logits", teacher.logits.clone(), logits.clone(), VALUE);
    let margin = |row: usize, got: usize, want: usize| {
        logits[row * vocab + want] - logits[row * vocab + got]
    };
    found.ids("teacher_predictions", &teacher.predictions, &ids, "teacher_logits", margin);
    ids
}

/// The largest, the first of equals.
pub fn argmax(logits: &[f64]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

on_backends!(golden_rollout_of_all_scales_hard, all_scales_hard);

fn all_scales_hard<B: Backend>(backend: &B) -> Findings {
    let (setup, _) = Setup::open(backend);
    let file = Golden::open("ssr_all_scales");
    let mut found = Findings::default();
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    let ids = predictions(&setup, &teacher, &file, &mut found);
    let sigmas = sigmas(&file, "loss_total_sigma_");
    let sigma = sigmas[0].1;
    let student = setup.student(1, &ids, Target::Hard, sigma, &mut trace, &mut grads);
    found.value("student_inputs", student.inputs, file.f64("student_inputs"), VALUE);
    found.value("student_logits", student.logits, file.f64("student_logits"), VALUE);
    found.value("token_loss_csf", student.token_loss, file.f64("token_loss_csf"), VALUE);
    for (name, got) in [
        ("loss_tf", teacher.loss),
        ("loss_csf", student.loss),
        ("loss_student_vs_ground_truth", student.against_truth.unwrap()),
    ] {
        found.value(name, vec![got], file.f64(name), VALUE);
    }
    for (name, sigma) in sigmas {
        let (total, want) = (teacher.loss + sigma * student.loss, file.f64(&name));
        found.value(name, vec![total], want, VALUE);
    }
    setup.add_gradients(&mut found, &file, "grad.", &grads);
    found
}

on_backends!(golden_rollout_of_all_scales_soft, all_scales_soft);

fn all_scales_soft<B: Backend>(backend: &B) -> Findings {
    let (setup, _) = Setup::open(backend);
    let file = Golden::open("ssr_all_scales");
    let mut found = Findings::default();
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    let ids = predictions(&setup, &teacher, &file, &mut found);
    let sigmas = sigmas(&file, "loss_total_soft_sigma_");
    let sigma = sigmas[0].1;
    let soft = Target::Soft(&teacher.logits);
    let student = setup.student(1, &ids, soft, sigma, &mut trace, &mut grads);
    found.value("loss_csf_soft", vec![student.loss], file.f64("loss_csf_soft"), VALUE);
    for (name, sigma) in sigmas {
        let (total, want) = (teacher.loss + sigma * student.loss, file.f64(&name));
        found.value(name, vec![total], want, VALUE);
    }
    setup.add_gradients(&mut found, &file, "grad_soft.", &grads);
    found
}

on_backends!(golden_rollout_of_the_last_scale, last_scale);

fn last_scale<B: Backend>(backend: &B) -> Findings {
    let (setup, _) = Setup::open(backend);
    let file = Golden::open("ssr_last_scale");
    let mut found = Findings::default();
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    let ids = predictions(&setup, &teacher, &file, &mut found);
    let (last, sigma) = (setup.schedule.len() - 1, file.number("sigma"));
    let student = setup.student(last, &ids, Target::Hard, sigma, &mut trace, &mut grads);
    found.value("student_inputs", student.inputs, file.f64("student_inputs"), VALUE);
    found.value("student_logits", student.logits, file.f64("student_logits"), VALUE);
    for (name, got) in [
        ("loss_tf", teacher.loss),
        ("loss_csf", student.loss),
        ("loss_student_vs_ground_truth", student.against_truth.unwrap()),
        ("loss_total", teacher.loss + sigma * student.loss),
    ] {
        found.value(name, vec![got], file.f64(name), VALUE);
    }
    setup.add_gradients(&mut found, &file, "grad.", &grads);
    found
}

/// Totals by their names, `loss_total_sigma_0.5`, and the σ of each. Gradients are those of the first.
fn sigmas(file: &Golden, prefix: &str) -> Vec<(String, f64)> {
    let sigma = |name: &String| name.strip_prefix(prefix)?.parse().ok();
    let found: Vec<_> =
        file.names().into_iter().filter_map(|name| Some((name.clone(), sigma(&name)?))).collect();
    assert!(!found.is_empty(), "no {prefix}…");
    found
}
