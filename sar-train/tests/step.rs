//! The training step in f64: what its gradient is the gradient of, and that every way of training
//! and of splitting a batch does what it says.
#![allow(clippy::unwrap_used)]

use sar_backend_cpu::{Buffer, CpuBackend, CpuError};
use sar_math::ScaleSchedule;
use sar_math::backend::{
    Buffers, Choice, ChooseDims, CodeDims, Distance, MapDims, RolloutDims, RolloutOps, TokenSpan,
};
use sar_math::loss::{LossBatch, StudentForcing, StudentTargets, Supervision, TeacherForcing};
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Decode, Extent, Method, Plan, SarSettings, StudentTarget};
use sar_train::model::generator::{Generator, GeneratorShape, Head, PassInput, Recompute, Trace};
use sar_train::model::tokenizer::{Quantizer, Tokenizer, TokenizerConfig};
use sar_train::train::{MicroBatch, Needs, StepInput, StepMemory, StepSettings};

type Cpu = CpuBackend<f64>;

/// Central differences of step 1e-4 on a loss of order 1: truncation 1e-8, rounding 1e-12.
const DIRECTIONAL: f64 = 2e-6;
/// The same sums in another order.
const REORDERED: f64 = 1e-12;

const SIGMA: f64 = 0.7;

struct World {
    backend: Cpu,
    generator: Generator,
    weights: Vec<f64>,
    quantizer: Quantizer<Cpu>,
    latents: Vec<f64>,
    labels: Vec<u32>,
    schedule: ScaleSchedule,
}

impl World {
    /// Scales that stand for themselves, positions from a table (FlexVAR).
    fn new() -> Self {
        Self::of(None)
    }

    /// Scales that add up, positions of one schedule (VAR).
    fn of_var() -> Self {
        let mut world = Self::of(Some("1_2_3".parse().unwrap()));
        let tokenizer = Tokenizer::new(&TokenizerConfig {
            ch: 2,
            ch_mult: vec![1],
            groups: 2,
            latent_channels: 4,
            vocab: 11,
            residual: 2,
            ..TokenizerConfig::default()
        })
        .unwrap();
        let mut stream = Stream::new(4, Purpose::Test, 0);
        let weights: Vec<f64> =
            (0..tokenizer.layout().len()).map(|_| 0.5 * stream.normal()).collect();
        let params = world.params(&weights);
        world.quantizer = tokenizer.quantizer(&world.backend, &params).unwrap();
        world
    }

    fn of(levels: Option<ScaleSchedule>) -> Self {
        let backend = Cpu::new();
        let schedule: ScaleSchedule = "1_2_3".parse().unwrap();
        let shape = GeneratorShape {
            width: 16,
            heads: 2,
            pos_side: 4,
            levels,
            ..GeneratorShape::of_depth(2, 11, 4, 3)
        };
        let generator = Generator::new(&shape).unwrap();
        let mut stream = Stream::new(3, Purpose::Test, 0);
        // Larger than published initialisation, so that every path carries a gradient that shows.
        let weights = (0..generator.layout().len()).map(|_| 0.3 * stream.normal()).collect();
        let mut codes: Vec<f64> = (0..shape.vocab * 4).map(|_| stream.normal()).collect();
        for row in codes.chunks_mut(4) {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
        let quantizer = Quantizer::direct(&backend, &codes, shape.vocab).unwrap();
        let latents = (0..4 * 4 * 9).map(|_| stream.normal()).collect();
        Self { backend, generator, weights, quantizer, latents, labels: vec![0, 2, 1, 2], schedule }
    }

    fn params(&self, weights: &[f64]) -> Buffer<f64> {
        let mut params = self.backend.params(weights.len()).unwrap();
        self.backend.upload_params(weights, &mut params, 0).unwrap();
        params
    }

    fn activation(&self, values: &[f64]) -> Buffer<f64> {
        let mut a = self.backend.activation(values.len()).unwrap();
        self.backend.upload(values, &mut a, 0).unwrap();
        a
    }

    /// Codes `[b, T]` of the latents.
    fn codes(&self) -> Buffer<u32> {
        let (b, schedule, batch) = (&self.backend, &self.schedule, self.labels.len());
        let dims = MapDims { batch, channels: 4, height: 3, width: 3 };
        let latents = self.activation(&self.latents);
        let mut truth = b.ids(batch * schedule.tokens()).unwrap();
        if self.quantizer.adds_up() {
            let mut memory = self.quantizer.memory(b, batch, schedule).unwrap();
            self.quantizer.codes(b, &mut memory, dims, schedule, &latents, &mut truth).unwrap();
            return truth;
        }
        let mut z = b.activation(batch * schedule.tokens() * 4).unwrap();
        let span = TokenSpan::whole(schedule);
        b.area_tokens(dims, &span, &latents, &mut z).unwrap();
        let vocab = self.generator.shape().vocab;
        let codes = CodeDims { vocab, channels: 4, distance: Distance::Cosine };
        b.nearest_code(batch, &span, codes, &z, self.quantizer.codebook(), &mut truth).unwrap();
        truth
    }

    /// Inputs of scales from codes `[b, T]`.
    fn feed(&self, ids: &Buffer<u32>, scales: std::ops::Range<usize>) -> Buffer<f64> {
        let (b, schedule, batch) = (&self.backend, self.schedule, self.labels.len());
        let mut inputs = b.activation(batch * schedule.tokens() * 4).unwrap();
        if self.quantizer.adds_up() {
            let mut memory = self.quantizer.memory(b, batch, &schedule).unwrap();
            let (q, memory) = (&self.quantizer, &mut memory);
            q.inputs(b, memory, batch, &schedule, scales, ids, &mut inputs).unwrap();
            return inputs;
        }
        let vocab = self.generator.shape().vocab;
        let dims = RolloutDims { batch, schedule, scales, channels: 4, vocab };
        b.rollout_inputs(&dims, ids, self.quantizer.codebook(), &mut inputs).unwrap();
        inputs
    }

    /// The gradient of these samples, each part (from, to) a forward pass of its own.
    fn gradient(&self, settings: &StepSettings, parts: &[(usize, usize)]) -> Vec<f64> {
        let settings = &StepSettings { accumulate: parts.len(), ..*settings };
        self.steps(1, settings, settings.needs(), parts).unwrap()
    }

    /// The gradient of the last of some steps with the same images and memory.
    fn steps(
        &self,
        count: usize,
        settings: &StepSettings,
        needs: Needs,
        parts: &[(usize, usize)],
    ) -> Result<Vec<f64>, CpuError> {
        let (b, g) = (&self.backend, &self.generator);
        let batch = parts.iter().map(|(from, to)| to - from).max().unwrap();
        let (quantizer, schedule) = (&self.quantizer, &self.schedule);
        let mut memory = StepMemory::new(b, g, quantizer, batch, schedule, needs)?;
        let target = settings.sar.map_or(StudentTarget::TeacherHard, |s| s.target);
        let plan = Plan::new(settings.method, target, &self.schedule, 0, 0).unwrap();
        let params = self.params(&self.weights);
        for (index, &(from, to)) in (0..count).flat_map(|_| parts.iter().enumerate()) {
            let latents = self.activation(&self.latents[from * 36..to * 36]);
            let images_in_step = self.labels.len();
            let input = StepInput {
                settings,
                generator: g,
                params: &params,
                quantizer,
                latents: &latents,
                latent_dims: MapDims { batch: to - from, channels: 4, height: 3, width: 3 },
                labels: &self.labels[from..to],
                plan: &plan,
                step: 0,
                micro_batch: MicroBatch { index, first_image: from, images_in_step },
            };
            memory.accumulate(b, &input)?;
        }
        Ok(memory.gradients().as_slice().to_vec())
    }
}

fn plain(method: Method, sar: Option<SarSettings>) -> StepSettings {
    StepSettings {
        method,
        sar,
        own_samples: sar_math::backend::Filter { top_k: 0, top_p: 0.0 },
        class_dropout: 0.0,
        drop_path: 0.0,
        smoothing: 0.0,
        recompute: Recompute::default(),
        head_tokens: usize::MAX,
        accumulate: 1,
        seed: 5,
    }
}

fn sar(extent: Extent, target: StudentTarget) -> StepSettings {
    let settings = SarSettings { extent, target, decode: Decode::ARGMAX, sigma: SIGMA };
    plain(Method::Sar(extent), Some(settings))
}

/// What a step froze: the student's inputs and targets.
struct Frozen {
    truth: Buffer<u32>,
    own: Buffer<u32>,
    soft: Buffer<f64>,
}

/// The loss L_TF + σ·L_CSF at `weights`, written out once more, with the student's inputs and
/// targets as `frozen` has them, or made anew from these weights.
fn total(
    world: &World,
    settings: &StepSettings,
    weights: &[f64],
    frozen: Option<&Frozen>,
) -> (f64, Frozen) {
    let (b, g, schedule) = (&world.backend, &world.generator, world.schedule);
    let (batch, tokens, shape) = (4, schedule.tokens(), g.shape());
    let params = world.params(weights);
    let truth = world.codes();
    let mut labels = b.ids(batch).unwrap();
    b.upload_ids(&world.labels, &mut labels, 0).unwrap();
    let plan_target = settings.sar.unwrap().target;
    let plan = Plan::new(settings.method, plan_target, &schedule, 0, 0).unwrap();
    let mut trace = Trace::new(b, g, batch, tokens, Recompute::default()).unwrap();
    let forward = |trace: &mut Trace<Cpu>, schedule, inputs: &Buffer<f64>, with_start| {
        let input = PassInput {
            batch,
            schedule,
            labels: &labels,
            inputs,
            input_batch: batch,
            with_start,
            keep: None,
        };
        g.forward(b, &params, &input, trace).unwrap();
    };
    let of = LossBatch { samples: batch, divisor: batch, vocab: shape.vocab, smoothing: 0.0 };
    forward(&mut trace, schedule, &world.feed(&truth, 1..schedule.len()), true);
    let mut head = Head::new(b, g, batch * tokens).unwrap();
    let all = 0..batch;
    let whole = std::slice::from_ref(&all);
    g.head(b, &params, tokens, trace.output(), whole, &mut head).unwrap();
    let mut teacher = TeacherForcing::new(b, batch * tokens, 1).unwrap();
    let done = Supervision::teacher(of, &plan.first);
    teacher.forward(b, &done, all.clone(), &head.logits, &truth).unwrap();
    teacher.keep(b, &done, 0).unwrap();
    let loss_tf = teacher.report(b, &done, 0).unwrap().mean_loss();
    let mut own = b.ids(batch * tokens).unwrap();
    let choose = ChooseDims {
        batch,
        first_sample: 0,
        schedule,
        scales: 0..schedule.len(),
        vocab: shape.vocab,
        guidance: None,
        choice: Choice::Argmax,
    };
    b.choose_codes(&choose, &head.logits, &mut own).unwrap();
    let soft = world.activation(&head.logits.as_slice()[..batch * tokens * shape.vocab]);
    let made = Frozen { truth, own, soft };
    let used = frozen.unwrap_or(&made);
    let second = plan.second.unwrap();
    let last = second.schedule.len() - 1;
    let scales = second.origin[1]..second.origin[last] + 1;
    // What comes before the scales that the rollout feeds is the image's own.
    let mut fed = used.truth.clone();
    let reads = second.reads_rollout();
    b.merge_ids(batch, &schedule, &reads[..schedule.len()], &used.own, &mut fed).unwrap();
    forward(&mut trace, second.schedule, &world.feed(&fed, scales), false);
    let targets = match plan_target {
        StudentTarget::TeacherHard => StudentTargets::Hard(&used.own),
        StudentTarget::TeacherSoft => StudentTargets::Soft(&used.soft),
        StudentTarget::GroundTruth => StudentTargets::Hard(&used.truth),
    };
    let mut student = StudentForcing::new(b, batch * tokens, 1).unwrap();
    g.head(b, &params, second.schedule.tokens(), trace.output(), whole, &mut head).unwrap();
    let done = Supervision::student(of, &second, &schedule, SIGMA);
    student.forward(b, &done, all.clone(), &head.logits, targets).unwrap();
    student.keep(b, &done, 0).unwrap();
    let loss_csf = student.report(b, &done, 0).unwrap().mean_loss();
    (loss_tf + SIGMA * loss_csf, made)
}

/// The derivative of the total along `direction`, with or without the student's inputs and targets
/// held as they are.
fn directional(world: &World, settings: &StepSettings, direction: &[f64], hold: bool) -> f64 {
    const STEP: f64 = 1e-4;
    let (_, frozen) = total(world, settings, &world.weights, None);
    let at = |h: f64| {
        let moved: Vec<f64> = world.weights.iter().zip(direction).map(|(w, d)| w + h * d).collect();
        total(world, settings, &moved, hold.then_some(&frozen)).0
    };
    // Fourth order, so that truncation does not hide behind the tolerance.
    (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP)
}

#[test]
fn the_gradient_of_a_sar_step_is_that_of_its_loss_with_rollout_and_targets_held() {
    let everything = [(0, 4)];
    let worlds = [World::new(), World::of_var()];
    let extents = [Extent::All, Extent::Last];
    for (world, extent) in worlds.iter().flat_map(|w| extents.map(|extent| (w, extent))) {
        for target in
            [StudentTarget::TeacherHard, StudentTarget::TeacherSoft, StudentTarget::GroundTruth]
        {
            let settings = sar(extent, target);
            let gradient = world.gradient(&settings, &everything);
            for seed in 0..4 {
                let mut stream = Stream::new(seed, Purpose::Test, 1);
                let direction: Vec<f64> = gradient.iter().map(|_| stream.normal()).collect();
                let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let held = directional(world, &settings, &direction, true);
                let scale = held.abs().max(1.0);
                assert!(
                    (along - held).abs() < DIRECTIONAL * scale,
                    "{extent} {target}: {along} along the gradient, {held} by differences"
                );
            }
        }
    }
}

#[test]
fn the_check_would_notice_a_gradient_through_soft_targets() {
    let world = World::new();
    let settings = sar(Extent::All, StudentTarget::TeacherSoft);
    let mut stream = Stream::new(9, Purpose::Test, 1);
    let direction: Vec<f64> = world.weights.iter().map(|_| stream.normal()).collect();
    let held = directional(&world, &settings, &direction, true);
    let free = directional(&world, &settings, &direction, false);
    assert!((held - free).abs() > 100.0 * DIRECTIONAL, "{held} held, {free} free");
}

#[test]
fn parts_of_a_batch_add_up_to_the_whole() {
    let world = World::new();
    for settings in [plain(Method::Teacher, None), sar(Extent::All, StudentTarget::TeacherHard)] {
        let whole = world.gradient(&settings, &[(0, 4)]);
        let parts = world.gradient(&settings, &[(0, 2), (2, 4)]);
        let largest = whole.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a - b).abs() <= REORDERED * largest, "{a} whole, {b} in parts");
        }
    }
}

/// The head takes some images at a time: the same rollout, the same losses, the same gradient but for
/// the order of its sums.
#[test]
fn a_step_has_nothing_of_the_one_before() {
    let world = World::new();
    let settings = StepSettings { accumulate: 2, ..sar(Extent::All, StudentTarget::TeacherHard) };
    let (needs, half) = (settings.needs(), world.labels.len() / 2);
    let parts = [(0, half), (half, world.labels.len())];
    let steps = |count| world.steps(count, &settings, needs, &parts).unwrap();
    assert_eq!(steps(1), steps(3));
}

/// A plan that needs memory which was not asked for is not trained on something else instead.
#[test]
fn a_step_says_which_memory_it_lacks() {
    let world = World::new();
    let refused = |settings: &StepSettings, needs| {
        let error = world.steps(1, settings, needs, &[(0, world.labels.len())]).unwrap_err();
        error.to_string()
    };
    let soft = sar(Extent::All, StudentTarget::TeacherSoft);
    let said = refused(&soft, Needs { soft: false, ..soft.needs() });
    assert!(said.contains("training step") && said.contains("soft targets"), "{said}");
    let own = plain(Method::Student, None);
    let said = refused(&own, Needs { sampler: false, ..own.needs() });
    assert!(said.contains("training step") && said.contains("own samples"), "{said}");
}

#[test]
fn logits_some_images_at_a_time_are_those_of_the_batch() {
    let world = World::new();
    let filter = sar_math::backend::Filter { top_k: 5, top_p: 0.9 };
    let guidance = sar_math::guidance::Guidance::Rollout(1.2);
    let guided = |extent| {
        let decode = Decode { draw: Some(filter), guidance };
        let target = StudentTarget::TeacherHard;
        plain(Method::Sar(extent), Some(SarSettings { extent, target, decode, sigma: SIGMA }))
    };
    let ways = [
        StepSettings { smoothing: 0.1, ..plain(Method::Teacher, None) },
        sar(Extent::All, StudentTarget::TeacherSoft),
        sar(Extent::Last, StudentTarget::TeacherSoft),
        guided(Extent::All),
        guided(Extent::Last),
        plain(Method::Hybrid { teacher_scales: 2 }, None),
    ];
    let image = world.schedule.tokens();
    for settings in ways {
        let whole = world.gradient(&settings, &[(0, 4)]);
        let largest = whole.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for head_tokens in [1, 3 * image, 4 * image] {
            let parts = world.gradient(&StepSettings { head_tokens, ..settings }, &[(0, 4)]);
            for (a, b) in whole.iter().zip(&parts) {
                let near = (a - b).abs() <= REORDERED * largest;
                assert!(near, "{:?}, {head_tokens}: {a} whole, {b} in parts", settings.method);
            }
        }
    }
}

#[test]
fn every_way_of_training_reaches_every_parameter() {
    [World::new(), World::of_var()].iter().for_each(every_way_reaches_every_parameter);
}

fn every_way_reaches_every_parameter(world: &World) {
    let release = SarSettings::RELEASE;
    let ways = [
        plain(Method::Teacher, None),
        plain(Method::Sar(Extent::Last), Some(release)),
        plain(Method::Sar(Extent::Random), Some(SarSettings { extent: Extent::Random, ..release })),
        plain(Method::Student, None),
        plain(Method::Hybrid { teacher_scales: 2 }, None),
        plain(Method::Interleaved, None),
    ];
    for settings in ways {
        let gradient = world.gradient(&settings, &[(0, 4)]);
        for tensor in world.generator.layout().tensors() {
            let part = &gradient[tensor.slot.range()];
            assert!(part.iter().all(|v| v.is_finite()), "{:?} {}", settings.method, tensor.name);
            assert!(
                part.iter().any(|v| *v != 0.0),
                "{:?}: {} gets no gradient",
                settings.method,
                tensor.name
            );
        }
        assert_eq!(gradient, world.gradient(&settings, &[(0, 4)]), "{:?}", settings.method);
    }
}

#[test]
fn student_forcing_reads_its_own_samples() {
    let world = World::new();
    let teacher = world.gradient(&plain(Method::Teacher, None), &[(0, 4)]);
    let student = world.gradient(&plain(Method::Student, None), &[(0, 4)]);
    let hybrid = world.gradient(&plain(Method::Hybrid { teacher_scales: 3 }, None), &[(0, 4)]);
    assert_ne!(teacher, student);
    // With every scale from the teacher, hybrid forcing is teacher forcing.
    assert_eq!(teacher, hybrid);
}

/// What the backward computes again changes its memory, never its result: also with a guided rollout
/// (whose unconditional half has no backward) and branches dropped.
#[test]
fn recomputation_changes_no_bit() {
    let world = World::new();
    let guidance = sar_math::guidance::Guidance::Rollout(1.2);
    let filter = sar_math::backend::Filter { top_k: 5, top_p: 0.9 };
    let settings = SarSettings {
        extent: Extent::Last,
        target: StudentTarget::TeacherHard,
        decode: Decode { draw: Some(filter), guidance },
        sigma: SIGMA,
    };
    let with = |recompute| {
        let plain = plain(Method::Sar(Extent::Last), Some(settings));
        let settings = StepSettings { drop_path: 0.4, recompute, ..plain };
        world.gradient(&settings, &[(0, 4)])
    };
    let kept = with(Recompute::Nothing);
    assert!(kept.iter().any(|g| *g != 0.0));
    assert!(kept == with(Recompute::Norms), "norms computed again");
    assert!(kept == with(Recompute::Blocks), "blocks computed again");
}
