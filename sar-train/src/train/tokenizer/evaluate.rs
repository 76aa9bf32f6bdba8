//! How well a tokenizer reconstructs, at each scale, and how much of its codebook it uses.

use super::check_size;
use crate::metrics::ssim;
use crate::model::tokenizer::{IMAGE_CHANNELS, Quantizer, QuantizerMemory, Tokenizer, Trace};
use num_traits::Zero;
use sar_math::backend::{Backend, Buffers, LatentDims, MapDims, ShapeError};
use sar_math::{Real, ScaleSchedule};

/// Reconstruction at one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleQuality {
    /// Rows and columns of the code map.
    pub grid: (usize, usize),
    /// Peak signal to noise ratio in dB against the image area-resized to the decoded size, of
    /// pixels in [−1, 1]: `10·log10(4/mse)`; infinite where they are equal.
    pub psnr: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Structural similarity with the same image, the mean over colours and images; none of images smaller
    /// than its window ([`crate::metrics::ssim`]).
    pub ssim: Option<f64>,
    /// Part of the codebook that was used at this scale.
    pub codebook_used: f64,
}

/// Quality over a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerQuality {
    /// In the order asked for.
    pub scales: Vec<ScaleQuality>,
    /// Part of the codebook that was used at all, over all scales.
    pub codebook_used: f64,
    /// Perplexity of the codes' frequencies: the number of codes that even use would need.
    pub perplexity: f64,
}

/// What errors of shape are of.
const OP: &str = "tokenizer evaluation";
/// Peak to peak of a pixel is 2, so its square is 4.
const PEAK_SQUARED: f64 = 4.0;

/// Codes of scales that add up.
struct Added<'a, B: Buffers> {
    quantizer: &'a Quantizer<B>,
    memory: QuantizerMemory<B>,
    schedule: ScaleSchedule,
    /// `[b, T]`.
    ids: B::Ids,
}

/// Takes images through a tokenizer and back, in memory of its own for so many at a time.
pub struct Reconstructor<'a, B: Buffers> {
    backend: &'a B,
    tokenizer: &'a Tokenizer,
    batch: usize,
    /// Rows and columns of an image.
    size: (usize, usize),
    encoder: Trace<B>,
    decoder: Trace<B>,
    /// The images once more: the encoder's layers take turns in its memory, input included.
    images: B::Activation,
    /// Latent and image at the scale that is decoded.
    latent: B::Activation,
    target: B::Activation,
    ids: B::Ids,
    distance: B::Accum,
    added: Option<Added<'a, B>>,
}

impl<'a, B: Backend> Reconstructor<'a, B> {
    /// Room for `batch` images of `height`×`width` at a time.
    ///
    /// # Errors
    /// Shape, where the downsampling does not divide the sides; out of memory.
    pub fn new(
        backend: &'a B,
        tokenizer: &'a Tokenizer,
        batch: usize,
        (height, width): (usize, usize),
    ) -> Result<Self, B::Error> {
        let (rows, columns) = check_size(OP, tokenizer, batch, (height, width))?;
        let channels = tokenizer.config().latent_channels;
        Ok(Self {
            backend,
            tokenizer,
            batch,
            size: (height, width),
            encoder: tokenizer.encoder().trace(backend, batch, height, width, false)?,
            decoder: tokenizer.decoder().trace(backend, batch, rows, columns, false)?,
            images: backend.activation(batch * IMAGE_CHANNELS * height * width)?,
            latent: backend.activation(batch * channels * rows * columns)?,
            target: backend.activation(batch * IMAGE_CHANNELS * height * width)?,
            ids: backend.ids(batch * rows * columns)?,
            distance: backend.accum(1)?,
            added: None,
        })
    }

    /// Of a tokenizer whose scales may add up, as they do in this schedule; then what a grid gives is what the scales up
    /// to it do, at the size of the last.
    ///
    /// # Errors
    /// As [`Reconstructor::new`].
    pub fn adding(
        mut self,
        quantizer: &'a Quantizer<B>,
        schedule: &ScaleSchedule,
    ) -> Result<Self, B::Error> {
        if quantizer.adds_up() {
            let (backend, batch) = (self.backend, self.batch);
            self.added = Some(Added {
                quantizer,
                memory: quantizer.memory(backend, batch, schedule)?,
                schedule: *schedule,
                ids: backend.ids(batch * schedule.tokens())?,
            });
        }
        Ok(self)
    }

    /// Grid that is decoded for a grid of codes.
    fn decoded(&self, grid: (usize, usize)) -> (usize, usize) {
        self.added.as_ref().map_or(grid, |added| added.quantizer.grid(&added.schedule, 0))
    }

    /// Quality of any number of images `[n, 3, h, w]`, reconstructed at each of the grids.
    ///
    /// # Errors
    /// Shape, where the images are not whole ones or a grid is larger than the full one.
    pub fn evaluate(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grids: &[(usize, usize)],
    ) -> Result<TokenizerQuality, B::Error> {
        let mut counts = vec![0u64; self.tokenizer.config().vocab];
        let mut scales = Vec::new();
        for &grid in grids {
            let (quality, of_scale) = self.evaluate_at(params, images_b3hw, grid)?;
            scales.push(quality);
            counts.iter_mut().zip(of_scale).for_each(|(all, n)| *all += n);
        }
        let total: u64 = counts.iter().sum();
        let entropy: f64 = counts
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| n as f64 / total as f64)
            .map(|p| -p * p.ln())
            .sum();
        let codebook_used = used(&counts);
        Ok(TokenizerQuality { scales, codebook_used, perplexity: entropy.exp() })
    }

    /// Quality at one grid, and how often each code was used there.
    fn evaluate_at(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grid: (usize, usize),
    ) -> Result<(ScaleQuality, Vec<u64>), B::Error> {
        let factor = self.tokenizer.downsample_factor();
        let (rows, columns) = self.decoded(grid);
        let (height, width) = (rows * factor, columns * factor);
        let wide = |plane: &[B::Host]| -> Vec<f64> {
            plane.iter().map(|v| v.wide().clamp(-1.0, 1.0)).collect()
        };
        let mut counts = vec![0u64; self.tokenizer.config().vocab];
        let (mut error, mut similarity, mut planes) = (0.0, Some(0.0), 0usize);
        self.reconstruct_each(params, images_b3hw, grid, |images, targets, ids| {
            for (x, t) in images.chunks(height * width).zip(targets.chunks(height * width)) {
                let (x, t) = (wide(x), wide(t));
                error += x.iter().zip(&t).map(|(x, t)| (x - t) * (x - t)).sum::<f64>();
                let similar = ssim(&x, &t, height, width);
                similarity = similarity.zip(similar).map(|(sum, one)| sum + one);
                planes += 1;
            }
            for &id in ids {
                counts[id as usize] += 1;
            }
        })?;
        let mse = error / (planes * height * width).max(1) as f64;
        let psnr = 10.0 * (PEAK_SQUARED / mse).log10();
        let ssim = similarity.filter(|_| planes > 0).map(|sum| sum / planes as f64);
        let codebook_used = used(&counts);
        Ok((ScaleQuality { grid, psnr, mse, ssim, codebook_used }, counts))
    }

    /// Reconstructions of images at a grid, `[n, 3, grid·f]` (of the last grid where scales add up), not clamped.
    ///
    /// # Errors
    /// As [`Reconstructor::evaluate`].
    pub fn reconstruct(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grid: (usize, usize),
    ) -> Result<Vec<B::Host>, B::Error> {
        let mut all = Vec::new();
        self.reconstruct_each(params, images_b3hw, grid, |images, _, _| {
            all.extend_from_slice(images);
        })?;
        Ok(all)
    }

    /// Calls `f` with the reconstructions, targets and ids of each batch.
    fn reconstruct_each(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grid: (usize, usize),
        mut f: impl FnMut(&[B::Host], &[B::Host], &[u32]),
    ) -> Result<(), B::Error> {
        let (height, width) = self.size;
        let sample = IMAGE_CHANNELS * height * width;
        ShapeError::equal(OP, "images % (3*height*width)", 0, images_b3hw.len() % sample)?;
        ShapeError::at_least(OP, "rows and columns of the grid", 1, grid.0.min(grid.1))?;
        let factor = self.tokenizer.downsample_factor();
        ShapeError::at_least(OP, "rows of the full grid", grid.0, height / factor)?;
        ShapeError::at_least(OP, "columns of the full grid", grid.1, width / factor)?;
        let decoded = self.decoded(grid);
        let Self { backend, tokenizer, encoder, decoder, target, .. } = self;
        let (backend, tokenizer) = (*backend, *tokenizer);
        let pixels = &mut self.images;
        for images in images_b3hw.chunks(self.batch * sample) {
            let batch = images.len() / sample;
            backend.upload(images, pixels, 0)?;
            backend.copy(pixels, 0, encoder.input_mut(), 0, images.len())?;
            let full =
                tokenizer.encoder().forward(backend, params, batch, height, width, encoder)?;
            let (latents, codes) = (encoder.output(), decoder.input_mut());
            let host_ids = match &mut self.added {
                Some(added) => added.quantize(backend, full, grid, latents, codes)?,
                None => {
                    let phis = tokenizer.config().residual;
                    ShapeError::equal(OP, "residual (without their quantizer)", 0, phis)?;
                    let scaled = MapDims { height: grid.0, width: grid.1, ..full };
                    let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
                    let (latent, ids) = (&mut self.latent, &mut self.ids);
                    let distance = &mut self.distance;
                    backend.area_resize(full, grid.0, grid.1, latents, latent)?;
                    backend.vector_quantize(
                        scaled, vocab, latent, params, codebook, ids, codes, distance,
                    )?;
                    let mut host_ids = vec![0; batch * grid.0 * grid.1];
                    backend.download_ids(ids, 0, &mut host_ids)?;
                    host_ids
                }
            };
            let (rows, columns) = decoded;
            let out =
                tokenizer.decoder().forward(backend, params, batch, rows, columns, decoder)?;
            let whole = MapDims { height, width, ..out };
            backend.area_resize(whole, out.height, out.width, pixels, target)?;
            let mut reconstructions = vec![B::Host::zero(); out.len()];
            let mut targets = reconstructions.clone();
            backend.download(decoder.output(), 0, &mut reconstructions)?;
            backend.download(target, 0, &mut targets)?;
            f(&reconstructions, &targets, &host_ids);
        }
        Ok(())
    }
}

/// The part of the counts that is not 0.
fn used(counts: &[u64]) -> f64 {
    counts.iter().filter(|&&n| n > 0).count() as f64 / counts.len() as f64
}

impl<B: Backend> Added<'_, B> {
    /// The sum of the scales up to that of `grid` of latents, into `map`; codes of that scale.
    fn quantize(
        &mut self,
        backend: &B,
        full: MapDims,
        grid: (usize, usize),
        latents: &B::Activation,
        map: &mut B::Activation,
    ) -> Result<Vec<u32>, B::Error> {
        let MapDims { batch, channels, height, width } = full;
        let latent = LatentDims { batch, channels, height, width };
        let Self { quantizer, memory, schedule, ids } = self;
        let scale = schedule.scales().iter().position(|s| (s.height, s.width) == grid);
        let Some(scale) = scale else {
            let operand = "grids of the schedule (that one)";
            return Err(ShapeError { op: OP, operand, expected: 1, found: 0 }.into());
        };
        quantizer.codes(backend, memory, latent, schedule, latents, ids)?;
        memory.begin();
        quantizer.map(backend, memory, batch, schedule, scale, ids, map)?;
        let (tokens, columns) = (schedule.tokens(), schedule.range(scale));
        let mut all = vec![0; batch * tokens];
        backend.download_ids(ids, 0, &mut all)?;
        Ok(all.chunks(tokens).flat_map(|row| &row[columns.clone()]).copied().collect())
    }
}
