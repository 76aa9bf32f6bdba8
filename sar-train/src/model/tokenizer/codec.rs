//! Encoding and decoding without gradients, any number of images through memory for one batch.

use super::layout::{IMAGE_CHANNELS, Tokenizer};
use super::network::Trace;
use num_traits::{One, Zero};
use sar_math::backend::{Buffers, ShapeError, TokenizerOps};

/// Memory to encode and decode with, for up to `batch` images of up to a size at a time.
pub struct Codec<B: Buffers> {
    batch: usize,
    encoder: Trace<B>,
    decoder: Trace<B>,
}

impl<B: Buffers> Codec<B> {
    /// Where the decoder reads codes `[b, K, h, w]`.
    pub fn codes_mut(&mut self) -> &mut B::Activation {
        self.decoder.input_mut()
    }

    /// Images of one pass.
    pub fn batch(&self) -> usize {
        self.batch
    }
}

impl Tokenizer {
    /// Memory to encode and decode `batch` images of up to `height`×`width` pixels at a time.
    ///
    /// # Errors
    /// Out of memory; a batch of none.
    pub fn codec<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        height: usize,
        width: usize,
    ) -> Result<Codec<B>, B::Error> {
        ShapeError::at_least("codec", "batch", 1, batch)?;
        let f = self.downsample_factor();
        let (rows, columns) = (height.div_ceil(f), width.div_ceil(f));
        Ok(Codec {
            batch,
            encoder: self.encoder().trace(backend, batch, rows * f, columns * f, false)?,
            decoder: self.decoder().trace(backend, batch, rows, columns, false)?,
        })
    }

    /// Latents `[b, K, h/f, w/f]` of images `[b, 3, h, w]` in [−1, 1], before quantisation.
    ///
    /// # Errors
    /// Shape: sides that the downsampling does not divide, a length that is not whole images, images
    /// larger than the codec was made for.
    pub fn encode_latents<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        codec: &mut Codec<B>,
        images_b3hw: &[B::Host],
        (height, width): (usize, usize),
    ) -> Result<Vec<B::Host>, B::Error> {
        const OP: &str = "encode_latents";
        let f = self.downsample_factor();
        ShapeError::at_least(OP, "height and width", f, height.min(width))?;
        ShapeError::equal(OP, "height % downsample factor", 0, height % f)?;
        ShapeError::equal(OP, "width % downsample factor", 0, width % f)?;
        let sample = IMAGE_CHANNELS * height * width;
        ShapeError::equal(OP, "images % (3*height*width)", 0, images_b3hw.len() % sample)?;
        let latent = self.encoder().output(1, height, width).len();
        let mut latents = vec![B::Host::zero(); images_b3hw.len() / sample * latent];
        let parts = latents.chunks_mut(codec.batch * latent);
        for (images, latents) in images_b3hw.chunks(codec.batch * sample).zip(parts) {
            let trace = &mut codec.encoder;
            backend.upload(images, trace.input_mut(), 0)?;
            let count = images.len() / sample;
            self.encoder().forward(backend, params, count, height, width, trace)?;
            backend.download(trace.output(), 0, latents)?;
        }
        Ok(latents)
    }

    /// Images `[b, 3, h·f, w·f]` in [−1, 1] of code maps `[b, K, h, w]` (rows of the normalised
    /// codebook); a coarse map gives a small image.
    ///
    /// # Errors
    /// Shape: a length that is not whole maps, maps larger than the codec was made for.
    pub fn decode_codes<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        codec: &mut Codec<B>,
        codes_bkhw: &[B::Host],
        (height, width): (usize, usize),
    ) -> Result<Vec<B::Host>, B::Error> {
        const OP: &str = "decode_codes";
        ShapeError::at_least(OP, "height and width", 1, height.min(width))?;
        let sample = self.config().latent_channels * height * width;
        ShapeError::equal(OP, "codes % (K*height*width)", 0, codes_bkhw.len() % sample)?;
        let image = self.decoder().output(1, height, width).len();
        let mut images = vec![B::Host::zero(); codes_bkhw.len() / sample * image];
        let parts = images.chunks_mut(codec.batch * image);
        for (codes, images) in codes_bkhw.chunks(codec.batch * sample).zip(parts) {
            backend.upload(codes, codec.codes_mut(), 0)?;
            let count = codes.len() / sample;
            self.decode_held(backend, params, codec, count, (height, width), images)?;
        }
        Ok(images)
    }

    /// Decodes the `count` maps in [`Codec::codes_mut`], where a device op may have put them, to
    /// images in [−1, 1].
    ///
    /// # Errors
    /// Shape: as [`Tokenizer::decode_codes`], or `images` not `[count, 3, h·f, w·f]`.
    pub fn decode_held<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        codec: &mut Codec<B>,
        count: usize,
        (height, width): (usize, usize),
        images: &mut [B::Host],
    ) -> Result<(), B::Error> {
        let trace = &mut codec.decoder;
        let dims = self.decoder().forward(backend, params, count, height, width, trace)?;
        ShapeError::equal("decode_held", "images (count*3*h*f*w*f)", dims.len(), images.len())?;
        backend.download(trace.output(), 0, images)?;
        let one = B::Host::one();
        for v in images {
            // Comparisons, so that a NaN stays one.
            *v = if *v > one {
                one
            } else if *v < -one {
                -one
            } else {
                *v
            };
        }
        Ok(())
    }
}
