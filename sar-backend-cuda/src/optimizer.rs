//! Entry points of the optimiser: they check shapes, then call `ops`.

use crate::device::Device;
use crate::ops::{adamw, ema, grad_norm};
use crate::params::Trained;
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError, Params};
use sar_math::backend::{AdamW, OptimizerOps, Slot};

impl<S: Storage, D: Device> OptimizerOps for CudaBackend<S, D> {
    fn grad_norm(
        &self,
        len: usize,
        grads: &Buffer<f32, D>,
        norm: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "grad_norm";
        let grads = grads.head(OP, "grads", len)?;
        grad_norm::forward(self, len, grads, norm.head_mut(OP, "norm", 1)?)
    }

    fn adamw(
        &self,
        hyper: &AdamW,
        decayed: &[Slot],
        plain: &[Slot],
        grads: &Buffer<f32, D>,
        norm: &Buffer<f32, D>,
        first_moment: &mut Buffer<f32, D>,
        second_moment: &mut Buffer<f32, D>,
        params: &mut Params<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "adamw";
        let ends = decayed.iter().chain(plain).map(|s| s.offset.saturating_add(s.len));
        let len = ends.max().unwrap_or(0);
        let Trained { master, narrow } = params.trained_mut(OP)?;
        let state = adamw::State {
            grads: grads.head(OP, "grads (last slot's end)", len)?,
            first: first_moment.head_mut(OP, "first_moment (last slot's end)", len)?,
            second: second_moment.head_mut(OP, "second_moment (last slot's end)", len)?,
            params: master.head_mut(OP, "params (last slot's end)", len)?,
            narrow: match narrow {
                Some(narrow) => Some(narrow.head_mut(OP, "params (last slot's end)", len)?),
                None => None,
            },
        };
        let norm = norm.head(OP, "norm", 1)?;
        adamw::forward(self, hyper, decayed, plain, norm, state)
    }

    fn ema(
        &self,
        len: usize,
        decay: f64,
        params: &Params<S, D>,
        average: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "ema";
        let params = params.master(OP)?.head(OP, "params", len)?;
        ema::forward(self, len, decay, params, average.head_mut(OP, "average", len)?)
    }
}
