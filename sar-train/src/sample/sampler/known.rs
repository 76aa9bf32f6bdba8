//! Codes of a known image, looked up while others are generated around them.

use super::Call;
use crate::model::tokenizer::{Quantizer, QuantizerMemory};
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, LatentDims};

/// Kept codes where scales add up: each stands for what the scales before it leave of the known latents.
pub(super) struct Known<B: Buffers> {
    memory: QuantizerMemory<B>,
    ids: B::Ids,
}

impl<B: Backend> Known<B> {
    /// Room for `images` images of a schedule.
    pub(super) fn new(
        backend: &B,
        quantizer: &Quantizer<B>,
        images: usize,
        schedule: &ScaleSchedule,
    ) -> Result<Self, B::Error> {
        let memory = quantizer.memory(backend, images, schedule)?;
        Ok(Self { memory, ids: backend.ids(images * schedule.tokens())? })
    }

    /// Begins with the latents of the known images.
    pub(super) fn look_at(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        dims: LatentDims,
        schedule: &ScaleSchedule,
        latents: &B::Activation,
    ) -> Result<(), B::Error> {
        quantizer.look_at(backend, &mut self.memory, dims, schedule, latents)
    }

    /// Returns codes `[b, T]`, of which those of the call's scale are the nearest to what is left of the latents.
    pub(super) fn look_up(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        schedule: &ScaleSchedule,
        Call { scale, batch, .. }: Call,
    ) -> Result<&B::Ids, B::Error> {
        let (memory, ids) = (&mut self.memory, &mut self.ids);
        quantizer.look_up(backend, memory, batch, schedule, scale, ids)?;
        Ok(&self.ids)
    }

    /// Subtracts the codes `ids` of the call's scale from the latents.
    pub(super) fn take_off(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        schedule: &ScaleSchedule,
        Call { scale, batch, .. }: Call,
        ids: &B::Ids,
    ) -> Result<(), B::Error> {
        quantizer.take_off(backend, &mut self.memory, batch, schedule, scale, ids)
    }
}
