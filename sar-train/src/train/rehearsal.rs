//! Rehearses a run: encodes images, takes a step, paints pictures. On a backend that computes nothing, this shows how much
//! memory a run takes.

use super::batches::ENCODE_BATCH;
use super::coder::Coder;
use super::tokenizer::TokenizerTrainer;
use super::{Batches, TrainError, Trainer};
use crate::config::{Config, TokenizerTrainConfig};
use crate::model::generator::Generator;
use crate::model::tokenizer::{EncoderMemory, IMAGE_CHANNELS, Tokenizer};
use crate::sample::{Decoder, Painter, grid_labels};
use sar_math::backend::Backend;
use sar_math::guidance::Guidance;

/// Batches of this many blank images of the first class, already encoded.
struct Blank(usize);

impl<B: Backend> Batches<B> for Blank {
    fn next(&mut self, _: &B, _: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        Ok(vec![0; self.0])
    }
}

/// Goes through all that a run of `config` does on a backend, once, with weights of zero: a trainer is made, held-out
/// images are encoded, and images of a batch; a step is taken; pictures are painted.
///
/// A tokenizer with other codes than the generator's encodes and paints nothing.
///
/// # Errors
/// A configuration out of range; the backend's.
pub fn rehearse<B: Backend>(
    backend: &B,
    config: &Config,
    generator: &Generator,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    let coder = Coder::new(backend, tokenizer, generator, None)?;
    let (decoder, codes) = (coder.decoder(), coder.is_the_generators);
    let (encodes, side) = (coder.encodes_for(config), config.data.image_side);
    let latent = tokenizer.latent_side(side);
    let size = (latent, latent);
    let mut trainer = Trainer::blank(backend, generator.clone(), config, &coder.quantizer, size)?;
    if encodes {
        encode(backend, decoder, ENCODE_BATCH, side)?;
    }
    // A run keeps it from step to step.
    let encoder = encodes.then(|| encode(backend, decoder, config.train.batch, side));
    let _encoder = encoder.transpose()?;
    trainer.step(&mut Blank(config.train.batch))?;
    if codes && config.train.sample_every > 0 {
        let mut labels = grid_labels(config.generator.classes);
        labels.truncate(config.sample.batch);
        paint(backend, generator, config, decoder, trainer.params(), &labels)?;
    }
    Ok(())
}

/// As [`rehearse`], of sampling a batch of images with `weights` that are not trained.
///
/// # Errors
/// A configuration out of range; the backend's.
pub fn rehearse_sampling<B: Backend>(
    backend: &B,
    config: &Config,
    generator: &Generator,
    tokenizer: &Tokenizer,
    weights: &B::Params,
) -> Result<(), TrainError> {
    let coder = Coder::new(backend, tokenizer, generator, None)?;
    if coder.is_the_generators {
        let labels = vec![0; config.sample.batch];
        paint(backend, generator, config, coder.decoder(), weights, &labels)?;
    }
    Ok(())
}

/// A tokenizer's training on images of `side` pixels, as [`rehearse`] of a generator's: its memory, and a step on so
/// many blank ones of them, none where there are to be none.
///
/// # Errors
/// Sides that the tokenizer does not divide; a tokenizer whose scales add up; the backend's.
pub fn rehearse_tokenizer<B: Backend>(
    backend: &B,
    tokenizer: &Tokenizer,
    config: &TokenizerTrainConfig,
    side: usize,
    images: usize,
) -> Result<(), TrainError> {
    let size = (side, side);
    let mut trainer = TokenizerTrainer::new(backend, tokenizer, config, size)?;
    if images == 0 {
        return Ok(());
    }
    let blank = vec![B::Host::default(); images * IMAGE_CHANNELS * side * side];
    trainer.step(&mut || Ok(blank.clone())).map(drop)
}

/// Encodes as many of `batch` images as the encoder takes at a time; returns its memory.
fn encode<B: Backend>(
    backend: &B,
    of: Decoder<'_, B>,
    batch: usize,
    side: usize,
) -> Result<EncoderMemory<B>, TrainError> {
    // As its memory is: what is no whole number of latents is refused where there are images.
    let side = side.next_multiple_of(of.tokenizer.downsample_factor());
    let mut memory = of.tokenizer.encoder_memory(backend, batch, (side, side))?;
    let images = batch.min(memory.at_a_time());
    let pixels = vec![B::Host::default(); images * IMAGE_CHANNELS * side * side];
    let latents = of.tokenizer.encoder().output(images, side, side).len();
    let mut latents = backend.activation(latents)?;
    let size = (side, side);
    of.tokenizer.encode(backend, of.params, &mut memory, &pixels, size, &mut latents)?;
    Ok(memory)
}

/// An image of each label, all at once.
fn paint<B: Backend>(
    backend: &B,
    generator: &Generator,
    config: &Config,
    decoder: Decoder<'_, B>,
    weights: &B::Params,
    labels: &[u32],
) -> Result<(), TrainError> {
    let settings = config.sample.settings(config.train.seed);
    let (schedule, guided) = (config.sampled_schedule(), settings.guidance != Guidance::Off);
    let mut painter = Painter::new(backend, generator, decoder, &schedule, labels.len(), guided)?;
    painter.paint(weights, labels, 0, &settings, 0)?;
    Ok(())
}
