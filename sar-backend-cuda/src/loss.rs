//! Losses at the door: shapes checked, then `ops`.
//!
//! Ids are on the device and are not looked at here: a kernel gives NaN for one outside its table, so
//! that a step with it is skipped, and reads nothing beyond.

use crate::device::Device;
use crate::ops::{cross_entropy, scale_sums, soft_cross_entropy};
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError};
use sar_math::ScaleSchedule;
use sar_math::backend::{LossDims, LossOps, ShapeError, TokenLoss};

/// Rows and logits of a loss, or the shape error of a vocabulary of nothing.
fn sizes(op: &'static str, dims: &LossDims) -> Result<(usize, usize), ShapeError> {
    ShapeError::at_least(op, "vocab", 1, dims.vocab)?;
    let rows = dims.batch.saturating_mul(dims.schedule.tokens());
    Ok((rows, rows.saturating_mul(dims.vocab)))
}

/// Rows of the targets' buffer, or the shape error of targets that end before the logits do.
fn target_rows(op: &'static str, dims: &LossDims) -> Result<usize, ShapeError> {
    let needed = dims.schedule.tokens().saturating_add(dims.targets.shift);
    ShapeError::at_least(op, "targets.tokens", needed, dims.targets.tokens)?;
    Ok(dims.batch.saturating_mul(dims.targets.tokens))
}

/// The parts of a [`TokenLoss`] that every loss writes.
fn row_losses<D: Device>(
    op: &'static str,
    rows: usize,
    loss_bl: &mut Buffer<f32, D>,
    hits_bl: &mut Buffer<f32, D>,
    lse_bl: &mut Buffer<f32, D>,
) -> Result<cross_entropy::RowLosses, ShapeError> {
    Ok(cross_entropy::RowLosses {
        loss: loss_bl.head_mut(op, "loss (b*l)", rows)?,
        hits: hits_bl.head_mut(op, "hits (b*l)", rows)?,
        lse: lse_bl.head_mut(op, "lse (b*l)", rows)?,
    })
}

impl<S: Storage, D: Device> LossOps for CudaBackend<S, D> {
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Buffer<S, D>,
        targets_bl: &Buffer<u32, D>,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), CudaError> {
        const OP: &str = "cross_entropy";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", size)?;
        let targets = targets_bl.head(OP, "targets (b*tokens)", target_rows(OP, dims)?)?;
        let out = row_losses(OP, rows, &mut out.loss_bl, &mut out.hits_bl, &mut out.lse_bl)?;
        cross_entropy::forward(self, dims, logits, targets, out)
    }

    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Buffer<S, D>,
        targets_bl: &Buffer<u32, D>,
        saved: &TokenLoss<Self>,
    ) -> Result<(), CudaError> {
        const OP: &str = "cross_entropy_backward";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", size)?;
        let targets = targets_bl.head(OP, "targets (b*tokens)", target_rows(OP, dims)?)?;
        let lse = saved.lse_bl.head(OP, "lse (b*l)", rows)?;
        cross_entropy::backward(self, dims, logits, targets, lse)
    }

    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Buffer<S, D>,
        teacher_blv: &Buffer<S, D>,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), CudaError> {
        const OP: &str = "soft_cross_entropy";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", size)?;
        let teacher_size = target_rows(OP, dims)?.saturating_mul(dims.vocab);
        let teacher = teacher_blv.head(OP, "teacher (b*tokens*v)", teacher_size)?;
        let teacher_lse = out.teacher_lse_bl.head_mut(OP, "teacher_lse (b*l)", rows)?;
        let out = row_losses(OP, rows, &mut out.loss_bl, &mut out.hits_bl, &mut out.lse_bl)?;
        soft_cross_entropy::forward(self, dims, logits, teacher, out, teacher_lse)
    }

    fn soft_cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Buffer<S, D>,
        teacher_blv: &Buffer<S, D>,
        saved: &TokenLoss<Self>,
    ) -> Result<(), CudaError> {
        const OP: &str = "soft_cross_entropy_backward";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", size)?;
        let teacher_size = target_rows(OP, dims)?.saturating_mul(dims.vocab);
        let teacher = teacher_blv.head(OP, "teacher (b*tokens*v)", teacher_size)?;
        let lse = saved.lse_bl.head(OP, "lse (b*l)", rows)?;
        let teacher_lse = saved.teacher_lse_bl.head(OP, "teacher_lse (b*l)", rows)?;
        soft_cross_entropy::backward(self, dims, logits, teacher, lse, teacher_lse)
    }

    fn scale_sums(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        values_bl: &Buffer<f32, D>,
        sums: &mut Buffer<f32, D>,
        offset: usize,
    ) -> Result<(), CudaError> {
        const OP: &str = "scale_sums";
        let rows = batch.saturating_mul(schedule.tokens());
        let values = values_bl.head(OP, "values (b*l)", rows)?;
        let end = offset.saturating_add(schedule.len());
        let sums = sums.head_mut(OP, "sums (offset+scales)", end)?;
        scale_sums::forward(self, batch, schedule, values, sums.at(offset))
    }
}
