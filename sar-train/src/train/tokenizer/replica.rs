//! A tokenizer's weights on one backend, and the gradients of its share of a step.

use crate::config::TokenizerTrainConfig;
use crate::model::tokenizer::{Gradients, IMAGE_CHANNELS, Tokenizer, Trace};
use crate::params::hosted;
use crate::train::TrainError;
use num_traits::Zero;
use sar_math::Real;
use sar_math::backend::{
    Buffers, MapDims, OptimizerOps, QuantizeWeights, ShapeError, TokenizerOps,
};
use sar_math::philox::{Purpose, Stream};
use std::ops::Range;

/// A source of training images: each call returns the next batch, `[b, 3, h, w]` in [−1, 1].
pub type Images<'i, H> = dyn FnMut() -> Result<Vec<H>, TrainError> + 'i;

/// What a micro-batch of a tokenizer's step shows, besides its gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct PartFound<H> {
    /// Mean squared error of the pixels, at the step's grid.
    pub reconstruction: f64,
    /// Mean squared distance of normalised latents to their codes.
    pub quantization: f64,
    /// Codes of all positions, `[b, h, w]`.
    pub ids: Vec<u32>,
    /// Latents of these positions, `[b, k, h, w]`; empty where they have not been read.
    pub latents: Vec<H>,
    /// Positions of an image, h·w.
    pub area: usize,
}

/// Writes the latent of a position, `[k]`, to `row`. Positions are counted through all micro-batches.
pub(super) fn latent<H: Copy>(found: &[PartFound<H>], mut position: usize, row: &mut [H]) {
    for part in found {
        if let Some(left) = position.checked_sub(part.ids.len()) {
            position = left;
            continue;
        }
        let (image, place) = (position / part.area, position % part.area);
        let k = row.len();
        for (c, value) in row.iter_mut().enumerate() {
            *value = part.latents[(image * k + c) * part.area + place];
        }
        return;
    }
}

/// What a micro-batch of a step shows, on the device: nothing waits for it before the step is done.
struct Part<B: Buffers> {
    /// Latents at the size of the step's grid, and their codes.
    latents: B::Activation,
    ids: B::Ids,
    reconstruction: B::Accum,
    quantization: B::Accum,
    /// Dimensions of the latents.
    dims: MapDims,
}

/// A copy of a tokenizer in training, with the memory for a step's gradients. It has no optimiser: a
/// [`TokenizerTrainer`] updates the weights of its own replica, and the other ranks of a run are sent theirs.
///
/// [`TokenizerTrainer`]: super::TokenizerTrainer
pub struct TokenizerReplica<'a, B: Buffers> {
    pub(crate) backend: &'a B,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) config: TokenizerTrainConfig,
    /// Rows and columns of an image.
    size: (usize, usize),
    pub(crate) params: B::Params,
    pub(crate) grads: B::Accum,
    encoder: Trace<B>,
    decoder: Trace<B>,
    gradients: Gradients<B>,
    /// The images at the size of the step's grid, which reconstructions are compared with.
    target: B::Activation,
    /// Of each micro-batch that a step may have here.
    parts: Vec<Part<B>>,
    /// Number of those that the last step had here.
    taken: usize,
}

/// Rows and columns of the latents of images, which must be whole ones.
pub(super) fn check_size(
    op: &'static str,
    tokenizer: &Tokenizer,
    batch: usize,
    (height, width): (usize, usize),
) -> Result<(usize, usize), ShapeError> {
    let f = tokenizer.downsample_factor();
    ShapeError::at_least(op, "height and width", f, height.min(width))?;
    ShapeError::equal(op, "height % downsample factor", 0, height % f)?;
    ShapeError::equal(op, "width % downsample factor", 0, width % f)?;
    ShapeError::at_least(op, "batch", 1, batch)?;
    Ok((height / f, width / f))
}

impl<'a, B: TokenizerOps + OptimizerOps> TokenizerReplica<'a, B> {
    /// Creates a replica for images of `height`×`width`, with weights of zero.
    ///
    /// # Errors
    /// Shape, where the downsampling does not divide the sides; out of memory.
    pub fn new(
        backend: &'a B,
        tokenizer: &'a Tokenizer,
        config: &TokenizerTrainConfig,
        (height, width): (usize, usize),
    ) -> Result<Self, B::Error> {
        let b = config.batch;
        let (rows, columns) = check_size("tokenizer training", tokenizer, b, (height, width))?;
        // Scales that add up have another way to be trained.
        ShapeError::equal("tokenizer training", "residual", 0, tokenizer.config().residual)?;
        let parameters = tokenizer.layout().len();
        let dims = tokenizer.encoder().output(b, height, width);
        let part = |_| -> Result<Part<B>, B::Error> {
            Ok(Part {
                latents: backend.activation(dims.len())?,
                ids: backend.ids(dims.batch * dims.height * dims.width)?,
                reconstruction: backend.accum(1)?,
                quantization: backend.accum(1)?,
                dims,
            })
        };
        Ok(Self {
            params: backend.params(parameters)?,
            grads: backend.accum(parameters)?,
            encoder: tokenizer.encoder().trace(backend, b, height, width, true)?,
            decoder: tokenizer.decoder().trace(backend, b, rows, columns, true)?,
            gradients: tokenizer.gradients(backend, b, height, width)?,
            target: backend.activation(b * IMAGE_CHANNELS * height * width)?,
            parts: (0..config.accumulate).map(part).collect::<Result<_, _>>()?,
            taken: 0,
            backend,
            tokenizer,
            config: config.clone(),
            size: (height, width),
        })
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// A shape error if they are of another tokenizer; a device fault.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<(), B::Error> {
        let len = self.tokenizer.layout().len();
        ShapeError::equal("tokenizer training", "weights", len, weights.len())?;
        self.backend.upload_params(&hosted::<B>(weights), &mut self.params, 0)
    }

    /// Returns the grid of a step: the full one, or a smaller one of about the same proportions.
    pub(super) fn grid(&self, step: u64) -> (usize, usize) {
        let f = self.tokenizer.downsample_factor();
        let full = (self.size.0 / f, self.size.1 / f);
        let longer = full.0.max(full.1);
        let mut stream = Stream::new(self.config.seed, Purpose::Schedule, step);
        if longer < 2 || !stream.chance(self.config.coarse_probability) {
            return full;
        }
        let side = 1 + stream.below(longer - 1);
        let scale = |n: usize| ((2 * n * side + longer) / (2 * longer)).max(1);
        (scale(full.0), scale(full.1))
    }

    /// Computes the gradients of the micro-batches `share` of step `step`, whose images are the next of `images`. They
    /// replace those of the step before. Does not wait for the device.
    ///
    /// # Errors
    /// The images'; a shape error, where they are not whole ones, more than the configured batch, or more micro-batches
    /// than configured; a device fault.
    pub fn gradients(
        &mut self,
        step: u64,
        share: Range<usize>,
        images: &mut Images<'_, B::Host>,
    ) -> Result<(), TrainError> {
        let parameters = self.tokenizer.layout().len();
        self.backend.zero_accum(&mut self.grads, 0, parameters)?;
        self.taken = 0;
        for _ in share {
            let images_b3hw = images()?;
            self.accumulate(step, &images_b3hw)?;
            self.taken += 1;
        }
        Ok(())
    }

    /// Adds the gradients of a micro-batch.
    fn accumulate(&mut self, step: u64, images_b3hw: &[B::Host]) -> Result<(), B::Error> {
        const OP: &str = "tokenizer step";
        let sample = IMAGE_CHANNELS * self.size.0 * self.size.1;
        let batch = images_b3hw.len() / sample;
        ShapeError::equal(OP, "images", batch * sample, images_b3hw.len())?;
        ShapeError::at_least(OP, "images", 1, batch)?;
        ShapeError::at_least(OP, "configured batch", batch, self.config.batch)?;
        ShapeError::at_least(OP, "configured micro-batches", self.taken + 1, self.parts.len())?;
        self.backend.upload(images_b3hw, self.encoder.input_mut(), 0)?;
        let (full, scaled) = self.encode(batch, self.grid(step))?;
        self.decode(scaled)?;
        self.back(full, scaled)
    }

    /// Encodes the images, and resizes latents and images to the step's grid. Returns the dimensions of the latents and
    /// of those at the grid.
    fn encode(
        &mut self,
        batch: usize,
        (rows, columns): (usize, usize),
    ) -> Result<(MapDims, MapDims), B::Error> {
        let Self { backend, tokenizer, params, encoder, target, parts, taken, .. } = self;
        let part = &mut parts[*taken];
        let (height, width) = self.size;
        let full = tokenizer.encoder().forward(*backend, params, batch, height, width, encoder)?;
        let image = tokenizer.decoder().output(batch, rows, columns);
        let pixels = MapDims { height, width, ..image };
        // To the same size this is a copy.
        backend.area_resize(full, rows, columns, encoder.output(), &mut part.latents)?;
        backend.area_resize(pixels, image.height, image.width, encoder.input(), target)?;
        part.dims = MapDims { height: rows, width: columns, ..full };
        Ok((full, part.dims))
    }

    /// Quantises, decodes, compares with the images, and takes the gradient back to the latents at the grid.
    fn decode(&mut self, scaled: MapDims) -> Result<(), B::Error> {
        let Self { backend, tokenizer, params, decoder, gradients: g, config, .. } = self;
        let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
        let Part { latents: z, ids, reconstruction: loss, quantization: distance, .. } =
            &mut self.parts[self.taken];
        let codes = decoder.input_mut();
        backend.vector_quantize(scaled, vocab, z, params, codebook, ids, codes, distance)?;
        let MapDims { batch, height, width, .. } = scaled;
        let of = tokenizer.decoder();
        let image = of.forward(*backend, params, batch, height, width, decoder)?;
        // A step's gradient is the mean over its micro-batches.
        let weight = 1.0 / config.accumulate as f64;
        let (x, target) = (decoder.output(), &self.target);
        backend.squared_error(image.len(), x, target, weight, loss, &mut g.current)?;
        of.backward(*backend, params, decoder, true, g, &mut self.grads)
    }

    /// Takes the gradient back through the quantiser and the encoder.
    fn back(&mut self, full: MapDims, scaled: MapDims) -> Result<(), B::Error> {
        let Self { backend, tokenizer, params, gradients: g, grads, config, .. } = self;
        let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
        let Part { latents: z, ids, .. } = &self.parts[self.taken];
        let share = 1.0 / config.accumulate as f64;
        let weights = QuantizeWeights {
            codebook: share * config.codebook,
            commitment: share * config.commitment,
        };
        let (dy, dx) = (&g.current, &mut g.other);
        backend.vector_quantize_backward(
            scaled, vocab, dy, z, ids, params, codebook, weights, dx, grads,
        )?;
        let (rows, columns) = (scaled.height, scaled.width);
        backend.area_resize_backward(full, rows, columns, &g.other, &mut g.current)?;
        tokenizer.encoder().backward(*backend, params, &self.encoder, false, g, grads)
    }

    /// Downloads what the micro-batches of the last step here show, in order, without their latents. Waits for the device.
    ///
    /// # Errors
    /// A device fault.
    pub fn found(&self) -> Result<Vec<PartFound<B::Host>>, B::Error> {
        let scalar = |from: &B::Accum| -> Result<f64, B::Error> {
            let mut value = [B::Host::zero()];
            self.backend.download_accum(from, 0, &mut value)?;
            Ok(value[0].wide())
        };
        let found = |part: &Part<B>| {
            let area = part.dims.height * part.dims.width;
            let mut ids = vec![0; part.dims.batch * area];
            self.backend.download_ids(&part.ids, 0, &mut ids)?;
            Ok(PartFound {
                reconstruction: scalar(&part.reconstruction)?,
                quantization: scalar(&part.quantization)?,
                ids,
                latents: Vec::new(),
                area,
            })
        };
        self.parts[..self.taken].iter().map(found).collect()
    }

    /// Downloads the latents of those micro-batches into the first of `found`, which are theirs.
    ///
    /// # Errors
    /// A device fault.
    pub fn read_latents(&self, found: &mut [PartFound<B::Host>]) -> Result<(), B::Error> {
        for (part, found) in self.parts[..self.taken].iter().zip(found) {
            found.latents.resize(part.dims.len(), B::Host::zero());
            self.backend.download(&part.latents, 0, &mut found.latents)?;
        }
        Ok(())
    }
}
