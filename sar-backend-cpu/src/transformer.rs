//! Transformer ops at the door: shapes are checked, then `ops` is called.

use crate::ops::attention::{self, HeadParams, add_partials, partial_len};
use crate::ops::residual_norm::{self, Ada, BranchSlices};
use crate::ops::{gelu, linear, silu};
use crate::simd::with_scratch;
use crate::{Buffer, CpuBackend, CpuError, Element};
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    AttentionDims, AttentionSlots, Branch, Linear, LinearDims, Modulation, Seen, ShapeError, Slot,
    TokenDims, TransformerOps, Write,
};

/// Biases and log-scales of attention, checked.
pub(crate) fn head_params<'a, T: Element>(
    op: &'static str,
    heads: usize,
    width: usize,
    params: &'a Buffer<T>,
    slots: AttentionSlots,
    stored: Option<fn(T) -> T>,
) -> Result<HeadParams<'a, T>, ShapeError> {
    Ok(HeadParams {
        q_bias: params.slot(op, "q_bias (heads*head_dim)", slots.q_bias, width)?,
        v_bias: params.slot(op, "v_bias (heads*head_dim)", slots.v_bias, width)?,
        scale_mul: params.slot(op, "scale_mul (heads)", slots.scale_mul, heads)?,
        stored,
    })
}

fn branch_slices<'a, T: Element>(
    op: &'static str,
    dims: TokenDims,
    branch: Option<&Branch<'a, CpuBackend<T>>>,
) -> Result<Option<BranchSlices<'a, T>>, ShapeError> {
    let Some(branch) = branch else { return Ok(None) };
    let keep = match branch.keep {
        None => None,
        Some((keep, offset)) => {
            let end = offset.saturating_add(dims.batch);
            Some(&keep.head(op, "keep (offset+batch)", end)?[offset..])
        }
    };
    let value = branch.value_blc.head(op, "branch (batch*tokens*width)", dims.len())?;
    Ok(Some(BranchSlices { value, gate: branch.gate, keep }))
}

/// The gradient of the bias of the layer whose output has a gradient of `columns` columns.
fn bias_gradient<'a, T: Element>(
    op: &'static str,
    grads: &'a mut Buffer<T>,
    bias: Option<Slot>,
    columns: usize,
) -> Result<Option<&'a mut [T]>, ShapeError> {
    bias.map(|bias| grads.slot_mut(op, "bias gradient (columns)", bias, columns)).transpose()
}

impl<T: Element> CpuBackend<T> {
    /// `dbias += Σ dy` over rows, with dy as it is stored: gives the same bits as
    /// [`TransformerOps::linear_backward_weight`].
    fn add_rows(&self, dy: &mut [T], dbias: Option<&mut [T]>) {
        let Some(dbias) = dbias else { return };
        if let Some(stored) = self.stored {
            dy.iter_mut().for_each(|value| *value = stored(*value));
        }
        linear::backward_bias(dy, dbias);
    }
}

impl<T: Element> TransformerOps for CpuBackend<T> {
    fn linear(
        &self,
        dims: LinearDims,
        x: &Buffer<T>,
        params: &Buffer<T>,
        layer: Linear,
        y: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "linear";
        let LinearDims { rows, inputs, outputs } = dims;
        let x = x.head(OP, "x (rows*inputs)", size([rows, inputs]))?;
        let weight =
            params.slot(OP, "weight (outputs*inputs)", layer.weight, size([outputs, inputs]))?;
        let bias = match layer.bias {
            None => None,
            Some(slot) => Some(params.slot(OP, "bias (outputs)", slot, outputs)?),
        };
        let y = y.head_mut(OP, "y (rows*outputs)", size([rows, outputs]))?;
        linear::forward(dims, x, weight, bias, y);
        Ok(())
    }

    fn linear_backward_input(
        &self,
        dims: LinearDims,
        dy: &Buffer<T>,
        params: &Buffer<T>,
        layer: Linear,
        dx: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "linear_backward_input";
        let LinearDims { rows, inputs, outputs } = dims;
        let dy = dy.head(OP, "dy (rows*outputs)", size([rows, outputs]))?;
        let weights = size([outputs, inputs]);
        let weight = params.slot(OP, "weight (outputs*inputs)", layer.weight, weights)?;
        let dx = dx.head_mut(OP, "dx (rows*inputs)", size([rows, inputs]))?;
        linear::backward_input(dims, dy, weight, dx);
        Ok(())
    }

    fn linear_backward_weight(
        &self,
        dims: LinearDims,
        dy: &Buffer<T>,
        x: &Buffer<T>,
        layer: Linear,
        write: Write,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "linear_backward_weight";
        const WEIGHT: &str = "weight gradient (outputs*inputs)";
        let LinearDims { rows, inputs, outputs } = dims;
        let dy = dy.head(OP, "dy (rows*outputs)", size([rows, outputs]))?;
        let x = x.head(OP, "x (rows*inputs)", size([rows, inputs]))?;
        let weights = size([outputs, inputs]);
        grads.slot(OP, WEIGHT, layer.weight, weights)?;
        if let Some(bias) = layer.bias {
            let dbias = grads.slot_mut(OP, "bias gradient (outputs)", bias, outputs)?;
            linear::backward_bias(dy, dbias);
        }
        let dweight = grads.slot_mut(OP, WEIGHT, layer.weight, weights)?;
        linear::backward_weight(dims, dy, x, write, dweight);
        Ok(())
    }

    fn residual_norm(
        &self,
        dims: TokenDims,
        eps: f64,
        x_blc: &Buffer<T>,
        branch: Option<Branch<'_, Self>>,
        ada: &Buffer<T>,
        modulation: Modulation,
        sum_blc: &mut Buffer<T>,
        y_blc: &mut Buffer<T>,
        stats: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "residual_norm";
        let len = dims.len();
        let x = x_blc.head(OP, "x (batch*tokens*width)", len)?;
        let branch = branch_slices(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let values = ada.head(OP, "ada (batch*stride)", size([dims.batch, stride]))?;
        let sum_len = if branch.is_some() { len } else { 0 };
        let sum = sum_blc.head_mut(OP, "sum (batch*tokens*width)", sum_len)?;
        let y = y_blc.head_mut(OP, "y (batch*tokens*width)", len)?;
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head_mut(OP, "stats (batch*tokens*2)", stats_len)?;
        residual_norm::forward(dims, eps, x, branch, Ada { values, at: modulation }, sum, y, stats);
        Ok(())
    }

    fn renorm(
        &self,
        dims: TokenDims,
        x_blc: &Buffer<T>,
        branch: Option<Branch<'_, Self>>,
        stats: &Buffer<T>,
        ada: &Buffer<T>,
        modulation: Modulation,
        y_blc: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "renorm";
        let len = dims.len();
        let x = x_blc.head(OP, "x (batch*tokens*width)", len)?;
        let branch = branch_slices(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head(OP, "stats (batch*tokens*2)", stats_len)?;
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let values = ada.head(OP, "ada (batch*stride)", size([dims.batch, stride]))?;
        let y = y_blc.head_mut(OP, "y (batch*tokens*width)", len)?;
        residual_norm::renorm(dims, x, branch, stats, Ada { values, at: modulation }, y);
        Ok(())
    }

    fn residual_norm_backward(
        &self,
        dims: TokenDims,
        dy_blc: &Buffer<T>,
        seen: Seen<'_, Self>,
        stats: &Buffer<T>,
        branch: Option<Branch<'_, Self>>,
        ada: &Buffer<T>,
        modulation: Modulation,
        bias: Option<Slot>,
        write: Write,
        dx_blc: &mut Buffer<T>,
        dbranch_blc: Option<&mut Buffer<T>>,
        d_ada: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "residual_norm_backward";
        let len = dims.len();
        let dy = dy_blc.head(OP, "dy (batch*tokens*width)", len)?;
        let (seen, again) = match seen {
            Seen::Sum(sum) => (sum.head(OP, "sum (batch*tokens*width)", len)?, false),
            Seen::Before(x) => (x.head(OP, "x (batch*tokens*width)", len)?, true),
        };
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head(OP, "stats (batch*tokens*2)", stats_len)?;
        let branch = branch_slices(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let ada_len = size([dims.batch, stride]);
        let values = ada.head(OP, "ada (batch*stride)", ada_len)?;
        let dx = dx_blc.head_mut(OP, "dx (batch*tokens*width)", len)?;
        let dbranch = match (branch.is_some(), dbranch_blc) {
            (true, Some(dbranch)) => dbranch.head_mut(OP, "dbranch (batch*tokens*width)", len)?,
            (false, None) => &mut [],
            (branch, dbranch) => {
                let (expected, found) = (usize::from(branch), usize::from(dbranch.is_some()));
                let operand = "dbranch (given where there is a branch, and only there)";
                return Err(ShapeError { op: OP, operand, expected, found }.into());
            }
        };
        let d_ada = d_ada.head_mut(OP, "d_ada (batch*stride)", ada_len)?;
        checks::bias_of_branch(OP, branch.is_some(), bias)?;
        let dbias = bias_gradient(OP, grads, bias, dims.width)?;
        let ada = Ada { values, at: modulation };
        let saved = residual_norm::Saved { dy, seen, again, stats, branch, ada };
        residual_norm::backward(dims, &saved, write, dx, dbranch, d_ada);
        self.add_rows(dbranch, dbias);
        Ok(())
    }

    fn attention(
        &self,
        dims: AttentionDims,
        qkv: &mut Buffer<T>,
        params: &Buffer<T>,
        slots: AttentionSlots,
        inverse_norms: &mut Buffer<T>,
        lse: &mut Buffer<T>,
        out: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "attention";
        let AttentionDims { batch, heads, head_dim, .. } = dims;
        let width = checks::heads(OP, heads, head_dim)?;
        let rows = size([batch, dims.schedule.tokens(), heads]);
        let len = size([rows, head_dim]);
        let params = head_params(OP, heads, width, params, slots, self.stored)?;
        let qkv = qkv.head_mut(OP, "qkv (batch*tokens*3*heads*head_dim)", size([3, len]))?;
        let norms =
            inverse_norms.head_mut(OP, "inverse_norms (batch*tokens*2*heads)", size([2, rows]))?;
        let lse = lse.head_mut(OP, "lse (batch*heads*tokens)", rows)?;
        let out = out.head_mut(OP, "out (batch*tokens*heads*head_dim)", len)?;
        attention::forward(&dims, qkv, params, norms, lse, out);
        Ok(())
    }

    fn attention_backward(
        &self,
        dims: AttentionDims,
        d_out: &Buffer<T>,
        out: &Buffer<T>,
        qkv: &Buffer<T>,
        inverse_norms: &Buffer<T>,
        lse: &Buffer<T>,
        params: &Buffer<T>,
        slots: AttentionSlots,
        dqkv: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "attention_backward";
        let AttentionDims { batch, heads, head_dim, .. } = dims;
        let width = checks::heads(OP, heads, head_dim)?;
        let rows = size([batch, dims.schedule.tokens(), heads]);
        let len = size([rows, head_dim]);
        let saved = attention::Saved {
            d_out: d_out.head(OP, "d_out (batch*tokens*heads*head_dim)", len)?,
            out: out.head(OP, "out (batch*tokens*heads*head_dim)", len)?,
            qkv: qkv.head(OP, "qkv (batch*tokens*3*heads*head_dim)", size([3, len]))?,
            inverse_norms: inverse_norms.head(
                OP,
                "inverse_norms (batch*tokens*2*heads)",
                size([2, rows]),
            )?,
            lse: lse.head(OP, "lse (batch*heads*tokens)", rows)?,
            params: head_params(OP, heads, width, params, slots, self.stored)?,
        };
        head_params(OP, heads, width, grads, slots, self.stored)?;
        let dqkv = dqkv.head_mut(OP, "dqkv (batch*tokens*3*heads*head_dim)", size([3, len]))?;
        let partials = size([batch, heads, partial_len(&dims)]);
        with_scratch(partials, |partials: &mut [T]| {
            attention::backward(&dims, &saved, dqkv, partials);
            let parts = [
                (slots.q_bias, width, 0..head_dim),
                (slots.v_bias, width, head_dim..2 * head_dim),
                (slots.scale_mul, heads, 2 * head_dim..2 * head_dim + 1),
            ];
            for (slot, len, part) in parts {
                let grad = grads.slot_mut(OP, "gradient of a parameter", slot, len)?;
                add_partials(&dims, partials, part, grad);
            }
            Ok(())
        })
    }

    fn gelu(&self, len: usize, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<(), CpuError> {
        gelu::forward(x.head("gelu", "x", len)?, y.head_mut("gelu", "y", len)?);
        Ok(())
    }

    fn gelu_backward(
        &self,
        rows: usize,
        columns: usize,
        x: &Buffer<T>,
        bias: Option<Slot>,
        dy_to_dx: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "gelu_backward";
        let len = size([rows, columns]);
        let x = x.head(OP, "x (rows*columns)", len)?;
        let dy = dy_to_dx.head_mut(OP, "dy (rows*columns)", len)?;
        let dbias = bias_gradient(OP, grads, bias, columns)?;
        gelu::backward(x, dy);
        self.add_rows(dy, dbias);
        Ok(())
    }

    fn regelu_backward(
        &self,
        rows: usize,
        columns: usize,
        bias: Option<Slot>,
        x_to_y: &mut Buffer<T>,
        dy_to_dx: &mut Buffer<T>,
        grads: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "regelu_backward";
        let len = size([rows, columns]);
        let x = x_to_y.head_mut(OP, "x (rows*columns)", len)?;
        let dy = dy_to_dx.head_mut(OP, "dy (rows*columns)", len)?;
        let dbias = bias_gradient(OP, grads, bias, columns)?;
        gelu::again_backward(x, dy);
        self.add_rows(dy, dbias);
        Ok(())
    }

    fn silu(&self, len: usize, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<(), CpuError> {
        silu::forward(x.head("silu", "x", len)?, y.head_mut("silu", "y", len)?);
        Ok(())
    }

    fn silu_backward(
        &self,
        len: usize,
        x: &Buffer<T>,
        dy_to_dx: &mut Buffer<T>,
    ) -> Result<(), CpuError> {
        const OP: &str = "silu_backward";
        silu::backward(x.head(OP, "x", len)?, dy_to_dx.head_mut(OP, "dy", len)?);
        Ok(())
    }
}
