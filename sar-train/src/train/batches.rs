//! Latents of training images, either encoded batch by batch or read from a file.

use super::{Batches, HeldOut, TrainError};
use crate::data::{Dataset, Latents, Loader, spread};
use crate::model::tokenizer::{EncoderMemory, IMAGE_CHANNELS, Tokenizer};
use crate::params::hosted;
use crate::run::Interrupt;
use sar_math::backend::{Backend, ShapeError};

/// Batches of a loader, passed through a tokenizer's encoder.
pub struct EncodedBatches<'a, B: Backend> {
    loader: Loader,
    tokenizer: &'a Tokenizer,
    params: &'a B::Params,
    memory: EncoderMemory<B>,
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
        let memory = tokenizer.encoder_memory(backend, batch, (side, side))?;
        Ok(Self { loader, tokenizer, params, memory, side })
    }
}

impl<B: Backend> Batches<B> for EncodedBatches<'_, B> {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        let batch = self.loader.next_batch()?;
        let expected = batch.labels_b.len() * IMAGE_CHANNELS * self.side * self.side;
        let found = batch.values_b.len();
        ShapeError::equal("encoded batches", "images (b*3*h*w)", expected, found)
            .map_err(B::Error::from)?;
        let (images, size) = (hosted::<B>(&batch.values_b), (self.side, self.side));
        self.tokenizer.encode(backend, self.params, &mut self.memory, &images, size, latents)?;
        Ok(batch.labels_b)
    }
}

/// Batches of a loader of [`Latents`].
pub struct CachedBatches {
    loader: Loader,
    latent: usize,
}

impl CachedBatches {
    /// Takes a loader of latents with `latent` values each, the k·h·w of the trainer's latents.
    pub fn new(loader: Loader, latent: usize) -> Self {
        Self { loader, latent }
    }
}

impl<B: Backend> Batches<B> for CachedBatches {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        let batch = self.loader.next_batch()?;
        let (expected, found) = (batch.labels_b.len() * self.latent, batch.values_b.len());
        ShapeError::equal("cached batches", "latents (b*k*h*w)", expected, found)
            .map_err(B::Error::from)?;
        let values = hosted::<B>(&batch.values_b);
        backend.upload(&values, latents, 0)?;
        Ok(batch.labels_b)
    }
}

/// Returns latents and labels of at most `limit` held-out images of a file, spread evenly over them.
///
/// # Errors
/// The file cannot be read.
pub fn held_out_of<B: Backend>(
    latents: &Latents,
    limit: usize,
) -> Result<HeldOut<B::Host>, TrainError> {
    let mut held = HeldOut { latents: Vec::new(), labels: Vec::new() };
    let labels = latents.validation_labels();
    for index in spread(labels.len(), limit) {
        held.latents.extend_from_slice(&hosted::<B>(&latents.validation(index)?));
        held.labels.push(labels[index]);
    }
    Ok(held)
}

/// Number of images encoded at a time when a data set is encoded.
pub(super) const ENCODE_BATCH: usize = 64;

/// Returns latents and labels of at most `limit` images of a data set, spread evenly over it.
///
/// # Errors
/// Images cannot be read; an error of the backend; [`TrainError::NotBegun`] if the user stops it.
pub fn encode_all<B: Backend>(
    backend: &B,
    tokenizer: &Tokenizer,
    params: &B::Params,
    dataset: &Dataset,
    limit: usize,
    interrupt: &Interrupt,
) -> Result<HeldOut<B::Host>, TrainError> {
    let side = dataset.side();
    let chosen = spread(dataset.len(), limit);
    let count = chosen.len();
    let latent = tokenizer.encoder().output(1, side, side).len();
    let mut memory = tokenizer.encoder_memory(backend, ENCODE_BATCH, (side, side))?;
    let mut latents = backend.activation(ENCODE_BATCH * latent)?;
    let mut held =
        HeldOut { latents: vec![B::Host::default(); count * latent], labels: Vec::new() };
    let parts = held.latents.chunks_mut(ENCODE_BATCH * latent);
    for (part, to) in chosen.chunks(ENCODE_BATCH).zip(parts) {
        if interrupt.is_asked() {
            return Err(TrainError::NotBegun);
        }
        let batch = dataset.select(part)?;
        let images = hosted::<B>(&batch.values_b);
        let size = (side, side);
        tokenizer.encode(backend, params, &mut memory, &images, size, &mut latents)?;
        backend.download(&latents, 0, to)?;
        held.labels.extend(batch.labels_b);
    }
    Ok(held)
}
