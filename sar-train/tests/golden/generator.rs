//! Teacher forcing, both rollout forms and greedy sampling of the published generator.

use crate::support::{Golden, assert_close, assert_close_to_largest};
use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::backend::{
    Buffers, Choice, ChooseDims, LossDims, LossOps, RolloutDims, RolloutOps, TargetRows, TokenLoss,
};
use sar_math::guidance::{Guidance, guide};
use sar_math::{MAX_SCALES, Scale, ScaleSchedule};
use sar_train::model::generator::{
    Generator, GeneratorShape, Gradients, PassInput, Recompute, Trace,
};
use sar_train::sample::{Decoding, Sampler};

/// Logits and losses: f64 with sums in another order.
const VALUE: f64 = 1e-9;
/// Gradients, relative to the largest of the tensor.
const GRADIENT: f64 = 1e-9;

type Cpu = CpuBackend<f64>;
type Buf = Buffer<f64>;

/// The published model with its recorded parameters and inputs.
struct Setup {
    backend: Cpu,
    generator: Generator,
    params: Buf,
    codebook: Buf,
    schedule: ScaleSchedule,
    batch: usize,
    labels: Vec<u32>,
    targets: Vec<u32>,
    inputs: Vec<f64>,
}

impl Setup {
    fn open() -> (Self, Golden) {
        let file = Golden::open("teacher_forcing");
        let backend = Cpu::new();
        let config = GeneratorShape {
            depth: file.usize("depth"),
            width: file.usize("width"),
            heads: file.usize("heads"),
            vocab: file.usize("vocab"),
            channels: file.usize("latent_channels"),
            classes: file.usize("num_classes"),
            pos_side: file.shape("param.pos_1LC")[2],
            alng: 1e-3,
        };
        let generator = Generator::new(&config).unwrap();
        let mut host = vec![f64::NAN; generator.layout().len()];
        for t in generator.layout().tensors() {
            let name = format!("param.{}", t.name);
            assert_eq!(file.shape(&name), t.shape, "{name}");
            host[t.slot.range()].copy_from_slice(&file.f64(&name));
        }
        let mut params = backend.params(host.len()).unwrap();
        backend.upload_params(&host, &mut params, 0).unwrap();
        let quantizer = Golden::open("quantizer");
        let codes = quantizer.f64("codebook_l2");
        let mut codebook = backend.accum(codes.len()).unwrap();
        backend.upload_accum(&codes, &mut codebook, 0).unwrap();
        let setup = Self {
            backend,
            generator,
            params,
            codebook,
            schedule: file.schedule(),
            batch: file.usize("batch"),
            labels: file.ids("labels"),
            targets: file.ids("targets"),
            inputs: file.f64("inputs"),
        };
        (setup, file)
    }

    fn ids(&self, host: &[u32]) -> Buffer<u32> {
        let mut ids = self.backend.ids(host.len()).unwrap();
        self.backend.upload_ids(host, &mut ids, 0).unwrap();
        ids
    }

    fn activation(&self, host: &[f64]) -> Buf {
        let mut a = self.backend.activation(host.len()).unwrap();
        self.backend.upload(host, &mut a, 0).unwrap();
        a
    }

    fn loss_dims(&self, schedule: ScaleSchedule, from_scale: usize, factor: f64) -> LossDims {
        let supervised = schedule.span(from_scale..schedule.len()).len() * self.batch;
        let mut weights = [0.0; MAX_SCALES];
        weights[from_scale..schedule.len()].fill(factor / supervised as f64);
        let vocab = self.generator.shape().vocab;
        let targets = TargetRows::beside(&schedule);
        LossDims { batch: self.batch, schedule, vocab, smoothing: 0.0, weights, targets }
    }

    /// Mean of the token losses from `from_scale` on.
    fn mean(&self, dims: &LossDims, from_scale: usize, loss: &TokenLoss<Cpu>) -> (f64, Vec<f64>) {
        let from = dims.schedule.range(from_scale).start;
        let tokens = dims.schedule.tokens();
        let kept: Vec<f64> = loss.loss_bl.as_slice()[..self.batch * tokens]
            .chunks(tokens)
            .flat_map(|sample| &sample[from..])
            .copied()
            .collect();
        (kept.iter().sum::<f64>() / kept.len() as f64, kept)
    }

    fn check_gradients(&self, file: &Golden, prefix: &str, grads: &Gradients<Cpu>) {
        for t in self.generator.layout().tensors() {
            let name = format!("{prefix}{}", t.name);
            let got = &grads.params.as_slice()[t.slot.range()];
            assert_close_to_largest(&name, got, &file.f64(&name), GRADIENT);
        }
    }

    /// The teacher pass with its backward; predictions, logits and loss.
    fn teacher(&self, trace: &mut Trace<Cpu>, grads: &mut Gradients<Cpu>) -> Teacher {
        let (b, g) = (&self.backend, &self.generator);
        let (labels, inputs) = (self.ids(&self.labels), self.activation(&self.inputs));
        let input = PassInput {
            batch: self.batch,
            schedule: self.schedule,
            labels: &labels,
            inputs: &inputs,
            input_batch: self.batch,
            with_start: true,
            keep: None,
        };
        g.forward(b, &self.params, &input, trace).unwrap();
        let rows = self.batch * self.schedule.tokens();
        let logits = trace.logits.as_slice()[..rows * g.shape().vocab].to_vec();
        let mut predictions = b.ids(rows).unwrap();
        let choose = ChooseDims {
            batch: self.batch,
            schedule: self.schedule,
            scales: 0..self.schedule.len(),
            vocab: g.shape().vocab,
            guidance: None,
            choice: Choice::Argmax,
        };
        b.choose_codes(&choose, &trace.logits, &mut predictions).unwrap();
        let dims = self.loss_dims(self.schedule, 0, 1.0);
        let targets = self.ids(&self.targets);
        let mut loss = TokenLoss::new(b, rows).unwrap();
        b.cross_entropy(&dims, &trace.logits, &targets, &mut loss).unwrap();
        let (mean, tokens) = self.mean(&dims, 0, &loss);
        b.cross_entropy_backward(&dims, &mut trace.logits, &targets, &loss).unwrap();
        g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
        Teacher { logits, predictions, loss: mean, token_loss: tokens }
    }

    fn memory(&self) -> (Trace<Cpu>, Gradients<Cpu>) {
        let tokens = self.schedule.tokens();
        let trace =
            Trace::new(&self.backend, &self.generator, self.batch, tokens, Recompute::default())
                .unwrap();
        let grads = Gradients::new(&self.backend, &self.generator, self.batch, tokens).unwrap();
        (trace, grads)
    }

    /// The student pass over the scales from `first` on, with its backward.
    fn student(
        &self,
        first: usize,
        teacher: &Teacher,
        target: Target<'_>,
        sigma: f64,
        trace: &mut Trace<Cpu>,
        grads: &mut Gradients<Cpu>,
    ) -> Student {
        let (b, g) = (&self.backend, &self.generator);
        let all = self.schedule;
        let mut scales = vec![Scale::square(1)];
        scales.extend_from_slice(&all.scales()[first..]);
        let schedule = ScaleSchedule::new(&scales).unwrap();
        let span = all.span(first..all.len());
        let (k, v) = (g.shape().channels, g.shape().vocab);
        let dims = RolloutDims {
            batch: self.batch,
            schedule: all,
            scales: first..all.len(),
            channels: k,
            vocab: v,
        };
        let mut inputs = b.activation(self.batch * span.len() * k).unwrap();
        b.rollout_inputs(&dims, &teacher.predictions, &self.codebook, &mut inputs).unwrap();
        let labels = self.ids(&self.labels);
        let input = PassInput {
            batch: self.batch,
            schedule,
            labels: &labels,
            inputs: &inputs,
            input_batch: self.batch,
            with_start: false,
            keep: None,
        };
        g.forward(b, &self.params, &input, trace).unwrap();
        let tokens = schedule.tokens();
        let drop_first = |flat: &[f64], width: usize| -> Vec<f64> {
            flat[..self.batch * tokens * width]
                .chunks(tokens * width)
                .flat_map(|sample| &sample[width..])
                .copied()
                .collect()
        };
        let logits = drop_first(trace.logits.as_slice(), v);
        let loss_dims = self.loss_dims(schedule, 1, sigma);
        let mut loss = TokenLoss::new(b, self.batch * tokens).unwrap();
        // The student's targets stand at its own places: its first token has none.
        let place = |ids: &[u32]| -> Vec<u32> {
            ids.chunks(all.tokens())
                .flat_map(|sample| std::iter::once(0).chain(sample[span.clone()].iter().copied()))
                .collect()
        };
        match target {
            Target::Hard => {
                let targets = self.ids(&place(teacher.predictions.as_slice()));
                b.cross_entropy(&loss_dims, &trace.logits, &targets, &mut loss).unwrap();
                let (mean, token_loss) = self.mean(&loss_dims, 1, &loss);
                let truth = self.ids(&place(&self.targets));
                let mut against = TokenLoss::new(b, self.batch * tokens).unwrap();
                b.cross_entropy(&loss_dims, &trace.logits, &truth, &mut against).unwrap();
                let (truth, _) = self.mean(&loss_dims, 1, &against);
                b.cross_entropy_backward(&loss_dims, &mut trace.logits, &targets, &loss).unwrap();
                g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
                Student { inputs, logits, loss: mean, token_loss, against_truth: truth }
            }
            Target::Soft(teacher_logits) => {
                let soft = self.activation(teacher_logits);
                b.soft_cross_entropy(&loss_dims, &trace.logits, &soft, &mut loss).unwrap();
                let (mean, token_loss) = self.mean(&loss_dims, 1, &loss);
                b.soft_cross_entropy_backward(&loss_dims, &mut trace.logits, &soft, &loss).unwrap();
                g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
                Student { inputs, logits, loss: mean, token_loss, against_truth: f64::NAN }
            }
        }
    }
}

struct Teacher {
    logits: Vec<f64>,
    predictions: Buffer<u32>,
    loss: f64,
    token_loss: Vec<f64>,
}

struct Student {
    inputs: Buf,
    logits: Vec<f64>,
    loss: f64,
    token_loss: Vec<f64>,
    against_truth: f64,
}

enum Target<'a> {
    Hard,
    Soft(&'a [f64]),
}

#[test]
fn golden_teacher_forcing() {
    let (setup, file) = Setup::open();
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    assert_close("logits", &teacher.logits, &file.f64("logits"), VALUE);
    assert_close("token_loss", &teacher.token_loss, &file.f64("token_loss"), VALUE);
    assert_close("loss", &[teacher.loss], &file.f64("loss"), VALUE);
    setup.check_gradients(&file, "grad.", &grads);
}

#[test]
fn golden_label_smoothing() {
    let (setup, file) = Setup::open();
    let logits = setup.activation(&file.f64("logits"));
    for name in file.names() {
        let Some(smoothing) = name.strip_prefix("token_loss_label_smoothing_") else { continue };
        let mut dims = setup.loss_dims(setup.schedule, 0, 1.0);
        dims.smoothing = smoothing.parse().unwrap();
        let rows = setup.batch * setup.schedule.tokens();
        let mut loss = TokenLoss::new(&setup.backend, rows).unwrap();
        let targets = setup.ids(&setup.targets);
        setup.backend.cross_entropy(&dims, &logits, &targets, &mut loss).unwrap();
        assert_close(&name, &loss.loss_bl.as_slice()[..rows], &file.f64(&name), VALUE);
    }
}

#[test]
fn golden_rollout_of_all_scales_hard() {
    let (setup, _) = Setup::open();
    let file = Golden::open("ssr_all_scales");
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    assert_eq!(teacher.predictions.as_slice(), file.ids("teacher_predictions"));
    let sigma = sigma_of(&file, "loss_total_sigma_");
    let student = setup.student(1, &teacher, Target::Hard, sigma, &mut trace, &mut grads);
    assert_close("inputs", student.inputs.as_slice(), &file.f64("student_inputs"), VALUE);
    assert_close("logits", &student.logits, &file.f64("student_logits"), VALUE);
    assert_close("token_loss", &student.token_loss, &file.f64("token_loss_csf"), VALUE);
    assert_close("loss_tf", &[teacher.loss], &file.f64("loss_tf"), VALUE);
    assert_close("loss_csf", &[student.loss], &file.f64("loss_csf"), VALUE);
    let truth = file.f64("loss_student_vs_ground_truth");
    assert_close("against truth", &[student.against_truth], &truth, VALUE);
    let total = [teacher.loss + sigma * student.loss];
    assert_close("total", &total, &file.f64(&format!("loss_total_sigma_{sigma}")), VALUE);
    setup.check_gradients(&file, "grad.", &grads);
}

#[test]
fn golden_rollout_of_all_scales_soft() {
    let (setup, _) = Setup::open();
    let file = Golden::open("ssr_all_scales");
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    let sigma = sigma_of(&file, "loss_total_soft_sigma_");
    let soft = Target::Soft(&teacher.logits);
    let student = setup.student(1, &teacher, soft, sigma, &mut trace, &mut grads);
    assert_close("loss", &[student.loss], &file.f64("loss_csf_soft"), VALUE);
    let total = [teacher.loss + sigma * student.loss];
    assert_close("total", &total, &file.f64(&format!("loss_total_soft_sigma_{sigma}")), VALUE);
    setup.check_gradients(&file, "grad_soft.", &grads);
}

#[test]
fn golden_rollout_of_the_last_scale() {
    let (setup, _) = Setup::open();
    let file = Golden::open("ssr_last_scale");
    let (mut trace, mut grads) = setup.memory();
    let teacher = setup.teacher(&mut trace, &mut grads);
    assert_eq!(teacher.predictions.as_slice(), file.ids("teacher_predictions"));
    let (last, sigma) = (setup.schedule.len() - 1, file.number("sigma"));
    let student = setup.student(last, &teacher, Target::Hard, sigma, &mut trace, &mut grads);
    assert_close("inputs", student.inputs.as_slice(), &file.f64("student_inputs"), VALUE);
    assert_close("logits", &student.logits, &file.f64("student_logits"), VALUE);
    assert_close("loss_tf", &[teacher.loss], &file.f64("loss_tf"), VALUE);
    assert_close("loss_csf", &[student.loss], &file.f64("loss_csf"), VALUE);
    let truth = file.f64("loss_student_vs_ground_truth");
    assert_close("against truth", &[student.against_truth], &truth, VALUE);
    let total = [teacher.loss + sigma * student.loss];
    assert_close("total", &total, &file.f64("loss_total"), VALUE);
    setup.check_gradients(&file, "grad.", &grads);
}

/// σ as it stands in a tensor's name, `loss_total_sigma_0.5`.
fn sigma_of(file: &Golden, prefix: &str) -> f64 {
    let names = file.names();
    let name = names.iter().find_map(|n| n.strip_prefix(prefix)).unwrap();
    name.parse().unwrap()
}

#[test]
fn golden_greedy_sampling() {
    let (setup, _) = Setup::open();
    let file = Golden::open("greedy_sampling");
    let (labels, n) = (file.ids("labels"), setup.schedule.len());
    let (b, g, vocab) = (&setup.backend, &setup.generator, setup.generator.shape().vocab);
    let mut tried = 0;
    for name in file.names() {
        let Some(text) =
            name.strip_prefix("guidance_").and_then(|s| s.strip_suffix(".final_indices"))
        else {
            continue;
        };
        let strength: f64 = text.parse().unwrap();
        let t = Guidance::Sampling(strength).ramp(n).unwrap();
        let decoding = Decoding { guidance: Some(t), choice: Choice::Argmax };
        let mut sampler = Sampler::new(b, g, labels.len(), &setup.schedule, true).unwrap();
        sampler
            .run(b, g, &setup.params, &setup.codebook, &labels, &decoding, None, |scale, s| {
                let half = labels.len() * setup.schedule.range(scale).len() * vocab;
                let raw = &s.logits.as_slice()[..2 * half];
                let want = file.f64(&format!("guidance_{text}.raw_logits_{scale}"));
                assert_close("raw logits", raw, &want, VALUE);
                let guided: Vec<f64> = raw[..half]
                    .iter()
                    .zip(&raw[half..])
                    .map(|(c, u)| guide(t[scale], *c, *u))
                    .collect();
                let want = file.f64(&format!("guidance_{text}.guided_logits_{scale}"));
                assert_close("guided logits", &guided, &want, VALUE);
                Ok(())
            })
            .unwrap();
        let last = setup.schedule.range(n - 1);
        let got: Vec<u32> = sampler.ids.as_slice()[..labels.len() * setup.schedule.tokens()]
            .chunks(setup.schedule.tokens())
            .flat_map(|sample| &sample[last.clone()])
            .copied()
            .collect();
        assert_eq!(got, file.ids(&name), "guidance {text}");
        tried += 1;
    }
    assert!(tried > 0, "no guidance values in the file");
}
