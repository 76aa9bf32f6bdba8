//! The optimiser at the door: shapes are checked, then `ops` is called.

use crate::ops::{adamw, ema, grad_norm};
use crate::{Buffer, CpuBackend, CpuError, Element};
use sar_math::backend::{AdamW, OptimizerOps, Slot};

impl<T: Element> OptimizerOps for CpuBackend<T> {
    fn grad_norm(
        &self,
        len: usize,
        grads: &Buffer<T>,
        norm: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "grad_norm";
        let grads = grads.head(OP, "grads", len)?;
        norm.head_mut(OP, "norm", 1)?[0] = grad_norm::forward(grads);
        Ok(())
    }

    fn adamw(
        &self,
        hyper: &AdamW,
        decayed: &[Slot],
        plain: &[Slot],
        grads: &Buffer<T>,
        norm: &Buffer<T>,
        first_moment: &mut Buffer<T>,
        second_moment: &mut Buffer<T>,
        params: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "adamw";
        let ends = decayed.iter().chain(plain).map(|s| s.offset.saturating_add(s.len));
        let len = ends.max().unwrap_or(0);
        let state = adamw::State {
            grads: grads.head(OP, "grads (last slot's end)", len)?,
            first: first_moment.head_mut(OP, "first_moment (last slot's end)", len)?,
            second: second_moment.head_mut(OP, "second_moment (last slot's end)", len)?,
            params: params.head_mut(OP, "params (last slot's end)", len)?,
        };
        let norm = norm.head(OP, "norm", 1)?[0];
        Ok(adamw::forward(hyper, decayed, plain, norm, state)?)
    }

    fn ema(
        &self,
        len: usize,
        decay: f64,
        params: &Buffer<T>,
        average: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "ema";
        let params = params.head(OP, "params", len)?;
        ema::forward(decay, params, average.head_mut(OP, "average", len)?);
        Ok(())
    }
}
