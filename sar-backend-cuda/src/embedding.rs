//! Entry points of the embedding ops: they check shapes, then call `ops`.

use crate::device::Device;
use crate::ops::{class_embedding, positions, token_embedding};
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError, Params};
use sar_math::ScaleSchedule;
use sar_math::backend::checks::{self, size};
use sar_math::backend::{EmbeddingDims, EmbeddingOps, EmbeddingSlots, ShapeError, Slot};

impl<S: Storage, D: Device> EmbeddingOps for CudaBackend<S, D> {
    fn class_embedding(
        &self,
        batch: usize,
        width: usize,
        labels: &Buffer<u32, D>,
        params: &Params<S, D>,
        table: Slot,
        cond_bc: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "class_embedding";
        let labels = labels.head(OP, "labels (batch)", batch)?;
        let rows = checks::table_rows(OP, width, table)?;
        let table = params.slot(OP, "table (rows*width)", table, table.len)?;
        let cond = cond_bc.head_mut(OP, "cond (batch*width)", size([batch, width]))?;
        class_embedding::forward(self, [batch, width, rows], labels, table, cond)
    }

    fn class_embedding_backward(
        &self,
        batch: usize,
        width: usize,
        labels: &Buffer<u32, D>,
        dcond_bc: &Buffer<S, D>,
        table: Slot,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "class_embedding_backward";
        let labels = labels.head(OP, "labels (batch)", batch)?;
        let rows = checks::table_rows(OP, width, table)?;
        let dcond = dcond_bc.head(OP, "dcond (batch*width)", size([batch, width]))?;
        let dtable = grads.slot_mut(OP, "table gradient (rows*width)", table, table.len)?;
        class_embedding::backward(self, [batch, width, rows], labels, dcond, dtable)
    }

    fn positions(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        params: &Params<S, D>,
        table: Slot,
        pos_lc: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "positions";
        let side = checks::table_side(OP, width, table)?;
        let table = params.slot(OP, "table (width*side*side)", table, table.len)?;
        let len = size([schedule.tokens(), width]);
        let pos = pos_lc.head_mut(OP, "pos (tokens*width)", len)?;
        positions::forward(self, schedule, width, side, table, pos)
    }

    fn positions_backward(
        &self,
        schedule: &ScaleSchedule,
        width: usize,
        dpos_lc: &Buffer<S, D>,
        table: Slot,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "positions_backward";
        let side = checks::table_side(OP, width, table)?;
        let dpos = dpos_lc.head(OP, "dpos (tokens*width)", size([schedule.tokens(), width]))?;
        let dtable = grads.slot_mut(OP, "table gradient", table, table.len)?;
        positions::backward(self, schedule, width, side, dpos, dtable)
    }

    fn token_embedding(
        &self,
        dims: &EmbeddingDims,
        cond_bc: &Buffer<S, D>,
        inputs: &Buffer<S, D>,
        params: &Params<S, D>,
        slots: EmbeddingSlots,
        pos_lc: &Buffer<S, D>,
        x: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
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
        token_embedding::forward(self, dims, cond, inputs, &weights, pos, x)
    }

    fn token_embedding_backward(
        &self,
        dims: &EmbeddingDims,
        dx: &Buffer<S, D>,
        inputs: &Buffer<S, D>,
        slots: EmbeddingSlots,
        dcond_bc: &mut Buffer<S, D>,
        dpos_lc: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
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
        let optional = |slot: Option<Slot>| {
            slot.map(|s| grads.slot(OP, "gradient of word bias or pos_start (width)", s, width))
                .transpose()
        };
        let word_len = size([width, channels]);
        let gradients = token_embedding::Gradients {
            bias: optional(slots.word.bias)?,
            pos_start: optional(slots.pos_start)?,
            word: grads.slot(OP, "word gradient (width*channels)", slots.word.weight, word_len)?,
        };
        token_embedding::backward(self, dims, dx, inputs, dcond, dpos, &gradients)
    }
}
