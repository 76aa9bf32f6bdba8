//! Losses at the door: shapes and ids checked, then `ops`.

use crate::ops::{cross_entropy, scale_sums, soft_cross_entropy};
use crate::{Buffer, CpuBackend, CpuError, Element};
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

/// Fails on the first id that is no row of a table of `rows`.
pub(crate) fn check_ids(op: &'static str, ids: &[u32], rows: usize) -> Result<(), CpuError> {
    match ids.iter().position(|&id| id as usize >= rows) {
        Some(position) => Err(CpuError::IdOutOfRange { op, position, id: ids[position], rows }),
        None => Ok(()),
    }
}

/// The parts of a [`TokenLoss`] that every loss writes.
fn row_losses<'a, T: Element>(
    op: &'static str,
    rows: usize,
    loss_bl: &'a mut Buffer<T>,
    hits_bl: &'a mut Buffer<T>,
    lse_bl: &'a mut Buffer<T>,
) -> Result<cross_entropy::RowLosses<'a, T>, ShapeError> {
    Ok(cross_entropy::RowLosses {
        loss: loss_bl.head_mut(op, "loss (b*l)", rows)?,
        hits: hits_bl.head_mut(op, "hits (b*l)", rows)?,
        lse: lse_bl.head_mut(op, "lse (b*l)", rows)?,
    })
}

impl<T: Element> LossOps for CpuBackend<T> {
    fn cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Buffer<T>,
        targets_bl: &Buffer<u32>,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), CpuError> {
        const OP: &str = "cross_entropy";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", size)?;
        let targets = targets_bl.head(OP, "targets (b*tokens)", target_rows(OP, dims)?)?;
        check_ids(OP, targets, dims.vocab)?;
        let out = row_losses(OP, rows, &mut out.loss_bl, &mut out.hits_bl, &mut out.lse_bl)?;
        cross_entropy::forward(dims, logits, targets, out);
        Ok(())
    }

    fn cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Buffer<T>,
        targets_bl: &Buffer<u32>,
        saved: &TokenLoss<Self>,
    ) -> Result<(), CpuError> {
        const OP: &str = "cross_entropy_backward";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", size)?;
        let targets = targets_bl.head(OP, "targets (b*tokens)", target_rows(OP, dims)?)?;
        check_ids(OP, targets, dims.vocab)?;
        let lse = saved.lse_bl.head(OP, "lse (b*l)", rows)?;
        cross_entropy::backward(dims, logits, targets, lse);
        Ok(())
    }

    fn soft_cross_entropy(
        &self,
        dims: &LossDims,
        logits_blv: &Buffer<T>,
        teacher_blv: &Buffer<T>,
        out: &mut TokenLoss<Self>,
    ) -> Result<(), CpuError> {
        const OP: &str = "soft_cross_entropy";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", size)?;
        let teacher_size = target_rows(OP, dims)?.saturating_mul(dims.vocab);
        let teacher = teacher_blv.head(OP, "teacher (b*tokens*v)", teacher_size)?;
        let teacher_lse = out.teacher_lse_bl.head_mut(OP, "teacher_lse (b*l)", rows)?;
        let out = row_losses(OP, rows, &mut out.loss_bl, &mut out.hits_bl, &mut out.lse_bl)?;
        soft_cross_entropy::forward(dims, logits, teacher, out, teacher_lse);
        Ok(())
    }

    fn soft_cross_entropy_backward(
        &self,
        dims: &LossDims,
        logits_to_dlogits: &mut Buffer<T>,
        teacher_blv: &Buffer<T>,
        saved: &TokenLoss<Self>,
    ) -> Result<(), CpuError> {
        const OP: &str = "soft_cross_entropy_backward";
        let (rows, size) = sizes(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", size)?;
        let teacher_size = target_rows(OP, dims)?.saturating_mul(dims.vocab);
        let teacher = teacher_blv.head(OP, "teacher (b*tokens*v)", teacher_size)?;
        let lse = saved.lse_bl.head(OP, "lse (b*l)", rows)?;
        let teacher_lse = saved.teacher_lse_bl.head(OP, "teacher_lse (b*l)", rows)?;
        soft_cross_entropy::backward(dims, logits, teacher, lse, teacher_lse);
        Ok(())
    }

    fn scale_sums(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        values_bl: &Buffer<T>,
        sums: &mut Buffer<T>,
        offset: usize,
    ) -> Result<(), CpuError> {
        const OP: &str = "scale_sums";
        let rows = batch.saturating_mul(schedule.tokens());
        let values = values_bl.head(OP, "values (b*l)", rows)?;
        let end = offset.saturating_add(schedule.len());
        let sums = sums.head_mut(OP, "sums (offset+scales)", end)?;
        scale_sums::forward(schedule, values, &mut sums[offset..]);
        Ok(())
    }
}
