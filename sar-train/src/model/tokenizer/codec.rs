//! Encoding and decoding with a trained tokenizer, a few images at a time.

use super::layout::{IMAGE_CHANNELS, Tokenizer};
use super::network::{Network, Trace};
use sar_math::Real;
use sar_math::backend::{Buffers, ShapeError, TokenizerOps};

/// Number of elements of the largest map of one pass, which limits the images processed at a time.
///
/// It allows four images of 256×256 pixels at the published width, for which all maps together take
/// 0.4 GiB in bf16; images of a few dozen pixels are processed by the hundred.
const LARGEST_MAP: usize = 1 << 25;

/// Memory for encoding images.
pub struct EncoderMemory<B: Buffers> {
    at_a_time: usize,
    trace: Trace<B>,
}

impl<B: Buffers> EncoderMemory<B> {
    /// Number of images that are encoded at a time.
    pub(crate) fn at_a_time(&self) -> usize {
        self.at_a_time
    }
}

/// Memory for decoding code maps, including the maps.
pub struct DecoderMemory<B: Buffers> {
    at_a_time: usize,
    codes: B::Activation,
    trace: Trace<B>,
}

impl<B: Buffers> DecoderMemory<B> {
    /// Returns the maps `[b, K, h, w]` of codes, or of their sums, that are to be decoded.
    pub fn codes_mut(&mut self) -> &mut B::Activation {
        &mut self.codes
    }
}

/// Number of `batch` maps of `height`×`width` that are run through a chain at a time.
fn at_a_time(network: &Network, batch: usize, (height, width): (usize, usize)) -> usize {
    (LARGEST_MAP / network.largest_map(height, width).max(1)).clamp(1, batch.max(1))
}

impl Tokenizer {
    /// Allocates memory for encoding up to `batch` images of up to `height`×`width` pixels.
    ///
    /// # Errors
    /// Out of memory; a batch of zero images.
    pub fn encoder_memory<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        (height, width): (usize, usize),
    ) -> Result<EncoderMemory<B>, B::Error> {
        ShapeError::at_least("encoder_memory", "batch", 1, batch)?;
        let size = self.whole(height, width);
        self.encoder_memory_of(backend, at_a_time(self.encoder(), batch, size), size)
    }

    fn encoder_memory_of<B: Buffers>(
        &self,
        backend: &B,
        at_a_time: usize,
        (height, width): (usize, usize),
    ) -> Result<EncoderMemory<B>, B::Error> {
        let trace = self.encoder().trace(backend, at_a_time, height, width, false)?;
        Ok(EncoderMemory { at_a_time, trace })
    }

    /// Allocates memory for decoding up to `batch` maps of up to `height`×`width` codes.
    ///
    /// # Errors
    /// Out of memory; a batch of zero maps.
    pub fn decoder_memory<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        size: (usize, usize),
    ) -> Result<DecoderMemory<B>, B::Error> {
        ShapeError::at_least("decoder_memory", "batch", 1, batch)?;
        self.decoder_memory_of(backend, batch, at_a_time(self.decoder(), batch, size), size)
    }

    fn decoder_memory_of<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        at_a_time: usize,
        (height, width): (usize, usize),
    ) -> Result<DecoderMemory<B>, B::Error> {
        let codes = backend.activation(batch * self.config().latent_channels * height * width)?;
        let trace = self.decoder().trace(backend, at_a_time, height, width, false)?;
        Ok(DecoderMemory { at_a_time, codes, trace })
    }

    /// Rounds a size up to the next one that the downsampling divides.
    fn whole(&self, height: usize, width: usize) -> (usize, usize) {
        let f = self.downsample_factor();
        (height.next_multiple_of(f), width.next_multiple_of(f))
    }

    /// Computes latents `[b, K, h/f, w/f]` of images `[b, 3, h, w]` in [−1, 1], before
    /// quantisation.
    ///
    /// # Errors
    /// Shape: sides that the downsampling does not divide, a length that is not whole images,
    /// images larger than the memory was made for, or more latents than fit.
    pub fn encode<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        memory: &mut EncoderMemory<B>,
        images_b3hw: &[B::Host],
        (height, width): (usize, usize),
        latents_bkhw: &mut B::Activation,
    ) -> Result<(), B::Error> {
        const OP: &str = "encode";
        let f = self.downsample_factor();
        ShapeError::at_least(OP, "height and width", f, height.min(width))?;
        ShapeError::equal(OP, "height % downsample factor", 0, height % f)?;
        ShapeError::equal(OP, "width % downsample factor", 0, width % f)?;
        let image = IMAGE_CHANNELS * height * width;
        ShapeError::equal(OP, "images % (3*height*width)", 0, images_b3hw.len() % image)?;
        let mut done = 0;
        for images in images_b3hw.chunks(memory.at_a_time * image) {
            let (trace, count) = (&mut memory.trace, images.len() / image);
            backend.upload(images, trace.input_mut(), 0)?;
            let dims = self.encoder().forward(backend, params, count, height, width, trace)?;
            backend.copy(trace.output(), 0, latents_bkhw, done, dims.len())?;
            done += dims.len();
        }
        Ok(())
    }

    /// Decodes the first `count` maps in [`DecoderMemory::codes_mut`], each `height`×`width`, to
    /// images `[count, 3, h·f, w·f]` in [−1, 1]; a coarse map gives a small image.
    ///
    /// # Errors
    /// Shape: more maps or larger ones than the memory was made for, or a wrong length of `images`.
    pub fn decode<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        memory: &mut DecoderMemory<B>,
        count: usize,
        (height, width): (usize, usize),
        images_b3hw: &mut [B::Host],
    ) -> Result<(), B::Error> {
        const OP: &str = "decode";
        ShapeError::at_least(OP, "height and width", 1, height.min(width))?;
        let (map, image) = (
            self.config().latent_channels * height * width,
            self.decoder().output(1, height, width).len(),
        );
        ShapeError::equal(OP, "images (count*3*h*f*w*f)", count * image, images_b3hw.len())?;
        let mut done = 0;
        for images in images_b3hw.chunks_mut(memory.at_a_time * image) {
            let (trace, maps) = (&mut memory.trace, images.len() / image);
            backend.copy(&memory.codes, done * map, trace.input_mut(), 0, maps * map)?;
            self.decoder().forward(backend, params, maps, height, width, trace)?;
            backend.download(trace.output(), 0, images)?;
            done += maps;
        }
        clamp(images_b3hw);
        Ok(())
    }
}

/// Clamps to [−1, 1] by comparisons, so that NaN is kept.
fn clamp<T: Real>(values: &mut [T]) {
    let one = T::one();
    for v in values {
        *v = if *v > one {
            one
        } else if *v < -one {
            -one
        } else {
            *v
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::tokenizer::TokenizerConfig;
    use sar_backend_cpu::CpuBackend;
    use sar_backend_cuda::{CudaBackend, Dry};

    const IMAGES: usize = 5;
    const SIZE: (usize, usize) = (8, 12);

    fn tokenizer() -> Tokenizer {
        let config = TokenizerConfig { ch: 8, groups: 4, ..TokenizerConfig::default() };
        Tokenizer::new(&config).unwrap()
    }

    fn params(b: &CpuBackend<f32>, tokenizer: &Tokenizer) -> <CpuBackend<f32> as Buffers>::Params {
        let weights = tokenizer.initial(3);
        let mut params = b.params(weights.len()).unwrap();
        b.upload_params(&weights, &mut params, 0).unwrap();
        params
    }

    /// Numbers in [−1, 1) without a pattern.
    fn noise(len: usize) -> Vec<f32> {
        let number = |i: usize| (i as u32).wrapping_mul(2_654_435_761) >> 8;
        (0..len).map(|i| number(i) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn images_are_the_same_however_many_go_through_at_a_time() {
        let (b, t) = (CpuBackend::<f32>::new(), tokenizer());
        let params = params(&b, &t);
        let (height, width) = SIZE;
        let images = noise(IMAGES * 3 * height * width);
        let latents = t.encoder().output(IMAGES, height, width).len();
        let grid = (height / t.downsample_factor(), width / t.downsample_factor());
        let run = |at_a_time: usize| {
            let mut encoder = t.encoder_memory_of(&b, at_a_time, SIZE).unwrap();
            let mut found = b.activation(latents).unwrap();
            t.encode(&b, &params, &mut encoder, &images, SIZE, &mut found).unwrap();
            let mut decoder = t.decoder_memory_of(&b, IMAGES, at_a_time, grid).unwrap();
            b.copy(&found, 0, decoder.codes_mut(), 0, latents).unwrap();
            let mut pixels = vec![0.0; images.len()];
            t.decode(&b, &params, &mut decoder, IMAGES, grid, &mut pixels).unwrap();
            let mut on_host = vec![0.0; latents];
            b.download(&found, 0, &mut on_host).unwrap();
            on_host.iter().chain(&pixels).map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let whole = run(IMAGES);
        assert!([1, 2, 4].into_iter().all(|at_a_time| run(at_a_time) == whole));
    }

    #[test]
    fn what_does_not_fit_is_a_shape_error() {
        let (b, t) = (CpuBackend::<f32>::new(), tokenizer());
        let params = params(&b, &t);
        let mut encoder = t.encoder_memory(&b, 2, (8, 8)).unwrap();
        let mut latents = b.activation(2 * 8 * 2 * 2).unwrap();
        let mut encode = |images: usize, size: (usize, usize)| {
            let images = noise(images * 3 * size.0 * size.1);
            t.encode(&b, &params, &mut encoder, &images, size, &mut latents)
        };
        encode(2, (8, 8)).unwrap();
        for (images, size) in [(3, (8, 8)), (1, (16, 16)), (1, (6, 8)), (1, (8, 0))] {
            assert!(encode(images, size).is_err(), "{images} images of {size:?}");
        }
        let mut decoder = t.decoder_memory(&b, 2, (2, 2)).unwrap();
        let mut decode = |count: usize, grid: (usize, usize), pixels: usize| {
            t.decode(&b, &params, &mut decoder, count, grid, &mut vec![0.0; pixels])
        };
        decode(2, (2, 2), 2 * 3 * 64).unwrap();
        decode(2, (1, 2), 2 * 3 * 32).unwrap();
        for (count, grid, pixels) in
            [(3, (2, 2), 3 * 3 * 64), (2, (2, 2), 3 * 64), (1, (4, 4), 3 * 256), (1, (0, 2), 0)]
        {
            assert!(decode(count, grid, pixels).is_err(), "{count} maps of {grid:?}");
        }
        assert!(t.encoder_memory(&b, 0, (8, 8)).is_err());
        assert!(t.decoder_memory(&b, 0, (2, 2)).is_err());
    }

    #[test]
    fn the_published_width_goes_through_four_large_images_at_a_time() {
        let t = Tokenizer::new(&TokenizerConfig::published()).unwrap();
        assert_eq!(at_a_time(t.encoder(), 64, (256, 256)), 4);
        assert_eq!(at_a_time(t.encoder(), 3, (256, 256)), 3);
        assert_eq!(at_a_time(t.encoder(), 64, (4096, 4096)), 1);
        // The probabilities of attention on 64×64 latents are the largest map.
        let small = Tokenizer::new(&TokenizerConfig::default()).unwrap();
        assert_eq!(at_a_time(small.encoder(), 64, (256, 256)), 2);
        assert_eq!(at_a_time(small.encoder(), 64, (32, 32)), 64);
        let counted = CudaBackend::<f32, _>::new(Dry::default()).unwrap();
        let encoder = t.encoder_memory(&counted, 64, (256, 256)).unwrap();
        let decoder = t.decoder_memory(&counted, 40, (16, 16)).unwrap();
        let elements = counted.device().held_bytes() / 4;
        assert!(elements < 14 * LARGEST_MAP as u64, "{elements}");
        drop((encoder, decoder));
    }
}
