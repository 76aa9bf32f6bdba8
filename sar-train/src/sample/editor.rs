//! Parts of an image drawn anew: the codes of the rest are kept while a generator samples.
//!
//! What lies under the mask is not looked at, except for scales that are kept whole: it is filled with
//! the mean colour before the image is encoded, because codes next to the mask see across its edge,
//! and a code is kept only where its whole cell is known. Coarse cells rarely are, so the first pass draws the coarse scales with
//! little to go by. Every further pass encodes what was drawn, with the known pixels put back,
//! takes coarse codes from it where at least half of the cell is known, and draws the rest again,
//! so that the drawn and the known parts come to agree.

use super::{Decoder, Given, Mask, Painted, Painter, SampleSettings};
use crate::model::tokenizer::{EncoderMemory, QuantizerMemory};
use crate::params::hosted;
use sar_math::backend::{Backend, MapDims, ShapeError};
use sar_math::{MAX_SCALES, ScaleSchedule};

/// Largest share of a coarse cell that may be masked for a further pass to keep its code.
pub(crate) const MASKED_SHARE: f64 = 0.5;

/// How an image is edited.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The image, `[3, side, side]` in [−1, 1].
    pub image_3hw: Vec<f32>,
    /// The part that is drawn anew; `None` draws everything finer than the kept scales anew.
    pub hole: Option<Hole>,
    /// Number of scales, from the coarsest on, that are the image's own, even under the mask.
    pub keep_scales: usize,
    /// How many times the hole is drawn, each time based on the picture drawn before.
    pub passes: usize,
    /// Whether pictures are left as decoded, without putting the image's own pixels back.
    pub decoded: bool,
}

/// A part of an image that is drawn anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Hole {
    /// Which part.
    pub mask: Mask,
    /// The image with the masked part filled, so that nothing of it remains; `[3, side, side]`.
    pub known_3hw: Vec<f32>,
}

/// Codes of an edited image on a backend, with memory for a batch of pictures.
pub struct Editor<'a, B: Backend> {
    edit: Edit,
    batch: usize,
    /// Which scales are taken whole from the image.
    scales: [bool; MAX_SCALES],
    /// Codes `[b, T]` of the image, the same for every picture of a batch, and which are kept.
    first: Codes<B>,
    latent_dims: MapDims,
    again: Option<Again<'a, B>>,
}

struct Codes<B: Backend> {
    ids: B::Ids,
    kept: B::Ids,
    /// Latents `[b, k, h, w]` that the codes are of.
    latents_bkhw: B::Activation,
}

/// What the passes after the first need.
struct Again<'a, B: Backend> {
    encoding: Encoding<'a, B>,
    /// Which codes `[b, T]` of the drawn pictures are kept.
    kept: B::Ids,
    /// The image's own codes `[b, T]`, for the scales that are kept whole.
    own: B::Ids,
}

impl<'a, B: Backend> Editor<'a, B> {
    /// Encodes the image, to paint `batch` pictures at a time in a schedule that ends in a square.
    ///
    /// # Errors
    /// Out of memory or a device fault; a shape error if the schedule does not end in a square, the image or
    /// mask does not have the size that the last grid decodes to, or more scales are kept than there are.
    pub fn new(
        backend: &'a B,
        decoder: Decoder<'a, B>,
        schedule: &ScaleSchedule,
        edit: Edit,
        batch: usize,
    ) -> Result<Self, B::Error> {
        let side = check(&edit, schedule, decoder.tokenizer.downsample_factor())?;
        let mut one = Encoding::new(backend, decoder, schedule, side, 1)?;
        let own = one.codes(&edit.image_3hw)?;
        let mut known = match &edit.hole {
            Some(hole) => one.codes(&hole.known_3hw)?,
            None => own.clone(),
        };
        let whole = schedule.span(0..edit.keep_scales);
        known[whole.clone()].copy_from_slice(&own[whole]);
        let put = |codes: &[u32]| {
            let mut ids = backend.ids(batch * codes.len())?;
            backend.upload_ids(&codes.repeat(batch), &mut ids, 0)?;
            Ok::<_, B::Error>(ids)
        };
        let kept = |share| match &edit.hole {
            Some(hole) => hole.mask.kept(schedule, share),
            None => vec![0; schedule.tokens()],
        };
        let again = match edit.hole.is_some() && edit.passes > 1 {
            true => Some(Again {
                encoding: Encoding::new(backend, decoder, schedule, side, batch)?,
                kept: put(&kept(MASKED_SHARE))?,
                own: put(&own)?,
            }),
            false => None,
        };
        let (latent_dims, latents_bkhw) = (one.dims(1), one.repeated(batch)?);
        let first = Codes { ids: put(&known)?, kept: put(&kept(0.0))?, latents_bkhw };
        let scales = std::array::from_fn(|scale| scale < edit.keep_scales);
        Ok(Self { edit, batch, scales, first, latent_dims, again })
    }

    /// Paints one picture per label, at most `batch`: the k-th is picture `first_image + k` of the
    /// seed. The first `strips` of them are also decoded at every scale.
    ///
    /// # Errors
    /// A device fault; a shape error if there are more labels than this editor or the painter has room for.
    pub fn paint(
        &mut self,
        painter: &mut Painter<'_, B>,
        params: &B::Params,
        labels: &[u32],
        first_image: u64,
        settings: &SampleSettings,
        strips: usize,
    ) -> Result<Painted, B::Error> {
        ShapeError::at_least("edit", "labels (batch)", labels.len(), self.batch)?;
        let passes = if self.again.is_some() { self.edit.passes } else { 1 };
        let mut painted = Painted::default();
        for pass in 0..passes {
            let (ids, kept, latents) = match &mut self.again {
                Some(again) if pass > 0 => {
                    again.look(&painted.images, &self.scales)?;
                    (&again.encoding.ids, &again.kept, &again.encoding.latents_bkhw)
                }
                _ => (&self.first.ids, &self.first.kept, &self.first.latents_bkhw),
            };
            let latents = Some((latents, self.latent_dims));
            let given = Given { ids, scales: self.scales, kept: Some(kept), latents };
            let settings = SampleSettings { seed: seed_of(settings.seed, pass), ..*settings };
            let last = pass + 1 == passes;
            let given = Some(&given);
            let strips = if last { strips } else { 0 };
            painted = painter.paint_on(params, labels, first_image, &settings, given, strips)?;
            if !last || !self.edit.decoded {
                self.put_back(&mut painted);
            }
        }
        Ok(painted)
    }

    /// Puts the image's own pixels back into painted pictures where they are not drawn anew.
    fn put_back(&self, painted: &mut Painted) {
        let Some(hole) = &self.edit.hole else { return };
        hole.mask.put_back(&hole.known_3hw, &mut painted.images);
        if let Some(finest) = painted.scales.last_mut() {
            let shown = finest.len();
            finest.copy_from_slice(&painted.images[..shown]);
        }
    }

    /// Returns the image `[3, side, side]` with the part that is drawn anew in grey.
    pub fn shown(&self) -> Vec<f32> {
        let Some(hole) = &self.edit.hole else { return self.edit.image_3hw.clone() };
        let mut grey = vec![0.0; hole.known_3hw.len()];
        hole.mask.put_back(&hole.known_3hw, &mut grey);
        grey
    }
}

/// Returns the side of the pictures, after checking that all parts of the edit have it.
fn check(edit: &Edit, schedule: &ScaleSchedule, factor: usize) -> Result<usize, ShapeError> {
    const OP: &str = "edit";
    let last = schedule.last();
    ShapeError::equal(OP, "last grid (width = height)", last.height, last.width)?;
    ShapeError::at_least(OP, "schedule (scales kept)", edit.keep_scales, schedule.len())?;
    let side = last.height * factor;
    let len = 3 * side * side;
    ShapeError::equal(OP, "image (3*side*side)", len, edit.image_3hw.len())?;
    if let Some(hole) = &edit.hole {
        ShapeError::equal(OP, "known (3*side*side)", len, hole.known_3hw.len())?;
        ShapeError::equal(OP, "mask (height)", side, hole.mask.size().0)?;
        ShapeError::equal(OP, "mask (width)", side, hole.mask.size().1)?;
    }
    Ok(side)
}

impl<B: Backend> Again<'_, B> {
    /// Encodes pictures; scales that are kept whole get the image's own codes.
    fn look(&mut self, images_b3hw: &[f32], scales: &[bool]) -> Result<(), B::Error> {
        let encoding = &mut self.encoding;
        let batch = encoding.encode(images_b3hw)?;
        let (backend, schedule) = (encoding.backend, &encoding.schedule);
        let scales = &scales[..schedule.len()];
        backend.merge_ids(batch, schedule, scales, &self.own, &mut encoding.ids)
    }
}

/// Encodes pictures to codes.
struct Encoding<'a, B: Backend> {
    backend: &'a B,
    decoder: Decoder<'a, B>,
    schedule: ScaleSchedule,
    side: usize,
    memory: EncoderMemory<B>,
    latents_bkhw: B::Activation,
    coding: QuantizerMemory<B>,
    /// Codes `[b, T]` of the pictures encoded last.
    ids: B::Ids,
}

impl<'a, B: Backend> Encoding<'a, B> {
    fn new(
        backend: &'a B,
        decoder: Decoder<'a, B>,
        schedule: &ScaleSchedule,
        side: usize,
        batch: usize,
    ) -> Result<Self, B::Error> {
        let (tokenizer, tokens) = (decoder.tokenizer, schedule.tokens());
        Ok(Self {
            backend,
            decoder,
            schedule: *schedule,
            side,
            memory: tokenizer.encoder_memory(backend, batch, (side, side))?,
            latents_bkhw: backend.activation(tokenizer.latents(batch, side).len())?,
            coding: decoder.quantizer.memory(backend, batch, schedule)?,
            ids: backend.ids(batch * tokens)?,
        })
    }

    /// Encodes pictures `[b, 3, side, side]` and returns their number.
    fn encode(&mut self, images_b3hw: &[f32]) -> Result<usize, B::Error> {
        let Decoder { tokenizer, params, quantizer } = self.decoder;
        let images = hosted::<B>(images_b3hw);
        let size = (self.side, self.side);
        let batch = images.len() / (3 * self.side * self.side);
        let dims = self.dims(batch);
        let latents = &mut self.latents_bkhw;
        tokenizer.encode(self.backend, params, &mut self.memory, &images, size, latents)?;
        let (coding, ids) = (&mut self.coding, &mut self.ids);
        quantizer.codes(self.backend, coding, dims, &self.schedule, latents, ids)?;
        Ok(batch)
    }

    fn dims(&self, batch: usize) -> MapDims {
        self.decoder.tokenizer.latents(batch, self.side)
    }

    /// Returns `batch` copies of the latents of the picture encoded last.
    fn repeated(&self, batch: usize) -> Result<B::Activation, B::Error> {
        let len = self.dims(1).len();
        let mut all = self.backend.activation(batch * len)?;
        for picture in 0..batch {
            self.backend.copy(&self.latents_bkhw, 0, &mut all, picture * len, len)?;
        }
        Ok(all)
    }

    /// Returns the codes `[T]` of one picture, on the host.
    fn codes(&mut self, image_3hw: &[f32]) -> Result<Vec<u32>, B::Error> {
        self.encode(image_3hw)?;
        let mut codes = vec![0; self.schedule.tokens()];
        self.backend.download_ids(&self.ids, 0, &mut codes)?;
        Ok(codes)
    }
}

/// Seed of a pass, so that each pass has draws of its own.
fn seed_of(seed: u64, pass: usize) -> u64 {
    seed.wrapping_add((pass as u64) << 32)
}
