//! Whole training steps and sampling runs on the CUDA backend beside the CPU backend on the same work:
//! its kernels executed on the CPU, and what NVRTC makes of them where `SAR_PTX` names an architecture, and
//! on the GPU where there is one (`SAR_REQUIRE_GPU=1` makes a missing one a failure).
#![allow(clippy::unwrap_used)]

mod plan;
mod sampling;

use sar_backend_cpu::{CpuBackend, NarrowCpu};
use sar_backend_cuda::{
    CudaBackend, Device as _, Driver, Emulator, ORDERS, PtxDevice, Storage, TestDevice, bf16,
};
use sar_math::Real;
use sar_math::backend::Backend;
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::Extent;
use sar_train::config::{Config, Decode, Mode, Positions};
use sar_train::model::generator::{Generator, GeneratorShape, Recompute};
use sar_train::model::tokenizer::{Quantizer, Tokenizer};
use sar_train::train::{Batches, StepCost, TrainError, Trainer};
use std::collections::BTreeSet;

/// Below this a gradient is rounding alone: what the losses do not depend on.
const NO_GRADIENT: f64 = 1e-9;

/// Rounding that the CPU's own f32 may happen to be free of: a few units in the last place, relative
/// to the largest element.
const FLOOR: f64 = 2e-6;
/// Gradients may be so many times as far from f64 as those of the CPU backend in f32.
const GRADIENT_FACTOR: f64 = 3.0;
/// As [`GRADIENT_FACTOR`], of a loss.
const LOSS_FACTOR: f64 = 2.0;
/// As [`FLOOR`], where activations are stored in bf16: a rounding of them, half a step of eight significant bits.
const BF16_FLOOR: f64 = 1.0 / 512.0;
/// Of f32 against f32 after a few optimiser steps, relative to the learning rate that moved them: a
/// moment near zero may turn its sign for want of digits.
const STEPS_DIFFER: f64 = 0.1;

const SCHEDULE: &str = "1_2_3_4";
const BATCH: usize = 2;
const VOCAB: usize = 37;
const CHANNELS: usize = 8;
const CLASSES: usize = 3;

fn config(mode: Mode) -> Config {
    let mut config = Config::default();
    let g = &mut config.generator;
    (g.depth, g.width, g.heads) = (2, 128, 2);
    (g.vocab, g.channels, g.classes) = (VOCAB, CHANNELS, CLASSES);
    g.schedule = SCHEDULE.parse().unwrap();
    g.resolve();
    let t = &mut config.train;
    (t.batch, t.lr, t.mode) = (BATCH, Some(1e-3), mode);
    (t.class_dropout, t.drop_path) = (0.1, Some(0.2));
    config.sar.extent = Extent::All;
    (config.sar.decode, config.sar.guidance) = (Decode::Argmax, 0.0);
    config.sar.sigma = 0.5;
    config.validate().unwrap();
    config
}

/// As VAR's models are: scales that add up, and positions of one schedule.
fn as_var(mut config: Config) -> Config {
    let (t, g) = (&mut config.tokenizer, &mut config.generator);
    (t.vocab, t.latent_channels, t.residual) = (g.vocab, g.channels, 2);
    g.positions = Positions::Levels;
    config
}

/// Weights, codebook and images of a small world, in f32 so that every backend has the same.
struct World {
    generator: Generator,
    weights: Vec<f32>,
    codebook: Vec<f32>,
    latents: Vec<f32>,
    /// The tokenizer whose scales add up, where the configuration has such a one, and its weights.
    adding: Option<(Tokenizer, Vec<f32>)>,
}

impl World {
    fn new(config: &Config) -> Self {
        let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
        let mut stream = Stream::new(3, Purpose::Test, 0);
        // Larger than published initialisation, so that every path carries a gradient that shows.
        let mut weights = generator.initial(1);
        for i in generator.layout().tensors().iter().flat_map(|t| t.slot.range()) {
            weights[i] += 0.05 * stream.normal() as f32;
        }
        let mut codebook: Vec<f32> =
            (0..VOCAB * CHANNELS).map(|_| stream.normal() as f32).collect();
        for row in codebook.chunks_mut(CHANNELS) {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
        let latents = (0..BATCH * CHANNELS * 16).map(|_| stream.normal() as f32).collect();
        let adding = (config.tokenizer.residual > 0).then(|| {
            let tokenizer = Tokenizer::new(&config.tokenizer).unwrap();
            let random = (0..tokenizer.layout().len()).map(|_| 0.5 * stream.normal() as f32);
            let weights = random.collect();
            (tokenizer, weights)
        });
        Self { generator, weights, codebook, latents, adding }
    }

    fn quantizer<B: Backend>(&self, backend: &B) -> Quantizer<B> {
        if let Some((tokenizer, weights)) = &self.adding {
            let weights: Vec<_> = weights.iter().map(|&v| B::Host::of(f64::from(v))).collect();
            let mut params = backend.params(weights.len()).unwrap();
            backend.upload_params(&weights, &mut params, 0).unwrap();
            return tokenizer.quantizer(backend, &params).unwrap();
        }
        let codes: Vec<_> = self.codebook.iter().map(|&v| B::Host::of(f64::from(v))).collect();
        Quantizer::direct(backend, &codes, VOCAB).unwrap()
    }

    fn trainer<'b, B: Backend>(
        &self,
        backend: &'b B,
        quantizer: &'b Quantizer<B>,
        config: &Config,
    ) -> Trainer<'b, B> {
        let (generator, weights) = (self.generator.clone(), &self.weights);
        Trainer::new(backend, generator, config, weights, quantizer, (4, 4)).unwrap()
    }
}

struct Images<'w>(&'w World);

impl<B: Backend> Batches<B> for Images<'_> {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        let host: Vec<B::Host> =
            self.0.latents.iter().map(|&v| B::Host::of(f64::from(v))).collect();
        backend.upload(&host, latents, 0)?;
        Ok(vec![0, 2])
    }
}

/// What steps leave: losses, the last gradient, the weights.
struct Trained {
    losses: Vec<f64>,
    gradient: Vec<f64>,
    weights: Vec<f32>,
}

fn train<B: Backend>(backend: &B, config: &Config, steps: usize) -> Trained {
    let world = World::new(config);
    let quantizer = world.quantizer(backend);
    let mut trainer = world.trainer(backend, &quantizer, config);
    let mut losses = Vec::new();
    for _ in 0..steps {
        assert!(!trainer.step(&mut Images(&world)).unwrap(), "a step was skipped");
        losses.push(trainer.report().unwrap().unwrap().loss);
    }
    let len = world.weights.len();
    let mut gradient = vec![B::Host::of(0.0); len];
    backend.download_accum(trainer.gradients(), 0, &mut gradient).unwrap();
    let gradient = gradient.iter().map(|v| v.wide()).collect();
    Trained { losses, gradient, weights: trainer.export().unwrap().weights }
}

fn emulated<S: Storage>() -> CudaBackend<S, Emulator> {
    CudaBackend::new(Emulator::new()).unwrap()
}

fn ptx(order: u64) -> Option<PtxDevice> {
    let arch = std::env::var("SAR_PTX").ok()?;
    Some(PtxDevice::new(&arch, order).unwrap())
}

fn gpu() -> Option<Driver> {
    match TestDevice::gpu() {
        Ok(driver) => Some(driver),
        Err(error) => {
            assert!(std::env::var_os("SAR_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("on the CPU alone: {error}");
            None
        }
    }
}

/// A device of a kind, where there is one: how many threads carry blocks out, and the order of a block's.
type Kind = fn(u32, u64) -> Option<TestDevice>;

/// Every kind of device; a GPU has an order of its own.
const KINDS: [Kind; 3] = [
    |threads, order| Some(TestDevice::Emulated(Emulator::with_order(threads, order))),
    |_, order| ptx(order).map(TestDevice::Compiled),
    |_, _| gpu().map(TestDevice::Gpu),
];

/// Every device there is.
fn each<S: Storage>() -> Vec<CudaBackend<S, TestDevice>> {
    let devices = KINDS.into_iter().filter_map(|device| device(1, 0));
    devices.map(|device| CudaBackend::new(device).unwrap()).collect()
}

/// What steps leave on every device there is.
fn train_on_each<S: Storage>(config: &Config, steps: usize) -> Vec<Trained> {
    each::<S>().iter().map(|backend| train(backend, config, steps)).collect()
}

/// The largest difference, relative to the largest element.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    // What is no number counts as the worst.
    let worse = |a: f64, d: f64| if d > a || d.is_nan() { d } else { a };
    found.iter().zip(expected).map(|(f, e)| (f - e).abs()).fold(0.0, worse) / largest
}

/// The gradient of one step against f64, tensor by tensor: worst error on the CPU at the same precision, and on CUDA.
fn compare_gradients<S: Storage>(config: &Config) {
    let exact = train(&CpuBackend::<f64>::new(), config, 1);
    let (plain, floor) = if S::NARROW {
        (train(&NarrowCpu::new(), config, 1), BF16_FLOOR)
    } else {
        (train(&CpuBackend::<f32>::new(), config, 1), FLOOR)
    };
    let devices = train_on_each::<S>(config, 1);
    let world = World::new(config);
    let layout = world.generator.layout();
    let slots = layout.slots(true).into_iter().chain(layout.slots(false));
    for slot in slots {
        let exact = &exact.gradient[slot.range()];
        if exact.iter().all(|&g| g.abs() < NO_GRADIENT) {
            continue;
        }
        let error = |of: &Trained| error(&of.gradient[slot.range()], exact);
        let cpu = error(&plain);
        for cuda in devices.iter().map(error) {
            println!("{} {slot:?}: CUDA {cuda:e}, CPU {cpu:e}", S::NAME);
            assert!(cuda <= GRADIENT_FACTOR * cpu + floor, "{slot:?}: CUDA {cuda:e}, CPU {cpu:e}");
        }
    }
}

#[test]
fn a_teacher_forced_step_has_the_cpus_gradient() {
    compare_gradients::<f32>(&config(Mode::Teacher));
}

#[test]
fn a_sar_step_has_the_cpus_gradient() {
    compare_gradients::<f32>(&config(Mode::Ssr));
}

#[test]
fn a_sar_step_of_var_has_the_cpus_gradient() {
    compare_gradients::<f32>(&as_var(config(Mode::Ssr)));
    compare_gradients::<bf16>(&as_var(config(Mode::Teacher)));
}

#[test]
fn steps_in_bf16_have_it_within_their_storage() {
    compare_gradients::<bf16>(&config(Mode::Teacher));
    compare_gradients::<bf16>(&config(Mode::Ssr));
}

/// The head takes one image at a time where there is room for no more; the step is the same.
#[test]
fn a_step_with_room_for_the_logits_of_one_image_is_that_of_a_batch() {
    let mut config = config(Mode::Ssr);
    let all = train_on_each::<f32>(&config, 1);
    config.train.head_tokens = 1;
    for (whole, parts) in all.iter().zip(train_on_each::<f32>(&config, 1)) {
        assert!((parts.losses[0] - whole.losses[0]).abs() < FLOOR * whole.losses[0]);
        assert!(error(&parts.gradient, &whole.gradient) < FLOOR);
    }
}

/// All memory is there before the first step; the scratch of ops grows within it at most.
#[test]
fn later_steps_allocate_nothing() {
    let modes = [Mode::Teacher, Mode::Ssr, Mode::Student].map(config);
    // Room for others between the first scales and the last; latents are averaged to any grid.
    let random = |mut config: Config| {
        config.train.random_schedules = true;
        config.generator.schedule = "1_2_3_5_6_8".parse().unwrap();
        config
    };
    let each = |config: Config| [config.clone(), as_var(config.clone()), random(config)];
    for mut config in modes.into_iter().flat_map(each) {
        (config.sar.decode, config.sar.guidance) = (Decode::Sample, 1.2);
        let (mode, backend) = (config.train.mode, emulated::<bf16>());
        let world = World::new(&config);
        let quantizer = world.quantizer(&backend);
        let mut trainer = world.trainer(&backend, &quantizer, &config);
        trainer.step(&mut Images(&world)).unwrap();
        let before = backend.device().allocations();
        let mut schedules = BTreeSet::new();
        for _ in 0..if config.train.random_schedules { 6 } else { 2 } {
            trainer.step(&mut Images(&world)).unwrap();
            schedules.insert(trainer.report().unwrap().unwrap().schedule);
        }
        assert!(!config.train.random_schedules || schedules.len() > 2, "{schedules:?}");
        assert_eq!(backend.device().allocations(), before, "{mode}");
    }
}

/// A step whose loss is no number is skipped, and leaves the weights as they were.
#[test]
fn a_step_without_a_number_is_skipped() {
    let config = config(Mode::Ssr);
    let mut world = World::new(&config);
    let bias = world.generator.layout().get("head.bias").unwrap().slot;
    world.weights[bias.offset] = f32::NAN;
    for backend in &each::<bf16>() {
        let quantizer = world.quantizer(backend);
        let mut trainer = world.trainer(backend, &quantizer, &config);
        assert!(trainer.step(&mut Images(&world)).unwrap(), "the step is skipped");
        let found = trainer.export().unwrap();
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        assert!(found.weights.iter().zip(&world.weights).all(same), "weights are as before");
        assert!(found.first_moment.iter().all(|&m| m == 0.0), "so are moments");
    }
}

/// What one backend saves, the other goes on from: three steps on either, the last on the other one.
#[test]
fn a_run_goes_on_on_the_other_backend() {
    fn go_on<A: Backend, B: Backend>(first: &A, second: &B, config: &Config) -> Vec<f32> {
        let mut world = World::new(config);
        let (export, state) = {
            let quantizer = world.quantizer(first);
            let mut trainer = world.trainer(first, &quantizer, config);
            for _ in 0..2 {
                trainer.step(&mut Images(&world)).unwrap();
            }
            (trainer.export().unwrap(), trainer.state().clone())
        };
        world.weights = export.weights;
        let quantizer = world.quantizer(second);
        let mut trainer = world.trainer(second, &quantizer, config);
        let ema = export.ema.as_deref();
        trainer.restore(state, &export.first_moment, &export.second_moment, ema).unwrap();
        trainer.step(&mut Images(&world)).unwrap();
        trainer.export().unwrap().weights
    }
    let config = config(Mode::Ssr);
    let cpu = CpuBackend::<f32>::new();
    let plain = train(&cpu, &config, 3).weights;
    let lr = config.train.lr.unwrap() as f32;
    assert_eq!(go_on(&cpu, &cpu, &config), plain, "the same backend has the same bits");
    for cuda in &each::<f32>() {
        for weights in [go_on(&cpu, cuda, &config), go_on(cuda, &cpu, &config)] {
            let worse = |a: f32, d: f32| if d > a || d.is_nan() { d } else { a };
            let differ = plain.iter().zip(&weights).map(|(a, b)| (a - b).abs());
            assert!(f64::from(differ.fold(0.0, worse) / lr) < STEPS_DIFFER);
        }
    }
}

#[test]
fn a_few_sar_steps_follow_the_cpu() {
    let config = config(Mode::Ssr);
    let plain = train(&CpuBackend::<f32>::new(), &config, 4);
    let lr = config.train.lr.unwrap() as f32;
    for found in train_on_each::<f32>(&config, 4) {
        let differ = plain.weights.iter().zip(&found.weights).map(|(a, b)| (a - b).abs());
        let worse = |a: f32, d: f32| if d > a || d.is_nan() { d } else { a };
        let worst = differ.fold(0.0f32, worse) / lr;
        assert!(f64::from(worst) < STEPS_DIFFER, "weights differ by {worst} learning rates");
    }
    assert!(plain.losses[3] < plain.losses[0], "the CPU learns: {:?}", plain.losses);
    let stored = train(&NarrowCpu::new(), &config, 4);
    for narrow in train_on_each::<bf16>(&config, 4) {
        for ((exact, cpu), cuda) in plain.losses.iter().zip(&stored.losses).zip(&narrow.losses) {
            let (cpu, cuda) = ((cpu - exact).abs() / exact, (cuda - exact).abs() / exact);
            println!("loss in bf16: CUDA {cuda:e}, CPU {cpu:e}");
            assert!(
                cuda <= LOSS_FACTOR * cpu + BF16_FLOOR,
                "{:?} {:?}",
                stored.losses,
                narrow.losses
            );
        }
    }
}

#[test]
fn steps_have_the_same_bits_whatever_the_order_of_threads_and_whatever_is_recomputed() {
    KINDS[..2].iter().for_each(|device| same_bits_of_steps(*device));
}

#[test]
fn steps_on_a_gpu_have_the_same_bits_whatever_is_recomputed() {
    same_bits_of_steps(KINDS[2]);
}

fn same_bits_of_steps(device: Kind) {
    let run = |device: TestDevice, recompute: Recompute| {
        let mut config = config(Mode::Ssr);
        config.sar.decode = Decode::Sample;
        config.sar.guidance = 1.2;
        config.train.recompute = recompute;
        let backend = CudaBackend::<bf16, _>::new(device).unwrap();
        train(&backend, &config, 2).weights
    };
    let again = [Recompute::Norms, Recompute::Nothing, Recompute::Blocks, Recompute::Norms];
    let mut runs = ORDERS.into_iter().zip(again).filter_map(|((threads, order), recompute)| {
        Some((order, recompute, run(device(threads, order)?, recompute)))
    });
    let Some((_, _, first)) = runs.next() else { return };
    for (order, recompute, other) in runs {
        let differing =
            first.iter().zip(&other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differing, 0, "order {order}, {recompute} again");
    }
}

/// The account of a step has the products that a teacher-forced step is made of, and attention's.
#[test]
fn a_profile_counts_the_work_of_a_step() {
    each::<bf16>().iter().for_each(profile_counts);
}

fn profile_counts(backend: &CudaBackend<bf16, TestDevice>) {
    let config = config(Mode::Teacher);
    let world = World::new(&config);
    let quantizer = world.quantizer(backend);
    let mut trainer = world.trainer(backend, &quantizer, &config);
    backend.device().begin_profile().unwrap();
    trainer.step(&mut Images(&world)).unwrap();
    let tallies = backend.device().end_profile().unwrap();
    let work = |wanted: &str| {
        let named = tallies.iter().filter(|tally| tally.name.starts_with(wanted));
        named.map(|tally| tally.work.flops as f64).sum::<f64>()
    };
    let planned = StepCost::of(&config).unwrap().flops_step as f64;
    let found = work("product") + work("attention_");
    // Backward attention recomputes scores: seven products instead of the plan's four.
    assert!(found > planned && found < 1.1 * planned, "{found} of {planned}");
    let norm = tallies.iter().find(|tally| tally.name.starts_with("residual_norm_8")).unwrap();
    assert_eq!(norm.calls, 5, "two a block, and the last");
    assert!(backend.device().end_profile().unwrap().is_empty(), "an account ends once");
}
