//! Measures how fast a configuration runs on a backend, by timing a few of its own steps and samples on noise.

use super::coder::Coder;
use super::tokenizer::TokenizerTrainer;
use super::{Batches, TrainError, Trainer};
use crate::config::Config;
use crate::model::generator::Generator;
use crate::model::tokenizer::{EncoderMemory, IMAGE_CHANNELS, Tokenizer};
use crate::params::hosted;
use crate::sample::{Decoder, Painter};
use sar_math::backend::Backend;
use sar_math::guidance::Guidance;
use sar_math::philox::{Purpose, Stream};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Measured throughput.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pace {
    /// Number of images in a timed call: all of a step or a batch, or fewer if all would take too long.
    pub timed_images: usize,
    /// Images per second.
    pub images_per_s: f64,
}

impl Pace {
    /// Returns the seconds that this number of images takes.
    pub fn seconds(&self, images: u64) -> f64 {
        images as f64 / self.images_per_s
    }
}

/// How long timing may take.
struct Patience {
    /// About the longest time of a call that is repeated; batches are made smaller to stay within it.
    call: Duration,
    /// Least time spent on untimed calls first: they compile kernels, allocate, and let clock rates rise.
    warm: Duration,
    /// Least total time of the timed calls.
    timed: Duration,
}

/// A learning rate at which the weights stay what they are, in f32.
const UNCHANGED: f64 = 1e-30;

const PATIENCE: Patience = Patience {
    call: Duration::from_secs(3),
    warm: Duration::from_millis(500),
    timed: Duration::from_secs(1),
};

/// Measures how fast a generator is trained, with whole optimiser steps of `config` on noise. The tokenizer encodes the
/// noise as images, unless the run trains on kept latents or the tokenizer has other codes than the generator. If
/// schedules are drawn at random, every step takes the longest one.
///
/// Reading images, held-out losses, pictures and checkpoints are not included.
///
/// # Errors
/// A configuration out of range, or a failure of the backend.
pub fn training_pace<B: Backend>(
    backend: &B,
    config: &Config,
    generator: &Generator,
    tokenizer: &Tokenizer,
) -> Result<Pace, TrainError> {
    let seed = config.train.seed;
    let coder = Coder::new(backend, tokenizer, generator, Some(seed))?;
    let encodes = coder.encodes_for(config);
    let weights = generator.initial(seed);
    let latent = tokenizer.latent_side(config.data.image_side);
    pace(backend, config.train.batch * config.train.accumulate, |images| {
        let mut config = config.clone();
        config.train.batch = config.train.batch.min(images);
        config.train.accumulate = images / config.train.batch;
        config.train.random_schedules = false;
        // Noise teaches nothing, and at the run's own rate the weights might diverge.
        config.train.lr = Some(UNCHANGED);
        let mut noise = Noise::new(backend, &config, coder.decoder(), encodes)?;
        let (generator, quantizer) = (generator.clone(), &coder.quantizer);
        let size = (latent, latent);
        let mut trainer = Trainer::new(backend, generator, &config, &weights, quantizer, size)?;
        let images = config.train.batch * config.train.accumulate;
        Ok((images, move || trainer.step(&mut noise).map(drop)))
    })
}

/// Measures how fast the tokenizer of `config` is trained. Every step decodes the whole grid, which takes longest.
///
/// # Errors
/// An image side that the tokenizer's factor does not divide, a residual tokenizer, or a failure of the backend.
pub fn tokenizer_pace<B: Backend>(
    backend: &B,
    config: &Config,
    tokenizer: &Tokenizer,
) -> Result<Pace, TrainError> {
    let (settings, side) = (&config.tokenizer_train, config.data.image_side);
    pace(backend, settings.batch, |images| {
        let mut settings = settings.clone();
        (settings.batch, settings.accumulate, settings.coarse_probability) = (images, 1, 0.0);
        settings.lr = UNCHANGED;
        let mut trainer = TokenizerTrainer::new(backend, tokenizer, &settings, (side, side))?;
        let pixels = hosted::<B>(&noise(images * IMAGE_CHANNELS * side * side)).into_owned();
        Ok((images, move || trainer.step(&mut || Ok(pixels.clone())).map(drop)))
    })
}

/// Measures how fast images are sampled and decoded, `sample.batch` at a time. Returns `None` if the tokenizer has other
/// codes than the generator.
///
/// # Errors
/// A configuration out of range, or a failure of the backend.
pub fn sampling_pace<B: Backend>(
    backend: &B,
    config: &Config,
    generator: &Generator,
    tokenizer: &Tokenizer,
) -> Result<Option<Pace>, TrainError> {
    let seed = config.train.seed;
    let coder = Coder::new(backend, tokenizer, generator, Some(seed))?;
    if !coder.is_the_generators {
        return Ok(None);
    }
    let weights = generator.initial(seed);
    let weights = generator.frozen(backend, &hosted::<B>(&weights))?;
    let settings = config.sample.settings(seed);
    let schedule = config.sampled_schedule();
    let guided = settings.guidance != Guidance::Off;
    let pace = pace(backend, config.sample.batch, |images| {
        let decoder = coder.decoder();
        let mut painter = Painter::new(backend, generator, decoder, &schedule, images, guided)?;
        let (labels, weights) = (vec![0; images], &weights);
        Ok((images, move || {
            painter.paint(weights, &labels, 0, &settings, 0)?;
            Ok(())
        }))
    });
    pace.map(Some)
}

/// Times one image, and then as many of `images` at once as [`PATIENCE`] allows. `make` returns a call and the number of
/// images that it processes, which may be smaller than the number asked for.
fn pace<B: Backend, R: FnMut() -> Result<(), TrainError>>(
    backend: &B,
    images: usize,
    make: impl Fn(usize) -> Result<(usize, R), TrainError>,
) -> Result<Pace, TrainError> {
    PATIENCE.pace(images, |images| {
        let (images, mut run) = make(images)?;
        let call = move || {
            run()?;
            Ok(backend.synchronize()?)
        };
        Ok((images, call))
    })
}

impl Patience {
    fn pace<R: FnMut() -> Result<(), TrainError>>(
        &self,
        images: usize,
        make: impl Fn(usize) -> Result<(usize, R), TrainError>,
    ) -> Result<Pace, TrainError> {
        let time = |images| {
            let (timed_images, call) = make(images)?;
            let images_per_s = timed_images as f64 / self.seconds(call)?;
            Ok::<_, TrainError>(Pace { timed_images, images_per_s })
        };
        let one = time(1)?;
        let many = (self.call.as_secs_f64() * one.images_per_s) as usize;
        let many = many.min(images);
        if many > 1 { time(many) } else { Ok(one) }
    }

    /// Returns the seconds of a call: the mean of several, or those of the second if it takes long.
    fn seconds(&self, mut call: impl FnMut() -> Result<(), TrainError>) -> Result<f64, TrainError> {
        let mut clocked = || {
            let start = Instant::now();
            call()?;
            // Never zero, which the number of images is divided by.
            Ok::<_, TrainError>(start.elapsed().max(Duration::from_nanos(1)))
        };
        // The first call on a GPU compiles kernels and tries algorithms; only the second shows whether calls are slow.
        let mut spent = clocked()?;
        let second = clocked()?;
        if second > self.call {
            return Ok(second.as_secs_f64());
        }
        spent += second;
        while spent < self.warm {
            spent += clocked()?;
        }
        let mut times = Vec::new();
        while times.len() < 3 || times.iter().sum::<Duration>() < self.timed {
            times.push(clocked()?);
        }
        // The mean, since the cost of a step may depend on what it draws at random.
        Ok(times.iter().sum::<Duration>().as_secs_f64() / times.len() as f64)
    }
}

/// Batches of noise, as images or as latents, labelled with the first class.
struct Noise<'a, B: Backend> {
    coder: Decoder<'a, B>,
    /// Memory for encoding, if the noise stands for images.
    encoder: Option<EncoderMemory<B>>,
    side: usize,
    values: Vec<B::Host>,
    batch: usize,
}

impl<'a, B: Backend> Noise<'a, B> {
    fn new(
        backend: &B,
        config: &Config,
        coder: Decoder<'a, B>,
        encodes: bool,
    ) -> Result<Self, TrainError> {
        let (batch, side) = (config.train.batch, config.data.image_side);
        let memory = || coder.tokenizer.encoder_memory(backend, batch, (side, side));
        let encoder = encodes.then(memory).transpose()?;
        let latent = coder.tokenizer.latent_side(side);
        let each = match encodes {
            true => IMAGE_CHANNELS * side * side,
            false => config.generator.channels * latent * latent,
        };
        let values = hosted::<B>(&noise(batch * each)).into_owned();
        Ok(Self { coder, encoder, side, values, batch })
    }
}

impl<B: Backend> Batches<B> for Noise<'_, B> {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        let Self { coder, encoder, side, values, batch } = self;
        match encoder {
            Some(memory) => {
                let size = (*side, *side);
                coder.tokenizer.encode(backend, coder.params, memory, values, size, latents)?;
            }
            None => backend.upload(values, latents, 0)?,
        }
        Ok(vec![0; *batch])
    }
}

/// Returns random values in [−1, 1), the range of pixels.
fn noise(len: usize) -> Vec<f32> {
    let mut stream = Stream::new(0, Purpose::Evaluation, 0);
    (0..len).map(|_| (2.0 * stream.uniform() - 1.0) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::RefCell;
    use std::thread::sleep;

    /// Times `images` that take two milliseconds each; returns the pace and the number of images of every call.
    fn of(images: usize, call: u64) -> (Pace, Vec<usize>) {
        let millis = Duration::from_millis;
        let patience = Patience { call: millis(call), warm: millis(4), timed: millis(10) };
        let calls = RefCell::new(Vec::new());
        let calls = &calls;
        let pace = patience.pace(images, |images| {
            let call = move || {
                calls.borrow_mut().push(images);
                sleep(millis(2) * images as u32);
                Ok(())
            };
            Ok((images, call))
        });
        (pace.unwrap(), calls.take())
    }

    #[test]
    fn all_images_are_timed_where_they_take_little() {
        let (pace, calls) = of(5, 100_000);
        assert_eq!(pace.timed_images, 5);
        assert_eq!(pace.seconds(10), 10.0 / pace.images_per_s);
        assert!(pace.images_per_s <= 500.0, "{pace:?}");
        // One image first, warmed and timed three times at least, then all of them likewise.
        assert!(calls.iter().filter(|&&n| n == 1).count() >= 4, "{calls:?}");
        assert!(calls.iter().filter(|&&n| n == 5).count() >= 4, "{calls:?}");
        assert_eq!(of(1, 100_000).1.iter().max(), Some(&1));
    }

    #[test]
    fn fewer_are_timed_where_all_would_take_long() {
        let (pace, calls) = of(1_000_000, 20);
        assert!((1..=10).contains(&pace.timed_images), "{pace:?}");
        assert!(calls.iter().all(|&n| n <= 10), "{calls:?}");
        // An image that takes longer than that by itself is timed by its second call.
        assert_eq!(of(64, 0).1, [1, 1]);
    }
}
