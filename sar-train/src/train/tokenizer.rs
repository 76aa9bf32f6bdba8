//! Training a tokenizer: reconstruction, codebook and commitment losses at random scales.
//!
//! One step: encode; with some probability area-downsample the latent to a smaller grid (so that
//! coarse maps of codes decode too); quantise; decode at that grid's own size; compare with the image
//! area-resized to it. The gradient passes the quantiser straight through.

mod evaluate;
mod held_out;
mod record;
mod session;
mod state;
mod tally;

pub use evaluate::Reconstructor;
pub(crate) use held_out::MEASURED;
pub use held_out::TokenizerHeldOut;
pub(crate) use record::keep_quality;
pub use session::TokenizerSession;
pub use state::TokenizerProgress;
pub use tally::{ScaleQuality, TokenizerQuality};

use crate::config::TokenizerTrainConfig;
use crate::model::tokenizer::{Gradients, IMAGE_CHANNELS, Tokenizer, Trace};
use crate::params::hosted;
use num_traits::Zero;
use sar_math::Real;
use sar_math::anneal::Anneal;
use sar_math::backend::{
    AdamW, Buffers, MapDims, OptimizerOps, QuantizeWeights, ShapeError, Slot, TokenizerOps,
};
use sar_math::philox::{Purpose, Stream};

/// What one step measured, before its update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenizerLosses {
    /// Mean squared error of the pixels, at the step's scale.
    pub reconstruction: f64,
    /// Mean squared distance of normalised latents to their codes.
    pub quantization: f64,
    /// Global gradient norm, before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Rows and columns of the code map that was decoded.
    pub grid: (usize, usize),
    /// Codes put to new places because nothing had used them.
    pub revived: usize,
    /// Whether the gradient was not finite, and so nothing was changed.
    pub skipped: bool,
}

/// A tokenizer in training: parameters, moments, and memory allocated once.
pub struct TokenizerTrainer<'a, B: Buffers> {
    backend: &'a B,
    tokenizer: &'a Tokenizer,
    config: TokenizerTrainConfig,
    anneal: Anneal,
    /// Rows and columns of an image.
    size: (usize, usize),
    params: B::Params,
    first_moment: B::Accum,
    second_moment: B::Accum,
    decayed: Vec<Slot>,
    plain: Vec<Slot>,
    progress: TokenizerProgress,
    space: Space<B>,
}

/// Memory of a step.
struct Space<B: Buffers> {
    encoder: Trace<B>,
    decoder: Trace<B>,
    gradients: Gradients<B>,
    grads: B::Accum,
    /// Latent and image at the step's scale, where that is not the full one.
    latent: B::Activation,
    target: B::Activation,
    ids: B::Ids,
    host_ids: Vec<u32>,
    loss: B::Accum,
    distance: B::Accum,
    norm: B::Accum,
}

/// Rows and columns of the latents of images, which must be whole ones.
fn check_size(
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

impl<'a, B: TokenizerOps + OptimizerOps> TokenizerTrainer<'a, B> {
    /// A trainer of new parameters for images of `height`×`width`.
    ///
    /// # Errors
    /// Shape, where the downsampling does not divide the sides; out of memory.
    pub fn new(
        backend: &'a B,
        tokenizer: &'a Tokenizer,
        config: &TokenizerTrainConfig,
        (height, width): (usize, usize),
    ) -> Result<Self, B::Error> {
        let (rows, columns) =
            check_size("tokenizer training", tokenizer, config.batch, (height, width))?;
        // Scales that add up have another way to be trained.
        ShapeError::equal("tokenizer training", "residual", 0, tokenizer.config().residual)?;
        let b = config.batch;
        let (layout, shape) = (tokenizer.layout(), tokenizer.config());
        let image = b * IMAGE_CHANNELS * height * width;
        let space = Space {
            encoder: tokenizer.encoder().trace(backend, b, height, width, true)?,
            decoder: tokenizer.decoder().trace(backend, b, rows, columns, true)?,
            gradients: tokenizer.gradients(backend, b, height, width)?,
            grads: backend.accum(layout.len())?,
            latent: backend.activation(b * shape.latent_channels * rows * columns)?,
            target: backend.activation(image)?,
            ids: backend.ids(b * rows * columns)?,
            host_ids: vec![0; b * rows * columns],
            loss: backend.accum(1)?,
            distance: backend.accum(1)?,
            norm: backend.accum(1)?,
        };
        let mut trainer = Self {
            backend,
            tokenizer,
            config: config.clone(),
            anneal: config.anneal(),
            size: (height, width),
            params: backend.params(layout.len())?,
            first_moment: backend.accum(layout.len())?,
            second_moment: backend.accum(layout.len())?,
            decayed: layout.slots(true),
            plain: layout.slots(false),
            progress: TokenizerProgress::new(shape.vocab),
            space,
        };
        backend.upload_params(
            &hosted::<B>(&tokenizer.initial(config.seed)),
            &mut trainer.params,
            0,
        )?;
        Ok(trainer)
    }

    /// One optimiser step on images `[b, 3, h, w]` in [−1, 1]; b is at most the configured batch.
    ///
    /// Where the gradient is not finite nothing changes but the counts of steps.
    ///
    /// # Errors
    /// Shape, where the images are not whole ones or too many; a device fault.
    pub fn step(&mut self, images_b3hw: &[B::Host]) -> Result<TokenizerLosses, B::Error> {
        let (height, width) = self.size;
        let sample = IMAGE_CHANNELS * height * width;
        let batch = images_b3hw.len() / sample;
        ShapeError::equal("tokenizer step", "images", batch * sample, images_b3hw.len())?;
        ShapeError::at_least("tokenizer step", "images", 1, batch)?;
        ShapeError::at_least("tokenizer step", "configured batch", batch, self.config.batch)?;
        self.backend.upload(images_b3hw, self.space.encoder.input_mut(), 0)?;
        let grid = self.grid();
        let scaled = self.gradient(batch, grid)?;
        self.update(scaled, grid)
    }

    /// The grid of this step: the full one, or a smaller one of about the same proportions.
    fn grid(&self) -> (usize, usize) {
        let f = self.tokenizer.downsample_factor();
        let full = (self.size.0 / f, self.size.1 / f);
        let longer = full.0.max(full.1);
        let mut stream = Stream::new(self.config.seed, Purpose::Schedule, self.progress.step);
        if longer < 2 || !stream.chance(self.config.coarse_probability) {
            return full;
        }
        let side = 1 + stream.below(longer - 1);
        let scale = |n: usize| ((2 * n * side + longer) / (2 * longer)).max(1);
        (scale(full.0), scale(full.1))
    }

    /// Forward and backward; returns the dimensions of the quantised latent.
    fn gradient(&mut self, batch: usize, grid: (usize, usize)) -> Result<MapDims, B::Error> {
        let (full, scaled) = self.encode(batch, grid)?;
        let Self { backend, tokenizer, params, space, config, .. } = self;
        let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
        let coarse = scaled != full;
        let (latent, target) = match coarse {
            true => (&space.latent, &space.target),
            false => (space.encoder.output(), space.encoder.input()),
        };
        let (ids, distance, decoder) = (&mut space.ids, &mut space.distance, &mut space.decoder);
        let codes = decoder.input_mut();
        backend.vector_quantize(scaled, vocab, latent, params, codebook, ids, codes, distance)?;
        let image =
            tokenizer.decoder().forward(*backend, params, batch, grid.0, grid.1, decoder)?;
        let (g, grads) = (&mut space.gradients, &mut space.grads);
        let (len, loss) = (image.len(), &mut space.loss);
        backend.squared_error(len, decoder.output(), target, 1.0, loss, &mut g.current)?;
        tokenizer.decoder().backward(*backend, params, decoder, true, g, grads)?;
        let weights = QuantizeWeights { codebook: config.codebook, commitment: config.commitment };
        let (dy, dx) = (&g.current, &mut g.other);
        backend.vector_quantize_backward(
            scaled, vocab, dy, latent, ids, params, codebook, weights, dx, grads,
        )?;
        core::mem::swap(&mut g.current, &mut g.other);
        if coarse {
            backend.area_resize_backward(full, grid.0, grid.1, &g.current, &mut g.other)?;
            core::mem::swap(&mut g.current, &mut g.other);
        }
        tokenizer.encoder().backward(*backend, params, &space.encoder, false, g, grads)?;
        Ok(scaled)
    }

    /// The latent of the images and its dimensions, and those of its grid; where that is a coarser one, the latent
    /// and the images at its size too. Clears the gradients.
    fn encode(
        &mut self,
        batch: usize,
        grid: (usize, usize),
    ) -> Result<(MapDims, MapDims), B::Error> {
        let Self { backend, tokenizer, params, space, .. } = self;
        let (height, width) = self.size;
        backend.zero_accum(&mut space.grads, 0, tokenizer.layout().len())?;
        let (encoder, trace) = (tokenizer.encoder(), &mut space.encoder);
        let full = encoder.forward(*backend, params, batch, height, width, trace)?;
        let scaled = MapDims { height: grid.0, width: grid.1, ..full };
        if scaled != full {
            let image = tokenizer.decoder().output(batch, grid.0, grid.1);
            let pixels = MapDims { height, width, ..image };
            let (images, target) = (space.encoder.input(), &mut space.target);
            backend.area_resize(full, grid.0, grid.1, space.encoder.output(), &mut space.latent)?;
            backend.area_resize(pixels, image.height, image.width, images, target)?;
        }
        Ok((full, scaled))
    }

    /// The optimiser's step, and the codes that nothing used.
    fn update(
        &mut self,
        scaled: MapDims,
        grid: (usize, usize),
    ) -> Result<TokenizerLosses, B::Error> {
        let (backend, space) = (self.backend, &mut self.space);
        backend.grad_norm(self.tokenizer.layout().len(), &space.grads, &mut space.norm)?;
        let hyper = AdamW {
            lr: self.anneal.learning_rate(self.progress.step),
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            weight_decay: self.config.weight_decay,
            step: self.progress.step - self.progress.skipped + 1,
            clip: self.config.clip,
        };
        backend.adamw(
            &hyper,
            &self.decayed,
            &self.plain,
            &space.grads,
            &space.norm,
            &mut self.first_moment,
            &mut self.second_moment,
            &mut self.params,
        )?;
        let scalar = |from: &B::Accum| {
            let mut value = [B::Host::zero()];
            backend.download_accum(from, 0, &mut value).map(|()| value[0].wide())
        };
        let grad_norm = scalar(&space.norm)?;
        let (reconstruction, quantization) = (scalar(&space.loss)?, scalar(&space.distance)?);
        let skipped = !grad_norm.is_finite();
        let revived = if skipped { 0 } else { self.revive(scaled)? };
        self.progress.step += 1;
        self.progress.skipped += u64::from(skipped);
        self.progress.skipped_in_a_row =
            if skipped { self.progress.skipped_in_a_row.saturating_add(1) } else { 0 };
        let lr = hyper.lr;
        Ok(TokenizerLosses { reconstruction, quantization, grad_norm, lr, grid, revived, skipped })
    }

    /// Counts the codes of this step; those unused for too long are put on latents of this batch,
    /// chosen by the seed and the step. Returns how many.
    fn revive(&mut self, scaled: MapDims) -> Result<usize, B::Error> {
        let positions = scaled.batch * scaled.height * scaled.width;
        let ids = &mut self.space.host_ids[..positions];
        self.backend.download_ids(&self.space.ids, 0, ids)?;
        self.progress.count(ids);
        let after = self.config.revive_after;
        let unused = &self.progress.unused;
        if after == 0 || !unused.iter().any(|&n| n >= after) {
            return Ok(0);
        }
        let full = (self.size.0, self.size.1);
        let f = self.tokenizer.downsample_factor();
        let coarse = (scaled.height, scaled.width) != (full.0 / f, full.1 / f);
        let from = if coarse { &self.space.latent } else { self.space.encoder.output() };
        let mut latent = vec![B::Host::zero(); scaled.len()];
        self.backend.download(from, 0, &mut latent)?;
        let mut stream = Stream::new(self.config.seed, Purpose::Codebook, self.progress.step);
        let (k, area) = (scaled.channels, scaled.height * scaled.width);
        let (mut row, zeros) = (vec![B::Host::zero(); k], vec![B::Host::zero(); k]);
        let mut revived = 0;
        for code in 0..self.progress.unused.len() {
            if self.progress.unused[code] < after {
                continue;
            }
            let position = stream.below(positions);
            for (c, v) in row.iter_mut().enumerate() {
                *v = latent[(position / area * k + c) * area + position % area];
            }
            crate::model::tokenizer::normalise(&mut row);
            let at = self.tokenizer.codebook().offset + code * k;
            self.backend.upload_params(&row, &mut self.params, at)?;
            self.backend.upload_accum(&zeros, &mut self.first_moment, at)?;
            self.backend.upload_accum(&zeros, &mut self.second_moment, at)?;
            self.progress.unused[code] = 0;
            revived += 1;
        }
        Ok(revived)
    }

    /// The parameters on the backend, for encoding and decoding.
    pub fn params(&self) -> &B::Params {
        &self.params
    }

    /// Steps taken, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.progress.step
    }

    /// Settings.
    pub fn config(&self) -> &TokenizerTrainConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;
