//! Entry points of the losses: they check shapes, then call `ops`.
//!
//! Ids are on the device and are not checked here: for an id outside its table a kernel gives NaN, so
//! that a step with it is skipped, and reads nothing out of bounds.

use crate::device::Device;
use crate::memory::Address;
use crate::ops::{cross_entropy, scale_sums, soft_cross_entropy};
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError};
use sar_math::ScaleSchedule;
use sar_math::backend::checks;
use sar_math::backend::{LossDims, LossOps, ShapeError, TokenLoss};

/// Start and end of the logits' samples, of `width` elements each, in a buffer of the whole batch.
fn samples(dims: &LossDims, width: usize) -> (usize, usize) {
    let end = dims.first_sample.saturating_add(dims.batch);
    (dims.first_sample.saturating_mul(width), end.saturating_mul(width))
}

/// The target ids of the logits' samples.
fn targets<D: Device>(
    op: &'static str,
    dims: &LossDims,
    targets_bl: &Buffer<u32, D>,
) -> Result<Address<u32>, ShapeError> {
    let (from, to) = samples(dims, checks::target_rows(op, dims)?);
    Ok(targets_bl.head(op, "targets (b*tokens)", to)?.at(from))
}

/// The teacher's logits for the samples of the logits.
fn teacher<S: Storage, D: Device>(
    op: &'static str,
    dims: &LossDims,
    teacher_blv: &Buffer<S, D>,
) -> Result<Address<S>, ShapeError> {
    let rows = dims.batch.saturating_mul(checks::target_rows(op, dims)?);
    teacher_blv.head(op, "teacher (b*tokens*v)", rows.saturating_mul(dims.vocab))
}

/// The parts of a [`TokenLoss`] that every loss writes.
fn row_losses<D: Device>(
    op: &'static str,
    (from, to): (usize, usize),
    loss_bl: &mut Buffer<f32, D>,
    hits_bl: &mut Buffer<f32, D>,
    lse_bl: &mut Buffer<f32, D>,
) -> Result<cross_entropy::RowLosses, ShapeError> {
    Ok(cross_entropy::RowLosses {
        loss: loss_bl.head_mut(op, "loss (b*l)", to)?.at(from),
        hits: hits_bl.head_mut(op, "hits (b*l)", to)?.at(from),
        lse: lse_bl.head_mut(op, "lse (b*l)", to)?.at(from),
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", len)?;
        let targets = targets(OP, dims, targets_bl)?;
        let rows = samples(dims, dims.schedule.tokens());
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", len)?;
        let targets = targets(OP, dims, targets_bl)?;
        let (from, to) = samples(dims, dims.schedule.tokens());
        let lse = saved.lse_bl.head(OP, "lse (b*l)", to)?.at(from);
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", len)?;
        let teacher = teacher(OP, dims, teacher_blv)?;
        let rows = samples(dims, dims.schedule.tokens());
        let teacher_lse = out.teacher_lse_bl.head_mut(OP, "teacher_lse (b*l)", rows.1)?;
        let teacher_lse = teacher_lse.at(rows.0);
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", len)?;
        let teacher = teacher(OP, dims, teacher_blv)?;
        let (from, to) = samples(dims, dims.schedule.tokens());
        let lse = saved.lse_bl.head(OP, "lse (b*l)", to)?.at(from);
        let teacher_lse = saved.teacher_lse_bl.head(OP, "teacher_lse (b*l)", to)?.at(from);
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
