//! Latents of training images, encoded as they come.

use super::trainer::Batches;
use super::{HeldOut, TrainError};
use crate::data::{Dataset, Loader};
use crate::model::tokenizer::{Codec, Tokenizer};
use sar_math::Real;
use sar_math::backend::Backend;

/// Batches of a loader through a tokenizer's encoder.
pub struct EncodedBatches<'a, B: Backend> {
    loader: Loader,
    tokenizer: &'a Tokenizer,
    params: &'a B::Params,
    codec: Codec<B>,
    side: usize,
}

impl<'a, B: Backend> EncodedBatches<'a, B> {
    /// Encodes the images of `loader`, which are `side`×`side`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        loader: Loader,
        tokenizer: &'a Tokenizer,
        params: &'a B::Params,
        batch: usize,
        side: usize,
    ) -> Result<Self, TrainError> {
        let codec = tokenizer.codec(backend, batch, side, side).map_err(TrainError::backend)?;
        Ok(Self { loader, tokenizer, params, codec, side })
    }
}

impl<B: Backend> Batches<B> for EncodedBatches<'_, B> {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        let batch = self.loader.next_batch()?;
        let images: Vec<B::Host> =
            batch.images_b3hw.iter().map(|&v| B::Host::of(f64::from(v))).collect();
        let size = (self.side, self.side);
        let host = self
            .tokenizer
            .encode_latents(backend, self.params, &mut self.codec, &images, size)
            .map_err(TrainError::backend)?;
        backend.upload(&host, latents, 0).map_err(TrainError::backend)?;
        Ok(batch.labels_b)
    }
}

/// Images of a data set at a time while it is encoded.
const ENCODE_BATCH: usize = 64;

/// Latents and labels of at most `limit` images of a data set, spread over it evenly.
///
/// # Errors
/// Images that cannot be read; the backend's.
pub fn encode_all<B: Backend>(
    backend: &B,
    tokenizer: &Tokenizer,
    params: &B::Params,
    dataset: &Dataset,
    limit: usize,
) -> Result<HeldOut<B::Host>, TrainError> {
    let side = dataset.side();
    let count = dataset.len().min(limit);
    // Evenly, so that every class of a set ordered by class has its share.
    let chosen: Vec<usize> = (0..count).map(|i| i * dataset.len() / count.max(1)).collect();
    let mut codec =
        tokenizer.codec(backend, ENCODE_BATCH, side, side).map_err(TrainError::backend)?;
    let mut held = HeldOut { latents: Vec::new(), labels: Vec::new() };
    for part in chosen.chunks(ENCODE_BATCH) {
        let batch = dataset.select(part)?;
        let images: Vec<B::Host> =
            batch.images_b3hw.iter().map(|&v| B::Host::of(f64::from(v))).collect();
        let latents = tokenizer
            .encode_latents(backend, params, &mut codec, &images, (side, side))
            .map_err(TrainError::backend)?;
        held.latents.extend(latents);
        held.labels.extend(batch.labels_b);
    }
    Ok(held)
}
