//! How well a tokenizer reconstructs, at each scale, and how much of its codebook it uses.

use super::{Space, TokenizerTrainer};
use crate::model::tokenizer::IMAGE_CHANNELS;
use num_traits::Zero;
use sar_math::Real;
use sar_math::backend::{MapDims, OptimizerOps, ShapeError, TokenizerOps};

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

/// Peak to peak of a pixel is 2, so its square is 4.
const PEAK_SQUARED: f64 = 4.0;

impl<B: TokenizerOps + OptimizerOps> TokenizerTrainer<'_, B> {
    /// Reconstructs images `[n, 3, h, w]` at each of the grids; any number, in the trainer's memory.
    ///
    /// # Errors
    /// Shape, where the images are not whole ones or a grid is larger than the full one.
    pub fn evaluate(
        &mut self,
        images_b3hw: &[B::Host],
        grids: &[(usize, usize)],
    ) -> Result<TokenizerQuality, B::Error> {
        let mut counts = vec![0u64; self.tokenizer.config().vocab];
        let mut scales = Vec::new();
        for &grid in grids {
            let (mut error, mut count) = (0.0, 0usize);
            self.reconstruct_each(images_b3hw, grid, |images, targets, ids| {
                for (&x, &t) in images.iter().zip(targets) {
                    let difference = x.wide().clamp(-1.0, 1.0) - t.wide();
                    error += difference * difference;
                }
                count += images.len();
                for &id in ids {
                    counts[id as usize] += 1;
                }
            })?;
            let mse = error / count.max(1) as f64;
            scales.push(ScaleQuality { grid, psnr: 10.0 * (PEAK_SQUARED / mse).log10(), mse });
        }
        let total: u64 = counts.iter().sum();
        let entropy: f64 = counts
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| n as f64 / total as f64)
            .map(|p| -p * p.ln())
            .sum();
        let used = counts.iter().filter(|&&n| n > 0).count();
        let codebook_used = used as f64 / counts.len() as f64;
        Ok(TokenizerQuality { scales, codebook_used, perplexity: entropy.exp() })
    }

    /// Reconstructions of images at a grid, `[n, 3, grid·f]`, not clamped.
    ///
    /// # Errors
    /// As [`TokenizerTrainer::evaluate`].
    pub fn reconstruct(
        &mut self,
        images_b3hw: &[B::Host],
        grid: (usize, usize),
    ) -> Result<Vec<B::Host>, B::Error> {
        let mut all = Vec::new();
        self.reconstruct_each(images_b3hw, grid, |images, _, _| all.extend_from_slice(images))?;
        Ok(all)
    }

    /// Calls `f` with the reconstructions, targets and ids of each batch.
    fn reconstruct_each(
        &mut self,
        images_b3hw: &[B::Host],
        grid: (usize, usize),
        mut f: impl FnMut(&[B::Host], &[B::Host], &[u32]),
    ) -> Result<(), B::Error> {
        const OP: &str = "tokenizer evaluation";
        let (height, width) = self.size;
        let sample = IMAGE_CHANNELS * height * width;
        ShapeError::equal(OP, "images % (3*height*width)", 0, images_b3hw.len() % sample)?;
        ShapeError::at_least(OP, "rows and columns of the grid", 1, grid.0.min(grid.1))?;
        let factor = self.tokenizer.downsample_factor();
        ShapeError::at_least(OP, "rows of the full grid", grid.0, height / factor)?;
        ShapeError::at_least(OP, "columns of the full grid", grid.1, width / factor)?;
        let Self { backend, tokenizer, params, space, .. } = self;
        let Space { encoder, decoder, latent, target, ids, distance, .. } = space;
        let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
        for images in images_b3hw.chunks(self.config.batch * sample) {
            let batch = images.len() / sample;
            backend.upload(images, encoder.input_mut(), 0)?;
            let full =
                tokenizer.encoder().forward(*backend, params, batch, height, width, encoder)?;
            let scaled = MapDims { height: grid.0, width: grid.1, ..full };
            let codes = decoder.input_mut();
            backend.area_resize(full, grid.0, grid.1, encoder.output(), latent)?;
            backend
                .vector_quantize(scaled, vocab, latent, params, codebook, ids, codes, distance)?;
            let out =
                tokenizer.decoder().forward(*backend, params, batch, grid.0, grid.1, decoder)?;
            let pixels = MapDims { height, width, ..out };
            backend.area_resize(pixels, out.height, out.width, encoder.input(), target)?;
            let mut reconstructions = vec![B::Host::zero(); out.len()];
            let mut targets = reconstructions.clone();
            let mut host_ids = vec![0; batch * grid.0 * grid.1];
            backend.download(decoder.output(), 0, &mut reconstructions)?;
            backend.download(target, 0, &mut targets)?;
            backend.download_ids(ids, 0, &mut host_ids)?;
            f(&reconstructions, &targets, &host_ids);
        }
        Ok(())
    }
}
