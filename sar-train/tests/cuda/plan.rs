//! `sar plan` beside the memory that a run takes on the device.

use super::{as_var, config, emulated};
use sar_backend_cuda::{CudaBackend, Device as _, Dry, SCRATCH, Storage, bf16};
use sar_math::backend::{Backend, Buffers as _};
use sar_train::config::{Config, Decode, Mode};
use sar_train::model::generator::{Generator, GeneratorShape, Recompute};
use sar_train::model::tokenizer::{Quantizer, Tokenizer};
use sar_train::sample::{Decoder, Painter};
use sar_train::train::{Batches, MemoryPlan, TrainError, Trainer, rehearse, rehearse_sampling};

/// How far a plan may be from what is held; a hundred times this is what is asked of it.
///
/// Both allocate the same. What may differ is what one test makes in another way, the latents' size or the rounding of
/// an allocation: 0.02 %.
const PLAN_ERROR: f64 = 1e-3;
/// Images of a step whose memory is compared with the plan.
const PLANNED_BATCH: usize = 4;

/// Held-out images that are encoded at a time.
const HELD_OUT_BATCH: usize = 64;

/// Blank images of the first class.
struct Blank;

impl<B: Backend> Batches<B> for Blank {
    fn next(&mut self, _: &B, _: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        Ok(vec![0; PLANNED_BATCH])
    }
}

/// Of a tokenizer of any weights, and what else of it is on the device.
fn quantizer<B: Backend>(backend: &B, config: &Config) -> (Quantizer<B>, Option<B::Params>) {
    let (t, g) = (&config.tokenizer, &config.generator);
    if t.residual == 0 {
        let codes = vec![B::Host::default(); g.vocab * g.channels];
        return (Quantizer::direct(backend, &codes, g.vocab).unwrap(), None);
    }
    let tokenizer = Tokenizer::new(t).unwrap();
    let params = backend.params(tokenizer.layout().len()).unwrap();
    (tokenizer.quantizer(backend, &params).unwrap(), Some(params))
}

/// Weights that are sampled with and not trained take their narrow copy, and next to nothing beside it.
#[test]
fn frozen_weights_take_a_third_of_others() {
    let mut config = config(Mode::Teacher);
    (config.generator.width, config.generator.depth, config.generator.heads) = (512, 4, 8);
    let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
    let weights = vec![0.0; generator.layout().len()];
    fn held<S: Storage>(weigh: impl FnOnce(&CudaBackend<S, Dry>)) -> f64 {
        let backend = CudaBackend::<S, Dry>::new(Dry::default()).unwrap();
        let before = backend.device().peak_bytes();
        weigh(&backend);
        (backend.device().peak_bytes() - before) as f64
    }
    let trained = held::<bf16>(|backend| drop(backend.params(weights.len()).unwrap()));
    let frozen = held::<bf16>(|backend| drop(generator.frozen(backend, &weights).unwrap()));
    assert!((1.0 / 3.0..0.36).contains(&(frozen / trained)), "{frozen} of {trained} bytes");
    // What is narrow by half, in f32 is all there is.
    let wide = held::<f32>(|backend| drop(generator.frozen(backend, &weights).unwrap()));
    assert_eq!(wide, 4.0 * weights.len() as f64);
}

/// `sar plan` says what a run takes from its start through its steps, for every policy, storage and way of
/// training.
#[test]
fn the_plan_is_what_the_trainer_holds() {
    fn held<S: Storage>(config: &Config) -> (f64, f64) {
        let backend = emulated::<S>();
        let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
        let weights = vec![0.0; generator.layout().len()];
        // The tokenizer's, which is planned beside the steps.
        let before = backend.device().peak_bytes();
        let (quantizer, _params) = quantizer(&backend, config);
        let before = backend.device().peak_bytes() - before;
        let mut trainer =
            Trainer::new(&backend, generator, config, &weights, &quantizer, (4, 4)).unwrap();
        // What differs by policy is held from the start; the scratch of ops grows within a step.
        if config.train.recompute == Recompute::Norms {
            trainer.step(&mut Blank).unwrap();
        }
        let held = backend.device().peak_bytes() - before;
        let own = SCRATCH as u64;
        (held as f64, MemoryPlan::of::<S>(config, own).unwrap().steps() as f64)
    }
    let unguided = |mode| {
        let mut config = config(mode);
        config.train.batch = PLANNED_BATCH;
        held::<bf16>(&config).0
    };
    let (teacher, sar) = (unguided(Mode::Teacher), unguided(Mode::Ssr));
    assert!(sar < teacher * (1.0 + PLAN_ERROR), "a second pass takes no more: {sar}, {teacher}");
    for mode in [Mode::Teacher, Mode::Ssr, Mode::Student] {
        for recompute in [Recompute::Nothing, Recompute::Norms, Recompute::Blocks] {
            let mut config = config(mode);
            config.generator.schedule = "1_2_3_4_6_8".parse().unwrap();
            config.train.batch = PLANNED_BATCH;
            config.train.recompute = recompute;
            config.train.ema = 0.9;
            config.sar.decode = Decode::Sample;
            config.sar.guidance = 1.2;
            for config in [config.clone(), as_var(config)] {
                for (held, planned) in [held::<f32>(&config), held::<bf16>(&config)] {
                    let off = (planned - held) / held;
                    let adds_up = config.tokenizer.residual > 0;
                    assert!(
                        off.abs() < PLAN_ERROR,
                        "{mode}, {recompute}, {adds_up}: {planned} for {held}"
                    );
                }
            }
        }
    }
}

/// From the first image that is encoded to the first picture, what ops need for themselves included: that of
/// convolutions here, far more than a backend begins with.
#[test]
fn the_plan_is_what_a_run_holds() {
    fn of<S: Storage>(config: &Config) {
        let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
        let tokenizer = Tokenizer::new(&config.tokenizer).unwrap();
        let dry = CudaBackend::<S, Dry>::new(Dry::default()).unwrap();
        rehearse(&dry, config, &generator, &tokenizer).unwrap();
        let emulated = emulated::<S>();
        rehearse(&emulated, config, &generator, &tokenizer).unwrap();
        let (held, scratch) = (emulated.device().peak_bytes(), dry.scratch_bytes());
        assert!(scratch > 8 * SCRATCH && scratch == emulated.scratch_bytes(), "{scratch}");
        assert_eq!(dry.device().peak_bytes(), held, "what is counted is what is held");
        let planned = MemoryPlan::of::<S>(config, scratch as u64).unwrap().total();
        let off = (planned as f64 - held as f64) / held as f64;
        assert!(off.abs() < PLAN_ERROR, "{}: {planned} for {held}", S::NAME);
        // A block less has the same.
        let shape = GeneratorShape { depth: 1, ..generator.shape().clone() };
        let dry = CudaBackend::<S, Dry>::new(Dry::default()).unwrap();
        rehearse(&dry, config, &Generator::new(&shape).unwrap(), &tokenizer).unwrap();
        assert_eq!(dry.scratch_bytes(), scratch);
    }
    let mut config = config(Mode::Ssr);
    config.train.batch = PLANNED_BATCH;
    (config.sample.batch, config.data.image_side) = (2, 32);
    let (t, g) = (&mut config.tokenizer, &config.generator);
    (t.vocab, t.latent_channels) = (g.vocab, g.channels);
    (t.ch, t.ch_mult, t.groups) = (8, vec![1, 1, 2, 2], 4);
    of::<bf16>(&config);
    of::<f32>(&config);
}

/// Weights, cache and decoder, and what ops need for themselves.
#[test]
fn the_plan_is_what_sampling_holds() {
    fn of<S: Storage>(config: &Config) {
        let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
        let tokenizer = Tokenizer::new(&config.tokenizer).unwrap();
        let emulated = emulated::<S>();
        let zeros = vec![0.0; generator.layout().len()];
        let weights = generator.frozen(&emulated, &zeros).unwrap();
        rehearse_sampling(&emulated, config, &generator, &tokenizer, &weights).unwrap();
        let (held, scratch) = (emulated.device().peak_bytes(), emulated.scratch_bytes());
        let planned = MemoryPlan::of_sampling::<S>(config, scratch as u64).unwrap();
        let off = (planned as f64 - held as f64) / held as f64;
        assert!(off.abs() < PLAN_ERROR, "{}: {planned} for {held}", S::NAME);
        // A block less has the same.
        let shape = GeneratorShape { depth: 1, ..generator.shape().clone() };
        let dry = CudaBackend::<S, Dry>::new(Dry::default()).unwrap();
        let generator = Generator::new(&shape).unwrap();
        let weights = dry.params(generator.layout().len()).unwrap();
        rehearse_sampling(&dry, config, &generator, &tokenizer, &weights).unwrap();
        assert_eq!(dry.scratch_bytes(), scratch);
    }
    for (guidance, batch) in [(0.0, 3), (1.5, 2)] {
        let mut config = config(Mode::Teacher);
        (config.sample.guidance, config.sample.batch) = (guidance, batch);
        let (t, g) = (&mut config.tokenizer, &config.generator);
        (t.vocab, t.latent_channels) = (g.vocab, g.channels);
        (t.ch, t.ch_mult, t.groups) = (8, vec![1, 1, 2, 2], 4);
        of::<bf16>(&config);
        of::<f32>(&as_var(config));
    }
}

/// What `sar train` keeps beside its steps is planned as well.
#[test]
fn the_plan_is_what_tokenizer_and_painter_hold() {
    for (guidance, adds_up) in [(0.0, false), (1.0, false), (1.0, true)] {
        let mut config = config(Mode::Teacher);
        if adds_up {
            config = as_var(config);
        }
        config.train.batch = PLANNED_BATCH;
        config.sample.guidance = guidance;
        config.sample.batch = 2;
        let (t, g) = (&mut config.tokenizer, &mut config.generator);
        (t.vocab, t.latent_channels) = (g.vocab, g.channels);
        let backend = emulated::<bf16>();
        let own = backend.device().peak_bytes();
        let tokenizer = Tokenizer::new(&config.tokenizer).unwrap();
        let generator = Generator::new(&GeneratorShape::from(&config.generator)).unwrap();
        let params = backend.params(tokenizer.layout().len()).unwrap();
        let quantizer = tokenizer.quantizer(&backend, &params).unwrap();
        let decoder = Decoder { tokenizer: &tokenizer, params: &params, quantizer: &quantizer };
        let (side, schedule) = (config.data.image_side, config.generator.schedule);
        // Held-out images come first, so many at a time.
        drop(tokenizer.encoder_memory(&backend, HELD_OUT_BATCH, (side, side)).unwrap());
        let encoder = tokenizer.encoder_memory(&backend, PLANNED_BATCH, (side, side)).unwrap();
        let painter = Painter::new(&backend, &generator, decoder, &schedule, 2, guidance != 0.0);
        let held = (backend.device().peak_bytes() - own) as f64;
        let plan = MemoryPlan::of::<bf16>(&config, 0).unwrap();
        let planned = (plan.pictures + plan.tokenizer.unwrap()) as f64;
        assert!((planned - held).abs() < PLAN_ERROR * held, "{planned} for {held}");
        drop((encoder, painter));
        config.tokenizer.vocab += 1;
        assert_eq!(
            MemoryPlan::of::<bf16>(&config, 0).unwrap().tokenizer,
            None,
            "codes of another tokenizer"
        );
    }
}
