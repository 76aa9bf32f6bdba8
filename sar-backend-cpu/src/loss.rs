//! Losses at the door: shapes and ids are checked, then `ops` is called.

use crate::ops::{cross_entropy, scale_sums, soft_cross_entropy};
use crate::{Buffer, CpuBackend, CpuError, Element};
use sar_math::ScaleSchedule;
use sar_math::backend::checks;
use sar_math::backend::{LossDims, LossOps, ShapeError, TokenLoss};

/// Start and end of the logits' samples in a buffer of the whole batch, whose rows have `width`
/// elements.
fn samples(dims: &LossDims, width: usize) -> (usize, usize) {
    let end = dims.first_sample.saturating_add(dims.batch);
    (dims.first_sample.saturating_mul(width), end.saturating_mul(width))
}

/// Fails on the first id that is not a row of a table of `rows`; the ids begin at `first` in their
/// buffer.
pub(crate) fn check_ids(
    op: &'static str,
    ids: &[u32],
    first: usize,
    rows: usize,
) -> Result<(), CpuError> {
    match ids.iter().position(|&id| id as usize >= rows) {
        Some(at) => Err(CpuError::IdOutOfRange { op, position: first + at, id: ids[at], rows }),
        None => Ok(()),
    }
}

/// The target ids of the logits' samples, after checking that they lie in the vocabulary.
fn targets<'a>(
    op: &'static str,
    dims: &LossDims,
    targets_bl: &'a Buffer<u32>,
) -> Result<&'a [u32], CpuError> {
    let (from, to) = samples(dims, checks::target_rows(op, dims)?);
    let targets = &targets_bl.head(op, "targets (b*tokens)", to)?[from..];
    check_ids(op, targets, from, dims.vocab)?;
    Ok(targets)
}

/// The teacher's logits of the logits' samples.
fn teacher<'a, T: Element>(
    op: &'static str,
    dims: &LossDims,
    teacher_blv: &'a Buffer<T>,
) -> Result<&'a [T], ShapeError> {
    let rows = dims.batch.saturating_mul(checks::target_rows(op, dims)?);
    teacher_blv.head(op, "teacher (b*tokens*v)", rows.saturating_mul(dims.vocab))
}

/// The parts of a [`TokenLoss`] that every loss writes.
fn row_losses<'a, T: Element>(
    op: &'static str,
    (from, to): (usize, usize),
    loss_bl: &'a mut Buffer<T>,
    hits_bl: &'a mut Buffer<T>,
    lse_bl: &'a mut Buffer<T>,
) -> Result<cross_entropy::RowLosses<'a, T>, ShapeError> {
    Ok(cross_entropy::RowLosses {
        loss: &mut loss_bl.head_mut(op, "loss (b*l)", to)?[from..],
        hits: &mut hits_bl.head_mut(op, "hits (b*l)", to)?[from..],
        lse: &mut lse_bl.head_mut(op, "lse (b*l)", to)?[from..],
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", len)?;
        let targets = targets(OP, dims, targets_bl)?;
        let rows = samples(dims, dims.schedule.tokens());
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", len)?;
        let targets = targets(OP, dims, targets_bl)?;
        let (from, to) = samples(dims, dims.schedule.tokens());
        let lse = &saved.lse_bl.head(OP, "lse (b*l)", to)?[from..];
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_blv.head(OP, "logits (b*l*v)", len)?;
        let teacher = teacher(OP, dims, teacher_blv)?;
        let rows = samples(dims, dims.schedule.tokens());
        let teacher_lse = out.teacher_lse_bl.head_mut(OP, "teacher_lse (b*l)", rows.1)?;
        let teacher_lse = &mut teacher_lse[rows.0..];
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
        let len = checks::logits(OP, dims)?;
        let logits = logits_to_dlogits.head_mut(OP, "logits (b*l*v)", len)?;
        let teacher = teacher(OP, dims, teacher_blv)?;
        let (from, to) = samples(dims, dims.schedule.tokens());
        let lse = &saved.lse_bl.head(OP, "lse (b*l)", to)?[from..];
        let teacher_lse = &saved.teacher_lse_bl.head(OP, "teacher_lse (b*l)", to)?[from..];
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
