//! What training takes, on every rank of a run.

use crate::backend::Compute;
use crate::config::{Config, TokenizerTrainConfig};
use crate::data::{Data, DataError, Examples, Latents, Loader, LoaderConfig, Turns};
use crate::train::{Batches, CachedBatches, EncodedBatches, TrainError};
use crate::trained::TrainedTokenizer;
use std::ops::Range;

/// What the training of a generator takes.
pub(crate) struct Inputs<'w, B: Compute> {
    pub backend: &'w B,
    pub config: &'w Config,
    pub data: &'w Data,
    pub tokenizer: &'w TrainedTokenizer<B>,
    /// What it trains on in place of images.
    pub latents: Option<&'w Latents>,
}

impl<'w, B: Compute> Inputs<'w, B> {
    /// Returns height and width of the images' latents.
    pub(crate) fn latent_size(&self) -> (usize, usize) {
        let side = self.tokenizer.tokenizer.latent_side(self.data.train.side());
        (side, side)
    }

    /// Returns latents of training images from step `step` on, of the micro-batches `share` of each step.
    pub(crate) fn batches(
        &self,
        step: u64,
        share: Range<usize>,
    ) -> Result<Box<dyn Batches<B> + 'w>, TrainError> {
        let (of, batch) = (self.tokenizer, self.config.train.batch);
        Ok(match self.latents {
            Some(latents) => {
                let loader = self.loader(latents.clone(), step, share)?;
                let [channels, height, width] = latents.sizes().latent;
                Box::new(CachedBatches::new(loader, channels * height * width))
            }
            None => {
                let loader = self.loader(self.data.cuts(), step, share)?;
                let (backend, side) = (self.backend, self.data.train.side());
                let (model, params) = (&of.tokenizer, &of.params);
                Box::new(EncodedBatches::new(backend, loader, model, params, batch, side)?)
            }
        })
    }

    fn loader(
        &self,
        examples: impl Examples + 'static,
        step: u64,
        share: Range<usize>,
    ) -> Result<Loader, TrainError> {
        let train = &self.config.train;
        let turns = Turns { of: train.accumulate, taken: share };
        Ok(loader(examples, (train.batch, train.seed), self.data.workers(), step, turns)?)
    }
}

/// Returns training images for a tokenizer from step `step` on, of the micro-batches `share` of each step.
pub(crate) fn tokenizer_loader(
    data: &Data,
    train: &TokenizerTrainConfig,
    step: u64,
    share: Range<usize>,
) -> Result<Loader, DataError> {
    let turns = Turns { of: train.accumulate, taken: share };
    loader(data.cuts(), (train.batch, train.seed), data.workers(), step, turns)
}

fn loader(
    examples: impl Examples + 'static,
    (batch, seed): (usize, u64),
    workers: usize,
    step: u64,
    turns: Turns,
) -> Result<Loader, DataError> {
    let first = step * turns.taken.len() as u64;
    Loader::start_at(examples, LoaderConfig { batch, seed, workers, turns }, first)
}
