//! From labels to pictures: codes by the generator, pixels by the tokenizer's decoder.

use super::{Decoding, Given, Model, Sampler};
use crate::data::grid::Images;
use crate::model::generator::Generator;
use crate::model::tokenizer::{DecoderMemory, Quantizer, Tokenizer};
use sar_math::backend::{Backend, Choice, DrawKeys, Filter, ShapeError};
use sar_math::guidance::Guidance;
use sar_math::{Real, ScaleSchedule};

/// How images are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSettings {
    /// Strength and ramp of guidance.
    pub guidance: Guidance,
    /// Filter of the distributions that codes are drawn from.
    pub filter: Filter,
    /// Seed of the draws: image k of a seed is always the same.
    pub seed: u64,
    /// Whether codes are chosen greedily on grids outside the published sampler's list.
    pub published_greedy: bool,
}

/// A tokenizer with its weights on a backend: takes codes to pictures, and latents to codes.
pub struct Decoder<'a, B: Backend> {
    /// The model.
    pub tokenizer: &'a Tokenizer,
    /// Its weights.
    pub params: &'a B::Params,
    /// What its codes stand for.
    pub quantizer: &'a Quantizer<B>,
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
    /// The first of them after every scale, each at its own size or, where scales add up, at that
    /// of the last scale; empty unless asked for.
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
    /// Out of memory; a batch of 0.
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
            sampler: Sampler::new(backend, generator, decoder.quantizer, batch, schedule, guided)?,
            pixels: decoder.tokenizer.decoder_memory(backend, batch, (last.height, last.width))?,
        })
    }

    /// Height and width of the pictures of a scale, in pixels.
    pub fn size(&self, scale: usize) -> (usize, usize) {
        let factor = self.decoder.tokenizer.downsample_factor();
        let (height, width) = self.decoder.quantizer.grid(&self.schedule, scale);
        (height * factor, width * factor)
    }

    /// Returns what was painted at every scale, as a strip for each image.
    pub fn strips<'p>(&self, painted: &'p Painted) -> Vec<Images<'p>> {
        let strip = |(scale, images_b3hw): (usize, &'p Vec<f32>)| {
            let (height, width) = self.size(scale);
            Images { images_b3hw, height, width }
        };
        painted.scales.iter().enumerate().map(strip).collect()
    }

    /// Paints one image per label: the k-th is image `first_image + k` of the seed. The first
    /// `strips` of them are also decoded at every scale.
    ///
    /// # Errors
    /// A device fault.
    pub fn paint(
        &mut self,
        params: &B::Params,
        labels: &[u32],
        first_image: u64,
        settings: &SampleSettings,
        strips: usize,
    ) -> Result<Painted, B::Error> {
        self.paint_on(params, labels, first_image, settings, None, strips)
    }

    /// As [`Painter::paint`], around `given` codes, which are of one batch.
    ///
    /// # Errors
    /// As [`Painter::paint`]; a shape error if codes are given and there are more labels than a batch.
    pub fn paint_on(
        &mut self,
        params: &B::Params,
        labels: &[u32],
        first_image: u64,
        settings: &SampleSettings,
        given: Option<&Given<'_, B>>,
        strips: usize,
    ) -> Result<Painted, B::Error> {
        if given.is_some() {
            ShapeError::at_least("paint_on", "labels (batch)", labels.len(), self.batch)?;
        }
        let scales = self.schedule.len();
        self.sampler.set_published_greedy(settings.published_greedy);
        let mut painted = Painted::default();
        if strips > 0 {
            painted.scales = vec![Vec::new(); scales];
        }
        for (n, labels) in labels.chunks(self.batch).enumerate() {
            let before = n * self.batch;
            let first_image = first_image + before as u64;
            let keys = DrawKeys { seed: settings.seed, first_image };
            let decoding = Decoding {
                guidance: settings.guidance.ramp(scales),
                choice: Choice::Draw(settings.filter, keys),
            };
            let (generator, quantizer) = (self.generator, self.decoder.quantizer);
            let model = Model { generator, params, quantizer };
            self.sampler.run(self.backend, model, labels, &decoding, given)?;
            let images = self.decode(labels.len(), scales - 1)?;
            let shown = strips.saturating_sub(before).min(labels.len());
            if shown > 0 {
                self.sampler.coded.begin();
                for (scale, all) in painted.scales.iter_mut().enumerate() {
                    match scale + 1 < scales {
                        true => all.extend(self.decode(shown, scale)?),
                        false => {
                            all.extend_from_slice(&images[..images.len() / labels.len() * shown])
                        }
                    }
                }
            }
            painted.images.extend(images);
        }
        Ok(painted)
    }

    /// Decodes the codes sampled last to the pictures of a scale.
    fn decode(&mut self, batch: usize, scale: usize) -> Result<Vec<f32>, B::Error> {
        let (height, width) = self.size(scale);
        let Decoder { tokenizer, params, quantizer } = self.decoder;
        let (backend, Sampler { coded, ids, .. }) = (self.backend, &mut self.sampler);
        let maps = self.pixels.codes_mut();
        quantizer.map(backend, coded, batch, &self.schedule, scale, ids, maps)?;
        let mut images = vec![B::Host::default(); batch * 3 * height * width];
        let grid = quantizer.grid(&self.schedule, scale);
        tokenizer.decode(self.backend, params, &mut self.pixels, batch, grid, &mut images)?;
        Ok(images.into_iter().map(|v| v.wide() as f32).collect())
    }
}
