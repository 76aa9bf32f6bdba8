//! From latents to codes: for all scales at once, or, where scales add up, for one after the other.

use super::quantizer::{Maps, Quantizer, QuantizerMemory, Residual, TO_ADD_UP, no_memory};
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, CodeDims, Distance, MapDims, ShapeError, TokenSpan};

/// Name of what [`Quantizer::memory`] provides, for errors.
const TO_LOOK_UP: &str = "memory to look up (of this quantizer)";

/// What looking up codes needs where scales add up: their codebook, the means of a scale and the
/// maps.
type LookUp<'a, B> = (&'a Residual<B>, &'a mut <B as Buffers>::Activation, &'a mut Maps<B>);

impl<B: Backend> Quantizer<B> {
    /// Computes codes `[b, T]` of latents `[b, k, h, w]`, using memory of [`Quantizer::memory`].
    ///
    /// Latents larger than the last grid are area-pooled to it.
    ///
    /// # Errors
    /// Shape: memory that is too small, or latents with other channels; a device fault.
    pub fn codes(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        latent: MapDims,
        schedule: &ScaleSchedule,
        latents_bkhw: &B::Activation,
        ids_bt: &mut B::Ids,
    ) -> Result<(), B::Error> {
        if self.adds_up() {
            self.look_at(backend, memory, latent, schedule, latents_bkhw)?;
            for scale in 0..schedule.len() {
                self.look_up(backend, memory, latent.batch, schedule, scale, ids_bt)?;
                if scale + 1 < schedule.len() {
                    self.take_off(backend, memory, latent.batch, schedule, scale, ids_bt)?;
                }
            }
            return Ok(());
        }
        ShapeError::equal("codes", "latents (channels)", self.channels, latent.channels)?;
        let Some(tokens) = memory.tokens.as_mut() else {
            return Err(no_memory(TO_LOOK_UP).into());
        };
        let (span, codes) = (TokenSpan::whole(schedule), self.code_dims(Distance::Cosine));
        backend.area_tokens(latent, &span, latents_bkhw, tokens)?;
        backend.nearest_code(latent.batch, &span, codes, tokens, &self.codebook, ids_bt)
    }

    /// Where scales add up: starts with latents from which nothing has been subtracted yet.
    ///
    /// # Errors
    /// As for [`Quantizer::codes`].
    pub(crate) fn look_at(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        latent: MapDims,
        schedule: &ScaleSchedule,
        latents_bkhw: &B::Activation,
    ) -> Result<(), B::Error> {
        ShapeError::equal("codes", "latents (channels)", self.channels, latent.channels)?;
        let (_, _, maps) = self.added(memory)?;
        // The remainder of a latent is not a sum that a later call could continue.
        maps.summed = 0;
        let last = schedule.last();
        backend.area_resize(latent, last.height, last.width, latents_bkhw, &mut maps.sum)
    }

    /// Looks up one scale's codes for the remainder of the latents: its columns of `ids[b, T]`.
    ///
    /// # Errors
    /// As for [`Quantizer::codes`].
    pub(crate) fn look_up(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        scale: usize,
        ids_bt: &mut B::Ids,
    ) -> Result<(), B::Error> {
        let (residual, tokens, maps) = self.added(memory)?;
        let left = self.sum_dims(batch, schedule);
        backend.area_tokens(left, &TokenSpan::one(schedule, scale), &maps.sum, tokens)?;
        let span = TokenSpan { scales: scale..scale + 1, ..TokenSpan::whole(schedule) };
        let codes = self.code_dims(Distance::Euclidean);
        backend.nearest_code(batch, &span, codes, tokens, &residual.lifted, ids_bt)
    }

    /// Subtracts a scale's codes from the remainder of the latents.
    ///
    /// # Errors
    /// As for [`Quantizer::codes`].
    pub(crate) fn take_off(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        scale: usize,
        ids_bt: &B::Ids,
    ) -> Result<(), B::Error> {
        let (residual, _, maps) = self.added(memory)?;
        let take = residual.phi(scale, schedule.len()).take;
        let dims = self.dims(batch, schedule, scale..scale + 1);
        self.grow(backend, residual, &dims, scale, take, ids_bt, maps)?;
        let len = batch * self.channels * schedule.last().tokens();
        backend.add(&maps.step, &mut maps.sum, len)
    }

    fn code_dims(&self, distance: Distance) -> CodeDims {
        CodeDims { vocab: self.vocab, channels: self.channels, distance }
    }

    fn added<'a>(
        &'a self,
        memory: &'a mut QuantizerMemory<B>,
    ) -> Result<LookUp<'a, B>, ShapeError> {
        let QuantizerMemory { tokens, maps } = memory;
        match (&self.residual, tokens, maps) {
            (Some(residual), Some(tokens), Some(maps)) => Ok((residual, tokens, maps)),
            (_, None, _) => Err(no_memory(TO_LOOK_UP)),
            _ => Err(no_memory(TO_ADD_UP)),
        }
    }
}
