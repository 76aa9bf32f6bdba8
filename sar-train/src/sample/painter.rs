//! From labels to pictures: codes by the generator, pixels by the tokenizer's decoder.

use super::{Decoding, Given, Sampler};
use crate::data::grid::Images;
use crate::model::generator::Generator;
use crate::model::tokenizer::{DecoderMemory, Tokenizer};
use sar_math::backend::{Backend, Choice, DrawKeys, Filter, LatentDims, RolloutDims, ShapeError};
use sar_math::guidance::Guidance;
use sar_math::{Real, ScaleSchedule};

/// How images are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// Strength and ramp of guidance.
    pub guidance: Guidance,
    /// What remains of each distribution.
    pub filter: Filter,
    /// Image k of a seed is always the same.
    pub seed: u64,
    /// Greedy on grids outside the published sampler's list.
    pub published_greedy: bool,
}

/// A tokenizer with its weights on a backend: from codes to pictures, and from latents to codes.
pub struct Decoder<'a, B: Backend> {
    /// The model.
    pub tokenizer: &'a Tokenizer,
    /// Its weights.
    pub params: &'a B::Params,
    /// Its codebook, L2-normalised `[v, k]`.
    pub codebook: &'a B::Accum,
}

impl<B: Backend> Decoder<'_, B> {
    /// Codes `[b, T]` of latents in a schedule; `tokens` has room for `[b, T, k]`.
    ///
    /// # Errors
    /// Shape: buffers with too little room; a device fault.
    pub fn codes(
        &self,
        backend: &B,
        latent: LatentDims,
        schedule: &ScaleSchedule,
        latents_bkhw: &B::Activation,
        tokens_btk: &mut B::Activation,
        ids_bt: &mut B::Ids,
    ) -> Result<(), B::Error> {
        backend.area_tokens(latent, schedule, latents_bkhw, tokens_btk)?;
        let (rows, vocab) = (latent.batch * schedule.tokens(), self.tokenizer.config().vocab);
        backend.nearest_code(rows, vocab, latent.channels, tokens_btk, self.codebook, ids_bt)
    }
}

impl<B: Backend> Clone for Decoder<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Decoder<'_, B> {}

/// Pictures of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Painted {
    /// `[n, 3, h·f, w·f]` in [−1, 1], of the last scale.
    pub images: Vec<f32>,
    /// The same of every scale, each at its own size; empty unless asked for.
    pub scales: Vec<Vec<f32>>,
}

/// Samples and decodes, with memory for one batch.
pub struct Painter<'a, B: Backend> {
    backend: &'a B,
    generator: &'a Generator,
    decoder: Decoder<'a, B>,
    schedule: ScaleSchedule,
    batch: usize,
    sampler: Sampler<B>,
    pixels: DecoderMemory<B>,
}

impl<'a, B: Backend> Painter<'a, B> {
    /// Memory for `batch` images at a time; `guided` runs need twice as much.
    ///
    /// # Errors
    /// Out of memory; a batch of none.
    pub fn new(
        backend: &'a B,
        generator: &'a Generator,
        decoder: Decoder<'a, B>,
        schedule: &ScaleSchedule,
        batch: usize,
        guided: bool,
    ) -> Result<Self, B::Error> {
        let last = schedule.last();
        Ok(Self {
            backend,
            generator,
            decoder,
            schedule: *schedule,
            batch,
            sampler: Sampler::new(backend, generator, batch, schedule, guided)?,
            pixels: decoder.tokenizer.decoder_memory(backend, batch, (last.height, last.width))?,
        })
    }

    /// Height and width of the pictures of a scale, in pixels.
    pub fn size(&self, scale: usize) -> (usize, usize) {
        let factor = self.decoder.tokenizer.downsample_factor();
        self.schedule.scales().get(scale).map_or((0, 0), |s| (s.height * factor, s.width * factor))
    }

    /// The first `count` images of a batch that was painted at every scale, a strip each.
    pub fn strips<'p>(&self, painted: &'p Painted, count: usize) -> Vec<Images<'p>> {
        let strip = |(scale, images): (usize, &'p Vec<f32>)| {
            let (height, width) = self.size(scale);
            let shown = count * 3 * height * width;
            Images { images_b3hw: images.get(..shown).unwrap_or(images), height, width }
        };
        painted.scales.iter().enumerate().map(strip).collect()
    }

    /// Paints one image per label: the k-th gives image `first_image + k` of the seed.
    ///
    /// # Errors
    /// A device fault.
    pub fn paint(
        &mut self,
        params: &B::Params,
        labels: &[u32],
        first_image: u64,
        settings: &SampleSettings,
        every_scale: bool,
    ) -> Result<Painted, B::Error> {
        self.paint_on(params, labels, first_image, settings, None, every_scale)
    }

    /// As [`Painter::paint`], around codes that are `given` of one batch.
    ///
    /// # Errors
    /// As [`Painter::paint`]; shape: given codes, and more labels than a batch.
    pub fn paint_on(
        &mut self,
        params: &B::Params,
        labels: &[u32],
        first_image: u64,
        settings: &SampleSettings,
        given: Option<&Given<'_, B>>,
        every_scale: bool,
    ) -> Result<Painted, B::Error> {
        if given.is_some() {
            ShapeError::at_least("paint_on", "labels (batch)", labels.len(), self.batch)?;
        }
        let scales = self.schedule.len();
        self.sampler.set_published_greedy(settings.published_greedy);
        let mut painted = Painted::default();
        if every_scale {
            painted.scales = vec![Vec::new(); scales];
        }
        for (n, labels) in labels.chunks(self.batch).enumerate() {
            let first_image = first_image + (n * self.batch) as u64;
            let keys = DrawKeys { seed: settings.seed, first_image };
            let decoding = Decoding {
                guidance: settings.guidance.ramp(scales),
                choice: Choice::Draw(settings.filter, keys),
            };
            let codebook = self.decoder.codebook;
            self.sampler.run(
                self.backend,
                self.generator,
                params,
                codebook,
                labels,
                &decoding,
                given,
                |_, _| Ok(()),
            )?;
            if every_scale {
                for scale in 0..scales {
                    let images = self.decode(labels.len(), scale)?;
                    if let Some(all) = painted.scales.get_mut(scale) {
                        all.extend(images);
                    }
                }
            } else {
                painted.images.extend(self.decode(labels.len(), scales - 1)?);
            }
        }
        if every_scale {
            painted.images = painted.scales.last().cloned().unwrap_or_default();
        }
        Ok(painted)
    }

    /// Pictures of a scale of the codes sampled last.
    fn decode(&mut self, batch: usize, scale: usize) -> Result<Vec<f32>, B::Error> {
        let shape = self.generator.shape();
        let dims = RolloutDims {
            batch,
            schedule: self.schedule,
            scales: scale..scale + 1,
            channels: shape.channels,
            vocab: shape.vocab,
        };
        let (height, width) = self.size(scale);
        let factor = self.decoder.tokenizer.downsample_factor();
        let Decoder { tokenizer, params, codebook } = self.decoder;
        let ids = &self.sampler.ids;
        self.backend.code_map(&dims, scale, ids, codebook, self.pixels.codes_mut())?;
        let mut images = vec![B::Host::default(); batch * 3 * height * width];
        let grid = (height / factor, width / factor);
        tokenizer.decode(self.backend, params, &mut self.pixels, batch, grid, &mut images)?;
        Ok(images.into_iter().map(|v| v.wide() as f32).collect())
    }
}
