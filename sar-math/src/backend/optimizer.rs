//! One optimiser step over flat buffers.

use super::{Buffers, Slot};

/// AdamW's constants and this step's rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment, 0.9.
    pub beta1: f64,
    /// Decay of the second moment, 0.95.
    pub beta2: f64,
    /// Added to the root in the denominator, 1e-8.
    pub eps: f64,
    /// Decoupled weight decay of this step, on the decayed slots.
    pub weight_decay: f64,
    /// Number of this update, from 1, for bias correction.
    pub step: u64,
    /// Largest global gradient norm: the gradient is scaled by `min(1, clip/(norm+1e-6))`. 0 turns
    /// it off.
    pub clip: f64,
}

/// Gradient norm, AdamW, running average.
pub trait OptimizerOps: Buffers {
    /// `norm[0] = ‖grads[0..len]‖₂`.
    ///
    /// # Errors
    /// A shape error; the same holds for all methods below.
    fn grad_norm(
        &self,
        len: usize,
        grads: &Self::Accum,
        norm: &mut Self::Accum,
    ) -> Result<(), Self::Error>;

    /// One AdamW step of every parameter in `decayed` (with decay) and `plain` (without).
    ///
    /// Where `norm[0]` is not finite nothing changes at all: the step is skipped on the device, and
    /// whoever downloads the norm can count it.
    fn adamw(
        &self,
        hyper: &AdamW,
        decayed: &[Slot],
        plain: &[Slot],
        grads: &Self::Accum,
        norm: &Self::Accum,
        first_moment: &mut Self::Accum,
        second_moment: &mut Self::Accum,
        params: &mut Self::Params,
    ) -> Result<(), Self::Error>;

    /// `average = decay·average + (1−decay)·params`, over `len` elements.
    fn ema(
        &self,
        len: usize,
        decay: f64,
        params: &Self::Params,
        average: &mut Self::Accum,
    ) -> Result<(), Self::Error>;
}
