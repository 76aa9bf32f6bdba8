//! Memory of a generator's training and sampling in bytes: what a run allocates is allocated on a device that counts
//! and has no memory.

use super::TrainError;
use super::Trainer;
use super::batches::ENCODE_BATCH;
use super::coder::Coder;
use super::settings::StepSettings;
use crate::config::Config;
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::Tokenizer;
use crate::sample::{Sampler, grid_labels};
use sar_backend_cuda::{CudaBackend, CudaError, Dry, Storage};
use sar_math::ScaleSchedule;
use sar_math::backend::Buffers as _;
use serde::Serialize;

/// Bytes of an element of gradients, moments and master weights.
const WIDE: u64 = 4;

/// Estimated bytes of a training run, by what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights, their narrow copy where activations are narrow, and their running average.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// What the passes of one batch keep for their backward, and its scratch.
    pub activations: u64,
    /// Logits of a part of a batch, which become their own gradient, and the teacher's where they are
    /// a target.
    pub logits: u64,
    /// What a GPU's backend keeps for itself: space for matrix products and scratch memory of ops.
    pub backend: u64,
    /// Cache and activations of the pictures that are sampled while training.
    pub pictures: u64,
    /// The tokenizer's weights, and memory to encode images and decode pictures; `None` if the
    /// configuration's tokenizer has other codes than the generator.
    pub tokenizer: Option<u64>,
    /// The copies that a checkpoint is written from, if they are in the same memory: see
    /// [`MemoryPlan::saved_from_here`].
    pub saving: u64,
}

impl MemoryPlan {
    /// Counts a run of `config` with activations stored as `S`, on a backend that keeps `own` bytes for itself.
    ///
    /// # Errors
    /// A configuration out of range.
    pub fn of<S: Storage>(config: &Config, own: u64) -> Result<Self, TrainError> {
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let count = Counter::<S>::new()?;
        let (coder, weights) = count.of(|b| Coder::new(b, &tokenizer, &generator, None))?;
        let encodes = coder.encodes_for(config);
        let encoder = |images| if encodes { count.encoder(&coder, config, images) } else { Ok(0) };
        let steps = count.steps(&coder, &generator, config)?;
        let painted = grid_labels(config.generator.classes).len().min(config.sample.batch);
        let (pictures, decoder) = match config.train.sample_every {
            0 => (0, 0),
            _ => count.painter(&coder, &generator, config, painted)?,
        };
        // Held-out images are encoded first, and more of them at a time than a small batch has.
        let images = encoder(config.train.batch)? + decoder;
        let held_out = encoder(ENCODE_BATCH)?.saturating_sub(images + pictures);
        let tokenizer = coder.is_the_generators.then_some(weights + images + held_out);
        Ok(Self { backend: own, pictures, tokenizer, ..steps })
    }

    /// Returns the bytes for sampling `sample.batch` images at a time with weights that are not trained;
    /// arguments are as for [`MemoryPlan::of`]. The tokenizer is left out if its codes are not the generator's.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub fn of_sampling<S: Storage>(config: &Config, own: u64) -> Result<u64, TrainError> {
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let count = Counter::<S>::new()?;
        let (coder, weights) = count.of(|b| Coder::new(b, &tokenizer, &generator, None))?;
        let (pictures, decoder) = count.painter(&coder, &generator, config, config.sample.batch)?;
        let tokenizer = if coder.is_the_generators { weights + decoder } else { 0 };
        Ok(frozen::<S>(&generator) + pictures + tokenizer + own)
    }

    /// Adds the copies that a checkpoint is written from: for the CPU, whose memory is the host's.
    pub fn saved_from_here(mut self, config: &Config) -> Self {
        // Gradients are as large as the weights, and so is the running average.
        let average = if config.train.ema > 0.0 { self.gradients } else { 0 };
        self.saving = self.gradients + self.moments + average;
        self
    }

    /// Returns the bytes that the steps take.
    pub fn steps(&self) -> u64 {
        let trained = self.weights + self.gradients + self.moments;
        trained + self.activations + self.logits + self.backend
    }

    /// Returns all bytes.
    pub fn total(&self) -> u64 {
        self.steps() + self.pictures + self.tokenizer.unwrap_or(0) + self.saving
    }
}

/// A backend on a device that counts.
struct Counter<S: Storage>(CudaBackend<S, Dry>);

/// A tokenizer on such a backend.
type Counted<'a, S> = Coder<'a, CudaBackend<S, Dry>>;

impl<S: Storage> Counter<S> {
    fn new() -> Result<Self, TrainError> {
        Ok(Self(CudaBackend::new(Dry::default())?))
    }

    /// Returns what is made, and the bytes that it holds.
    fn of<T>(
        &self,
        make: impl FnOnce(&CudaBackend<S, Dry>) -> Result<T, CudaError>,
    ) -> Result<(T, u64), TrainError> {
        let held = || self.0.device().held_bytes();
        let before = held();
        let made = make(&self.0)?;
        Ok((made, held() - before))
    }

    /// Counts a trainer alone.
    fn steps(
        &self,
        coder: &Counted<'_, S>,
        generator: &Generator,
        config: &Config,
    ) -> Result<MemoryPlan, TrainError> {
        let latent = coder.decoder().tokenizer.latent_side(config.data.image_side);
        let (held, quantizer) = (self.0.device().held_bytes(), &coder.quantizer);
        let trainer =
            Trainer::blank(&self.0, generator.clone(), config, quantizer, (latent, latent))?;
        let all = self.0.device().held_bytes() - held;
        drop(trainer);
        let parameters = generator.layout().len();
        let (_, trained) = self.of(|b| b.params(parameters))?;
        let wide = WIDE * parameters as u64;
        let average = if config.train.ema > 0.0 { wide } else { 0 };
        let (weights, gradients, moments) = (trained + average, wide, 2 * wide);
        let logits = size_of::<S>() as u64 * logits(config);
        let activations = all - weights - gradients - moments - logits;
        Ok(MemoryPlan { weights, gradients, moments, activations, logits, ..MemoryPlan::default() })
    }

    /// Bytes for encoding `images` images at a time.
    fn encoder(
        &self,
        coder: &Counted<'_, S>,
        config: &Config,
        images: usize,
    ) -> Result<u64, TrainError> {
        let (tokenizer, side) = (coder.decoder().tokenizer, config.data.image_side);
        let memory = |b: &_| tokenizer.encoder_memory(b, images, (side, side));
        self.of(memory).map(|(_, bytes)| bytes)
    }

    /// Bytes for sampling the codes of `images` images at a time, and for decoding them.
    fn painter(
        &self,
        coder: &Counted<'_, S>,
        generator: &Generator,
        config: &Config,
        images: usize,
    ) -> Result<(u64, u64), TrainError> {
        let schedule = config.sampled_schedule();
        let guided = config.sample.guidance != 0.0;
        let sampler =
            |b: &_| Sampler::new(b, generator, &coder.quantizer, images, &schedule, guided);
        let (_, pictures) = self.of(sampler)?;
        if !coder.is_the_generators {
            return Ok((pictures, 0));
        }
        let (last, tokenizer) = (schedule.last(), coder.decoder().tokenizer);
        let memory = |b: &_| tokenizer.decoder_memory(b, images, (last.height, last.width));
        self.of(memory).map(|(_, decoder)| (pictures, decoder))
    }
}

/// Bytes of a generator's weights that are not trained.
fn frozen<S: Storage>(generator: &Generator) -> u64 {
    let (all, storage) = (generator.layout().len() as u64, size_of::<S>() as u64);
    if storage >= WIDE {
        return WIDE * all;
    }
    let exact: u64 = generator.exact().iter().map(|tensor| tensor.len as u64).sum();
    storage * all + WIDE * exact
}

/// Number of logits that a step has room for: the model's own, its teacher's if they are a target, and those of one scale
/// if it samples.
fn logits(config: &Config) -> u64 {
    let (needs, batch) = (StepSettings::of(config).needs(), config.train.batch);
    let schedule = &config.generator.schedule;
    let heads = if needs.soft { 2 } else { 1 };
    let sampled = if needs.sampler { batch * largest(schedule) } else { 0 };
    let rows = heads * needs.head_rows(batch, schedule.tokens()) + sampled;
    (rows * config.generator.vocab) as u64
}

/// Tokens of the largest scale.
fn largest(schedule: &ScaleSchedule) -> usize {
    schedule.scales().iter().map(|scale| scale.tokens()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_checkpoint_is_written_from_copies() {
        let mut config = Config::default();
        config.generator.depth = 1;
        let saving = |config: &Config| {
            let plan = MemoryPlan::of::<f32>(config, 0).unwrap();
            let saved = plan.clone().saved_from_here(config);
            assert_eq!(saved.total(), plan.total() + saved.saving);
            saved.saving / (plan.gradients / WIDE)
        };
        config.train.ema = 0.0;
        assert_eq!(saving(&config), 12, "weights and two moments");
        config.train.ema = 0.999;
        assert_eq!(saving(&config), 16, "and the average");
    }

    /// Held-out images are encoded many at a time, whatever the batch of a step.
    #[test]
    fn encoding_held_out_images_may_take_the_most() {
        let mut config = Config::default();
        let g = &mut config.generator;
        (g.depth, g.width, g.heads) = (1, 8, 1);
        (g.vocab, g.channels) = (config.tokenizer.vocab, config.tokenizer.latent_channels);
        (config.train.batch, config.sample.batch) = (1, 1);
        let plan = MemoryPlan::of::<f32>(&config, 0).unwrap();
        assert!(plan.tokenizer.unwrap() > 10 * plan.steps(), "{plan:?}");
        config.train.latents = Some("latents.safetensors".into());
        let cached = MemoryPlan::of::<f32>(&config, 0).unwrap();
        assert!(cached.total() < plan.total() / 5, "{cached:?}");
    }
}
