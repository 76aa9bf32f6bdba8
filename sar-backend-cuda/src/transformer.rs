//! Entry points of the transformer ops: they check shapes, then call `ops`.

use crate::device::Device;
use crate::memory::Address;
use crate::ops::attention::{self, HeadParams};
use crate::ops::residual_norm::{self, Ada, BranchAt};
use crate::ops::{gelu, linear, silu};
use crate::storage::Storage;
use crate::{Buffer, CudaBackend, CudaError, Params};
use sar_math::backend::checks::{self, size};
use sar_math::backend::{
    AttentionDims, AttentionSlots, Branch, Linear, LinearDims, Modulation, Seen, ShapeError, Slot,
    TokenDims, TransformerOps, Write,
};

/// Biases and log-scales of attention, with their sizes checked.
pub(crate) fn head_params<S: Storage, D: Device>(
    op: &'static str,
    heads: usize,
    width: usize,
    params: &Params<S, D>,
    slots: AttentionSlots,
) -> Result<HeadParams, ShapeError> {
    Ok(HeadParams {
        q_bias: params.slot(op, "q_bias (heads*head_dim)", slots.q_bias, width)?,
        v_bias: params.slot(op, "v_bias (heads*head_dim)", slots.v_bias, width)?,
        scale_mul: params.slot(op, "scale_mul (heads)", slots.scale_mul, heads)?,
    })
}

fn branch_at<S: Storage, D: Device>(
    op: &'static str,
    dims: TokenDims,
    branch: Option<&Branch<'_, CudaBackend<S, D>>>,
) -> Result<Option<BranchAt<S>>, ShapeError> {
    let Some(branch) = branch else { return Ok(None) };
    let keep = match branch.keep {
        None => None,
        Some((keep, offset)) => {
            let end = offset.saturating_add(dims.batch);
            Some(keep.head(op, "keep (offset+batch)", end)?.at(offset))
        }
    };
    let value = branch.value_blc.head(op, "branch (batch*tokens*width)", dims.len())?;
    Ok(Some(BranchAt { value, gate: branch.gate, keep }))
}

/// The gradient of a layer's bias, if it has one, where the gradient of the layer's output has `columns` columns.
fn bias_gradient<D: Device>(
    op: &'static str,
    grads: &mut Buffer<f32, D>,
    bias: Option<Slot>,
    columns: usize,
) -> Result<Option<Address<f32>>, ShapeError> {
    bias.map(|bias| grads.slot_mut(op, "bias gradient (columns)", bias, columns)).transpose()
}

impl<S: Storage, D: Device> TransformerOps for CudaBackend<S, D> {
    fn linear(
        &self,
        dims: LinearDims,
        x: &Buffer<S, D>,
        params: &Params<S, D>,
        layer: Linear,
        y: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "linear";
        let LinearDims { rows, inputs, outputs } = dims;
        let x = x.head(OP, "x (rows*inputs)", size([rows, inputs]))?;
        let weight =
            params.weights(OP, "weight (outputs*inputs)", layer.weight, size([outputs, inputs]))?;
        let bias = match layer.bias {
            None => None,
            Some(slot) => Some(params.weights(OP, "bias (outputs)", slot, outputs)?),
        };
        let y = y.head_mut(OP, "y (rows*outputs)", size([rows, outputs]))?;
        linear::forward(self, dims, x, weight, bias, y)
    }

    fn linear_backward_input(
        &self,
        dims: LinearDims,
        dy: &Buffer<S, D>,
        params: &Params<S, D>,
        layer: Linear,
        dx: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "linear_backward_input";
        let LinearDims { rows, inputs, outputs } = dims;
        let dy = dy.head(OP, "dy (rows*outputs)", size([rows, outputs]))?;
        let weights = size([outputs, inputs]);
        let weight = params.weights(OP, "weight (outputs*inputs)", layer.weight, weights)?;
        let dx = dx.head_mut(OP, "dx (rows*inputs)", size([rows, inputs]))?;
        linear::backward_input(self, dims, dy, weight, dx)
    }

    fn linear_backward_weight(
        &self,
        dims: LinearDims,
        dy: &Buffer<S, D>,
        x: &Buffer<S, D>,
        layer: Linear,
        write: Write,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "linear_backward_weight";
        const WEIGHT: &str = "weight gradient (outputs*inputs)";
        let LinearDims { rows, inputs, outputs } = dims;
        let dy = dy.head(OP, "dy (rows*outputs)", size([rows, outputs]))?;
        let x = x.head(OP, "x (rows*inputs)", size([rows, inputs]))?;
        let weights = size([outputs, inputs]);
        grads.slot(OP, WEIGHT, layer.weight, weights)?;
        if let Some(bias) = layer.bias {
            let dbias = grads.slot_mut(OP, "bias gradient (outputs)", bias, outputs)?;
            linear::backward_bias(self, dims, dy, dbias)?;
        }
        let dweight = grads.slot_mut(OP, WEIGHT, layer.weight, weights)?;
        linear::backward_weight(self, dims, dy, x, write, dweight)
    }

    fn residual_norm(
        &self,
        dims: TokenDims,
        eps: f64,
        x_blc: &Buffer<S, D>,
        branch: Option<Branch<'_, Self>>,
        ada: &Buffer<S, D>,
        modulation: Modulation,
        sum_blc: &mut Buffer<S, D>,
        y_blc: &mut Buffer<S, D>,
        stats: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "residual_norm";
        let len = dims.len();
        let x = x_blc.head(OP, "x (batch*tokens*width)", len)?;
        let branch = branch_at(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let values = ada.head(OP, "ada (batch*stride)", size([dims.batch, stride]))?;
        let sum_len = if branch.is_some() { len } else { 0 };
        let sum = sum_blc.head_mut(OP, "sum (batch*tokens*width)", sum_len)?;
        let y = y_blc.head_mut(OP, "y (batch*tokens*width)", len)?;
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head_mut(OP, "stats (batch*tokens*2)", stats_len)?;
        residual_norm::forward(
            self,
            dims,
            eps,
            x,
            branch,
            Ada { values, at: modulation },
            sum,
            y,
            stats,
        )
    }

    fn renorm(
        &self,
        dims: TokenDims,
        x_blc: &Buffer<S, D>,
        branch: Option<Branch<'_, Self>>,
        stats: &Buffer<f32, D>,
        ada: &Buffer<S, D>,
        modulation: Modulation,
        y_blc: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "renorm";
        let len = dims.len();
        let x = x_blc.head(OP, "x (batch*tokens*width)", len)?;
        let branch = branch_at(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head(OP, "stats (batch*tokens*2)", stats_len)?;
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let values = ada.head(OP, "ada (batch*stride)", size([dims.batch, stride]))?;
        let y = y_blc.head_mut(OP, "y (batch*tokens*width)", len)?;
        residual_norm::renorm(self, dims, x, branch, stats, Ada { values, at: modulation }, y)
    }

    fn residual_norm_backward(
        &self,
        dims: TokenDims,
        dy_blc: &Buffer<S, D>,
        seen: Seen<'_, Self>,
        stats: &Buffer<f32, D>,
        branch: Option<Branch<'_, Self>>,
        ada: &Buffer<S, D>,
        modulation: Modulation,
        bias: Option<Slot>,
        write: Write,
        dx_blc: &mut Buffer<S, D>,
        dbranch_blc: Option<&mut Buffer<S, D>>,
        d_ada: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "residual_norm_backward";
        let len = dims.len();
        let dy = dy_blc.head(OP, "dy (batch*tokens*width)", len)?;
        let (seen, again) = match seen {
            Seen::Sum(sum) => (sum.head(OP, "sum (batch*tokens*width)", len)?, false),
            Seen::Before(x) => (x.head(OP, "x (batch*tokens*width)", len)?, true),
        };
        let stats_len = size([dims.batch, dims.tokens, 2]);
        let stats = stats.head(OP, "stats (batch*tokens*2)", stats_len)?;
        let branch = branch_at(OP, dims, branch.as_ref())?;
        let gate = branch.map_or(0, |branch| branch.gate);
        let Modulation { stride, scale, shift } = modulation;
        checks::columns(OP, dims.width, stride, &[scale, shift, gate])?;
        let ada_len = size([dims.batch, stride]);
        let values = ada.head(OP, "ada (batch*stride)", ada_len)?;
        let dx = dx_blc.head_mut(OP, "dx (batch*tokens*width)", len)?;
        let dbranch = match (branch.is_some(), dbranch_blc) {
            (true, Some(dbranch)) => dbranch.head_mut(OP, "dbranch (batch*tokens*width)", len)?,
            (false, None) => Address::NULL,
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
        residual_norm::backward(self, dims, &saved, write, dx, dbranch, d_ada, dbias)
    }

    fn attention(
        &self,
        dims: AttentionDims,
        qkv: &mut Buffer<S, D>,
        params: &Params<S, D>,
        slots: AttentionSlots,
        inverse_norms: &mut Buffer<f32, D>,
        lse: &mut Buffer<f32, D>,
        out: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "attention";
        let AttentionDims { batch, heads, head_dim, .. } = dims;
        let width = checks::heads(OP, heads, head_dim)?;
        let rows = size([batch, dims.schedule.tokens(), heads]);
        let len = size([rows, head_dim]);
        let params = head_params(OP, heads, width, params, slots)?;
        let qkv = qkv.head_mut(OP, "qkv (batch*tokens*3*heads*head_dim)", size([3, len]))?;
        let norms =
            inverse_norms.head_mut(OP, "inverse_norms (batch*tokens*2*heads)", size([2, rows]))?;
        let lse = lse.head_mut(OP, "lse (batch*heads*tokens)", rows)?;
        let out = out.head_mut(OP, "out (batch*tokens*heads*head_dim)", len)?;
        attention::forward(self, dims, qkv, params, norms, lse, out)
    }

    fn attention_backward(
        &self,
        dims: AttentionDims,
        d_out: &Buffer<S, D>,
        out: &Buffer<S, D>,
        qkv: &Buffer<S, D>,
        inverse_norms: &Buffer<f32, D>,
        lse: &Buffer<f32, D>,
        params: &Params<S, D>,
        slots: AttentionSlots,
        dqkv: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
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
            params: head_params(OP, heads, width, params, slots)?,
        };
        let dqkv = dqkv.head_mut(OP, "dqkv (batch*tokens*3*heads*head_dim)", size([3, len]))?;
        let gradients = HeadParams {
            q_bias: grads.slot_mut(OP, "gradient of q_bias", slots.q_bias, width)?,
            v_bias: grads.slot_mut(OP, "gradient of v_bias", slots.v_bias, width)?,
            scale_mul: grads.slot_mut(OP, "gradient of scale_mul", slots.scale_mul, heads)?,
        };
        attention::backward(self, dims, &saved, dqkv, &gradients)
    }

    fn gelu(&self, len: usize, x: &Buffer<S, D>, y: &mut Buffer<S, D>) -> Result<(), CudaError> {
        gelu::forward(self, len, x.head("gelu", "x", len)?, y.head_mut("gelu", "y", len)?)
    }

    fn gelu_backward(
        &self,
        rows: usize,
        columns: usize,
        x: &Buffer<S, D>,
        bias: Option<Slot>,
        dy_to_dx: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "gelu_backward";
        let len = size([rows, columns]);
        let x = x.head(OP, "x (rows*columns)", len)?;
        let dy = dy_to_dx.head_mut(OP, "dy (rows*columns)", len)?;
        let dbias = bias_gradient(OP, grads, bias, columns)?;
        gelu::backward(self, rows, columns, x, dy, dbias)
    }

    fn regelu_backward(
        &self,
        rows: usize,
        columns: usize,
        bias: Option<Slot>,
        x_to_y: &mut Buffer<S, D>,
        dy_to_dx: &mut Buffer<S, D>,
        grads: &mut Buffer<f32, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "regelu_backward";
        let len = size([rows, columns]);
        let x = x_to_y.head_mut(OP, "x (rows*columns)", len)?;
        let dy = dy_to_dx.head_mut(OP, "dy (rows*columns)", len)?;
        let dbias = bias_gradient(OP, grads, bias, columns)?;
        gelu::again_backward(self, rows, columns, x, dy, dbias)
    }

    fn silu(&self, len: usize, x: &Buffer<S, D>, y: &mut Buffer<S, D>) -> Result<(), CudaError> {
        silu::forward(self, len, x.head("silu", "x", len)?, y.head_mut("silu", "y", len)?)
    }

    fn silu_backward(
        &self,
        len: usize,
        x: &Buffer<S, D>,
        dy_to_dx: &mut Buffer<S, D>,
    ) -> Result<(), CudaError> {
        const OP: &str = "silu_backward";
        silu::backward(self, len, x.head(OP, "x", len)?, dy_to_dx.head_mut(OP, "dy", len)?)
    }
}
