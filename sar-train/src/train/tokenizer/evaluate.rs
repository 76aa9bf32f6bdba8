//! How well a tokenizer reconstructs, at each scale, and how much of its codebook it uses.

use super::replica::check_size;
use super::tally::{Tally, TokenizerQuality};
use crate::model::tokenizer::{IMAGE_CHANNELS, Quantizer, QuantizerMemory, Tokenizer, Trace};
use crate::run::Interrupt;
use num_traits::Zero;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, MapDims, ShapeError};

/// Name of the operation in shape errors.
const OP: &str = "tokenizer evaluation";
/// Codes of scales that add up.
struct Added<'a, B: Buffers> {
    quantizer: &'a Quantizer<B>,
    memory: QuantizerMemory<B>,
    schedule: ScaleSchedule,
    /// `[b, T]`.
    ids: B::Ids,
}

/// Takes images through a tokenizer and back, with memory for one batch at a time.
pub struct Reconstructor<'a, B: Buffers> {
    backend: &'a B,
    tokenizer: &'a Tokenizer,
    batch: usize,
    /// Rows and columns of an image.
    size: (usize, usize),
    encoder: Trace<B>,
    decoder: Trace<B>,
    /// A second copy of the images, because the encoder's layers take turns in its memory, the input included.
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
    /// A shape error if the downsampling does not divide the sides; out of memory.
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

    /// Sets the quantizer of a tokenizer whose scales may add up in this schedule. If they do, a
    /// grid gives what the scales up to it add up to, at the size of the last.
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

    /// Returns the grid that is decoded for a grid of codes.
    fn decoded(&self, grid: (usize, usize)) -> (usize, usize) {
        self.added.as_ref().map_or(grid, |added| added.quantizer.grid(&added.schedule, 0))
    }

    /// Measures the quality of any number of images `[n, 3, h, w]`, reconstructed at each of the grids.
    ///
    /// # Errors
    /// A shape error if there are parts of images, or if a grid is larger than the full one.
    pub fn evaluate(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grids: &[(usize, usize)],
    ) -> Result<TokenizerQuality, B::Error> {
        let mut tally = self.tally(grids);
        // Nothing interrupts this evaluation.
        self.count(params, images_b3hw, &mut tally, &Interrupt::none())?;
        Ok(tally.quality())
    }

    pub(super) fn tally(&self, grids: &[(usize, usize)]) -> Tally {
        let factor = self.tokenizer.downsample_factor();
        let scales = grids.iter().map(|&grid| {
            let (rows, columns) = self.decoded(grid);
            (grid, (rows * factor, columns * factor))
        });
        Tally::new(scales, self.tokenizer.config().vocab)
    }

    /// Adds images to the tally; returns whether all were added, which is false if the user stops it.
    pub(super) fn count(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        tally: &mut Tally,
        interrupt: &Interrupt,
    ) -> Result<bool, B::Error> {
        self.reconstruct_each(params, images_b3hw, &tally.grids(), interrupt, |scale, back| {
            tally.add(scale, back.images, back.targets, back.ids);
        })
    }

    /// Number of images processed at a time.
    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    /// Rows and columns of the images' latents.
    pub(super) fn full(&self) -> (usize, usize) {
        let factor = self.tokenizer.downsample_factor();
        (self.size.0 / factor, self.size.1 / factor)
    }

    /// Returns reconstructions of images at a grid, not clamped: `[n, 3, grid·f]`, or at the size
    /// of the last grid where scales add up.
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
        self.reconstruct_each(params, images_b3hw, &[grid], &Interrupt::none(), |_, back| {
            all.extend_from_slice(back.images);
        })?;
        Ok(all)
    }

    /// Calls `f` with the number of each grid and the batch as reconstructed there, batch by batch,
    /// until the user stops it; returns whether all images went through.
    fn reconstruct_each(
        &mut self,
        params: &B::Params,
        images_b3hw: &[B::Host],
        grids: &[(usize, usize)],
        interrupt: &Interrupt,
        mut f: impl FnMut(usize, Back<'_, B::Host>),
    ) -> Result<bool, B::Error> {
        let (height, width) = self.size;
        let sample = IMAGE_CHANNELS * height * width;
        ShapeError::equal(OP, "images % (3*height*width)", 0, images_b3hw.len() % sample)?;
        let factor = self.tokenizer.downsample_factor();
        for grid in grids {
            ShapeError::at_least(OP, "rows and columns of the grid", 1, grid.0.min(grid.1))?;
            ShapeError::at_least(OP, "rows of the full grid", grid.0, height / factor)?;
            ShapeError::at_least(OP, "columns of the full grid", grid.1, width / factor)?;
        }
        for images in images_b3hw.chunks(self.batch * sample) {
            if interrupt.is_asked() {
                return Ok(false);
            }
            let full = self.encode(params, images)?;
            for (scale, &grid) in grids.iter().enumerate() {
                self.back(params, full, grid, |back| f(scale, back))?;
            }
        }
        Ok(true)
    }

    /// Encodes a batch and keeps it and its latents; returns the latents' dimensions.
    fn encode(&mut self, params: &B::Params, images: &[B::Host]) -> Result<MapDims, B::Error> {
        let Self { backend, tokenizer, encoder, .. } = self;
        let (height, width) = self.size;
        let batch = images.len() / (IMAGE_CHANNELS * height * width);
        backend.upload(images, &mut self.images, 0)?;
        backend.copy(&self.images, 0, encoder.input_mut(), 0, images.len())?;
        let full = tokenizer.encoder().forward(*backend, params, batch, height, width, encoder)?;
        match &mut self.added {
            Some(added) => added.encode(*backend, full, encoder.output())?,
            None => {
                let phis = tokenizer.config().residual;
                ShapeError::equal(OP, "residual (without their quantizer)", 0, phis)?;
            }
        }
        Ok(full)
    }

    /// Calls `f` with the batch that was encoded last, as reconstructed from a grid.
    fn back(
        &mut self,
        params: &B::Params,
        full: MapDims,
        grid: (usize, usize),
        f: impl FnOnce(Back<'_, B::Host>),
    ) -> Result<(), B::Error> {
        let ((rows, columns), (height, width)) = (self.decoded(grid), self.size);
        let Self { backend, tokenizer, encoder, decoder, target, .. } = self;
        let (backend, tokenizer, batch) = (*backend, *tokenizer, full.batch);
        let codes = decoder.input_mut();
        let ids = match &mut self.added {
            Some(added) => added.map(backend, batch, grid, codes)?,
            None => {
                let scaled = MapDims { height: grid.0, width: grid.1, ..full };
                let (vocab, codebook) = (tokenizer.config().vocab, tokenizer.codebook());
                let (latent, ids, distance) = (&mut self.latent, &mut self.ids, &mut self.distance);
                backend.area_resize(full, grid.0, grid.1, encoder.output(), latent)?;
                backend.vector_quantize(
                    scaled, vocab, latent, params, codebook, ids, codes, distance,
                )?;
                let mut host_ids = vec![0; batch * grid.0 * grid.1];
                backend.download_ids(ids, 0, &mut host_ids)?;
                host_ids
            }
        };
        let out = tokenizer.decoder().forward(backend, params, batch, rows, columns, decoder)?;
        let whole = MapDims { height, width, ..out };
        backend.area_resize(whole, out.height, out.width, &self.images, target)?;
        let mut images = vec![B::Host::zero(); out.len()];
        let mut targets = images.clone();
        backend.download(decoder.output(), 0, &mut images)?;
        backend.download(target, 0, &mut targets)?;
        f(Back { images: &images, targets: &targets, ids: &ids });
        Ok(())
    }
}

/// A batch as reconstructed from a grid of codes.
struct Back<'a, T> {
    /// As decoded, not clamped.
    images: &'a [T],
    /// The images, area-resized to that size.
    targets: &'a [T],
    ids: &'a [u32],
}

impl<B: Backend> Added<'_, B> {
    /// Computes the codes of latents at every scale.
    fn encode(
        &mut self,
        backend: &B,
        full: MapDims,
        latents: &B::Activation,
    ) -> Result<(), B::Error> {
        let Self { quantizer, memory, schedule, ids } = self;
        quantizer.codes(backend, memory, full, schedule, latents, ids)
    }

    /// Writes the sum of the scales up to that of `grid` to `map`; returns the codes of that scale.
    fn map(
        &mut self,
        backend: &B,
        batch: usize,
        grid: (usize, usize),
        map: &mut B::Activation,
    ) -> Result<Vec<u32>, B::Error> {
        let Self { quantizer, memory, schedule, ids } = self;
        let scale = schedule.scales().iter().position(|s| (s.height, s.width) == grid);
        let Some(scale) = scale else {
            let operand = "grids of the schedule (that one)";
            return Err(ShapeError { op: OP, operand, expected: 1, found: 0 }.into());
        };
        memory.begin();
        quantizer.map(backend, memory, batch, schedule, scale, ids, map)?;
        let (tokens, columns) = (schedule.tokens(), schedule.range(scale));
        let mut all = vec![0; batch * tokens];
        backend.download_ids(ids, 0, &mut all)?;
        Ok(all.chunks(tokens).flat_map(|row| &row[columns.clone()]).copied().collect())
    }
}
