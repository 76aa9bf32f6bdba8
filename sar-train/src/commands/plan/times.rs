//! How long what a plan is of takes on this machine.

use crate::backend::Compute;
use crate::commands::room::affordable;
use crate::config::Config;
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::Tokenizer;
use crate::run::{duration, rate};
use crate::train::{Pace, sampling_pace, tokenizer_pace, training_pace};
use serde::Serialize;

/// Times by what was run on noise; without reading images, held-out losses, pictures and checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Images a second of training the generator, encoding them counted.
    pub training: Pace,
    /// Seconds of `train.steps`.
    pub training_s: f64,
    /// Of training the tokenizer; `None` of one that is not trained here.
    pub tokenizer_training: Option<Pace>,
    /// Seconds of `tokenizer_train.steps`.
    pub tokenizer_training_s: Option<f64>,
    /// Of sampling, decoding counted; `None` without the tokenizer.
    pub sampling: Option<Pace>,
}

impl Times {
    /// Runs a little of everything; of training the tokenizer where the plan has it.
    pub(super) fn of<B: Compute>(
        backend: &B,
        config: &Config,
        trains_tokenizer: bool,
    ) -> anyhow::Result<Self> {
        affordable(&config.generator)?;
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let training = training_pace(backend, config, &generator, &tokenizer)?;
        let tokenizer_training =
            trains_tokenizer.then(|| tokenizer_pace(backend, config, &tokenizer)).transpose()?;
        let (train, of_tokenizer) = (&config.train, &config.tokenizer_train);
        let images = (train.batch * train.accumulate) as u64;
        let tokenizer_images = of_tokenizer.steps.saturating_mul(of_tokenizer.batch as u64);
        Ok(Self {
            training,
            training_s: training.seconds(train.steps.saturating_mul(images)),
            tokenizer_training,
            tokenizer_training_s: tokenizer_training.map(|pace| pace.seconds(tokenizer_images)),
            sampling: sampling_pace(backend, config, &generator, &tokenizer)?,
        })
    }

    /// Rows of the plan's table.
    pub(super) fn rows(&self, config: &Config) -> Vec<(&'static str, String)> {
        let train = &config.train;
        let at_most = if train.random_schedules { "at most" } else { "about" };
        let images = (train.batch * train.accumulate) as u64;
        let training = format!(
            "{at_most} {} for {} steps of {}, {}",
            duration(self.training_s),
            train.steps,
            duration(self.training.seconds(images)),
            told(self.training, images)
        );
        let mut rows = vec![("time", training)];
        if let (Some(pace), Some(seconds)) = (self.tokenizer_training, self.tokenizer_training_s) {
            let settings = &config.tokenizer_train;
            let pace = told(pace, settings.batch as u64);
            let text =
                format!("at most {} for {} steps, {pace}", duration(seconds), settings.steps);
            rows.push(("  before it", text));
        }
        if let Some(pace) = self.sampling {
            rows.push(("  sampling", told(pace, config.sample.batch as u64)));
        }
        rows
    }
}

/// Images a second, and how many of `images` that is of where it is not all.
fn told(pace: Pace, images: u64) -> String {
    let (rate, timed) = (rate(pace.images_per_s), pace.timed_images);
    if timed as u64 == images {
        rate
    } else {
        format!("{rate} (timed {timed} of {images} at once)")
    }
}
