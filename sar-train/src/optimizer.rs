//! AdamW over a model's flat parameter buffer.

use crate::params::Layout;
use num_traits::Zero as _;
use sar_math::Real as _;
use sar_math::backend::{AdamW, Buffers, OptimizerOps, Slot};

/// AdamW's state for one model.
pub(crate) struct Optimizer<B: Buffers> {
    first_moment: B::Accum,
    second_moment: B::Accum,
    norm: B::Accum,
    decayed: Vec<Slot>,
    plain: Vec<Slot>,
    len: usize,
}

impl<B: OptimizerOps> Optimizer<B> {
    /// Creates the state of a model that has made no step.
    pub(crate) fn new(backend: &B, layout: &Layout) -> Result<Self, B::Error> {
        Ok(Self {
            first_moment: backend.accum(layout.len())?,
            second_moment: backend.accum(layout.len())?,
            norm: backend.accum(1)?,
            decayed: layout.slots(true),
            plain: layout.slots(false),
            len: layout.len(),
        })
    }

    /// Measures the gradient's norm and updates the weights, unless it is not finite: then nothing else changes.
    pub(crate) fn step(
        &mut self,
        backend: &B,
        hyper: &AdamW,
        grads: &B::Accum,
        params: &mut B::Params,
    ) -> Result<(), B::Error> {
        backend.grad_norm(self.len, grads, &mut self.norm)?;
        let (first, second) = (&mut self.first_moment, &mut self.second_moment);
        let (decayed, plain) = (&self.decayed, &self.plain);
        backend.adamw(hyper, decayed, plain, grads, &self.norm, first, second, params)
    }

    /// Returns the norm of the last step's gradient, before clipping. Waits for the device.
    pub(crate) fn norm(&self, backend: &B) -> Result<f64, B::Error> {
        let mut norm = [B::Host::zero()];
        backend.download_accum(&self.norm, 0, &mut norm)?;
        Ok(norm[0].wide())
    }

    /// Names the tensors of a gradient that is not finite, or its norm if each of them is. Waits for the device.
    pub(crate) fn not_finite(
        &self,
        backend: &B,
        layout: &Layout,
        grads: &B::Accum,
    ) -> Result<String, B::Error> {
        let mut values = vec![B::Host::zero(); self.len];
        backend.download_accum(grads, 0, &mut values)?;
        Ok(layout.not_finite(&values).unwrap_or_else(|| "norm".to_owned()))
    }

    /// Downloads the first and second moments.
    pub(crate) fn moments(&self, backend: &B) -> Result<[Vec<B::Host>; 2], B::Error> {
        let get = |from: &B::Accum| {
            let mut values = vec![B::Host::zero(); self.len];
            backend.download_accum(from, 0, &mut values).map(|()| values)
        };
        Ok([get(&self.first_moment)?, get(&self.second_moment)?])
    }

    /// Replaces the moments from element `at` on.
    pub(crate) fn set_moments(
        &mut self,
        backend: &B,
        [first, second]: [&[B::Host]; 2],
        at: usize,
    ) -> Result<(), B::Error> {
        backend.upload_accum(first, &mut self.first_moment, at)?;
        backend.upload_accum(second, &mut self.second_moment, at)
    }
}
