//! Embedding ops at the door: shapes are checked, then `ops` is called.

use crate::loss::check_ids;
use crate::ops::{class_embedding, positions, token_embedding};
use crate::{Buffer, CpuBackend, CpuError, Element};
use sar_math::ScaleSchedule;
use sar_math::backend::checks::{self, size};
use sar_math::backend::{EmbeddingDims, EmbeddingOps, EmbeddingSlots, ShapeError, Slot};

impl<T: Element> EmbeddingOps for CpuBackend<T> {
    fn class_embedding(
        &self,
        batch: usize,
        width: usize,
        labels: &Buffer<u32>,
        params: &Buffer<T>,
        table: Slot,
        cond_bc: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "class_embedding";
        let labels = labels.head(OP, "labels (batch)", batch)?;
        let rows = checks::table_rows(OP, width, table)?;
        let table = params.slot(OP, "table (rows*width)", table, table.len)?;
        let cond = cond_bc.head_mut(OP, "cond (batch*width)", size([batch, width]))?;
        check_ids(OP, labels, 0, rows)?;
        class_embedding::forward(width, labels, table, cond);
        Ok(())
    }

    fn class_embedding_backward(
        &self,
        batch: usize,
        width: usize,
        labels: &Buffer<u32>,
        dcond_bc: &Buffer<T>,
        table: Slot,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "class_embedding_backward";
        let labels = labels.head(OP, "labels (batch)", batch)?;
        let rows = checks::table_rows(OP, width, table)?;
        let dcond = dcond_bc.head(OP, "dcond (batch*width)", size([batch, width]))?;
        let dtable = grads.slot_mut(OP, "table gradient (rows*width)", table, table.len)?;
        check_ids(OP, labels, 0, rows)?;
        class_embedding::backward(width, labels, dcond, dtable);
        Ok(())
    }

    fn positions(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        params: &Buffer<T>,
        table: Slot,
        pos_lc: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "positions";
        let side = checks::table_side(OP, width, table)?;
        let table = params.slot(OP, "table (width*side*side)", table, table.len)?;
        let len = size([schedule.tokens(), width]);
        let pos = pos_lc.head_mut(OP, "pos (tokens*width)", len)?;
        positions::forward(schedule, width, side, table, pos);
        Ok(())
    }

    fn positions_backward(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        dpos_lc: &Buffer<T>,
        table: Slot,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "positions_backward";
        let side = checks::table_side(OP, width, table)?;
        let dpos = dpos_lc.head(OP, "dpos (tokens*width)", size([schedule.tokens(), width]))?;
        let dtable = grads.slot_mut(OP, "table gradient", table, table.len)?;
        positions::backward(schedule, width, side, dpos, dtable);
        Ok(())
    }

    fn token_embedding(
        &self,
        dims: &EmbeddingDims,
        cond_bc: &Buffer<T>,
        inputs: &Buffer<T>,
        params: &Buffer<T>,
        slots: EmbeddingSlots,
        pos_lc: &Buffer<T>,
        x: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "token_embedding";
        let words = checks::embedding(OP, dims)?;
        let (width, channels) = (dims.width, dims.channels);
        let cond = cond_bc.head(OP, "cond (batch*width)", size([dims.batch, width]))?;
        let inputs_len = size([dims.input_batch, words, channels]);
        let inputs = inputs.head(OP, "inputs (input_batch*words*channels)", inputs_len)?;
        let slot = |operand, slot: Option<Slot>| {
            slot.map(|slot| params.slot(OP, operand, slot, width)).transpose()
        };
        let word_len = size([width, channels]);
        let weights = token_embedding::Weights {
            word: params.slot(OP, "word (width*channels)", slots.word.weight, word_len)?,
            bias: slot("word bias (width)", slots.word.bias)?,
            pos_start: slot("pos_start (width)", slots.pos_start)?,
        };
        let pos = pos_lc.head(OP, "pos (tokens*width)", size([dims.span.end, width]))?;
        let x_len = size([dims.batch, dims.span.len(), width]);
        let x = x.head_mut(OP, "x (batch*span*width)", x_len)?;
        token_embedding::forward(dims, cond, inputs, &weights, pos, x);
        Ok(())
    }

    fn token_embedding_backward(
        &self,
        dims: &EmbeddingDims,
        dx: &Buffer<T>,
        inputs: &Buffer<T>,
        slots: EmbeddingSlots,
        dcond_bc: &mut Buffer<T>,
        dpos_lc: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "token_embedding_backward";
        let words = checks::embedding(OP, dims)?;
        let (width, channels) = (dims.width, dims.channels);
        ShapeError::equal(OP, "span (start)", 0, dims.span.start)?;
        ShapeError::equal(OP, "input_batch", dims.batch, dims.input_batch)?;
        let dx =
            dx.head(OP, "dx (batch*tokens*width)", size([dims.batch, dims.span.len(), width]))?;
        let inputs_len = size([dims.batch, words, channels]);
        let inputs = inputs.head(OP, "inputs (batch*words*channels)", inputs_len)?;
        let dcond = dcond_bc.head_mut(OP, "dcond (batch*width)", size([dims.batch, width]))?;
        let dpos_len = size([dims.span.len(), width]);
        let dpos = dpos_lc.head_mut(OP, "dpos (tokens*width)", dpos_len)?;
        let optional = [slots.word.bias, slots.pos_start];
        for slot in optional.into_iter().flatten() {
            grads.slot(OP, "gradient of word bias or pos_start (width)", slot, width)?;
        }
        let dword = grads.slot_mut(
            OP,
            "word gradient (width*channels)",
            slots.word.weight,
            size([width, channels]),
        )?;
        token_embedding::backward_word(dims, dx, inputs, dword);
        token_embedding::backward(dims, dx, dcond, dpos);
        if let Some(slot) = slots.word.bias {
            let dbias = grads.slot_mut(OP, "word bias gradient (width)", slot, width)?;
            token_embedding::backward_bias(dpos, dbias);
        }
        if let Some(slot) = slots.pos_start {
            // pos_0 and pos_start are both added to the first token, so they have the same
            // gradient.
            let dpos_start = grads.slot_mut(OP, "pos_start gradient (width)", slot, width)?;
            dpos_start.iter_mut().zip(&*dpos).for_each(|(sum, &d)| *sum += d);
        }
        Ok(())
    }
}
