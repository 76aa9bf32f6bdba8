//! Measured times of a plan: training, the tokenizer's training before it, and sampling, on this machine.

use crate::backend::Compute;
use crate::config::Config;
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::Tokenizer;
use crate::run::{duration, rate};
use crate::train::{Pace, sampling_pace, tokenizer_pace, training_pace};
use serde::Serialize;

/// Throughput measured on noise, and the times that follow from it. Reading images, held-out losses, pictures and
/// checkpoints are not included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    /// Training the generator, including encoding the images.
    pub training: Pace,
    /// Seconds that `train.steps` take.
    pub training_s: f64,
    /// Training the tokenizer; `None` if it is not trained here.
    pub tokenizer_training: Option<Pace>,
    /// Seconds that `tokenizer_train.steps` take.
    pub tokenizer_training_s: Option<f64>,
    /// Sampling, including decoding; `None` without the generator's tokenizer.
    pub sampling: Option<Pace>,
}

impl Times {
    /// Measures training and sampling, and training the tokenizer if the plan includes it.
    ///
    /// # Errors
    /// A configuration that cannot run on this backend.
    pub(super) fn of<B: Compute>(
        backend: &B,
        config: &Config,
        trains_tokenizer: bool,
    ) -> anyhow::Result<Self> {
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let training = training_pace(backend, config, &generator, &tokenizer)?;
        let tokenizer_training =
            trains_tokenizer.then(|| tokenizer_pace(backend, config, &tokenizer)).transpose()?;
        let (train, of_tokenizer) = (&config.train, &config.tokenizer_train);
        let images = (train.batch * train.accumulate) as u64;
        let tokenizer_images = of_tokenizer.steps.saturating_mul(of_tokenizer.images() as u64);
        Ok(Self {
            training,
            training_s: training.seconds(train.steps.saturating_mul(images)),
            tokenizer_training,
            tokenizer_training_s: tokenizer_training.map(|pace| pace.seconds(tokenizer_images)),
            sampling: sampling_pace(backend, config, &generator, &tokenizer)?,
        })
    }

    /// Returns the rows that the plan's table has of it.
    pub(super) fn rows(&self, config: &Config) -> Vec<(&'static str, String)> {
        let train = &config.train;
        let at_most = if train.random_schedules { "at most" } else { "about" };
        let images = (train.batch * train.accumulate) as u64;
        let training = format!(
            "{at_most} {} for {} steps of {}, {}",
            duration(self.training_s),
            train.steps,
            duration(self.training.seconds(images)),
            throughput(self.training, images)
        );
        let mut rows = vec![("time", training)];
        if let (Some(pace), Some(seconds)) = (self.tokenizer_training, self.tokenizer_training_s) {
            let settings = &config.tokenizer_train;
            let pace = throughput(pace, settings.batch as u64);
            let text =
                format!("at most {} for {} steps, {pace}", duration(seconds), settings.steps);
            rows.push(("  before it", text));
        }
        if let Some(pace) = self.sampling {
            rows.push(("  sampling", throughput(pace, config.sample.batch as u64)));
        }
        rows
    }
}

/// Formats a throughput, and how many images were timed at once if it was not all of them.
fn throughput(pace: Pace, images: u64) -> String {
    let (rate, timed) = (rate(pace.images_per_s), pace.timed_images);
    if timed as u64 == images {
        rate
    } else {
        format!("{rate} (timed {timed} of {images} at once)")
    }
}
