//! Forward and backward of one pass over a schedule.

use super::{Generator, Gradients, Recompute, Trace};
use sar_math::ScaleSchedule;
use sar_math::backend::{
    AttentionDims, Backend, Branch, Buffers, EmbeddingDims, LinearDims, Seen, ShapeError,
    TokenDims, Write,
};

/// The input of a pass.
pub struct PassInput<'a, B: Buffers> {
    /// Number of samples B.
    pub batch: usize,
    /// The scales of this pass.
    pub schedule: ScaleSchedule,
    /// Classes `[b]`.
    pub labels: &'a B::Ids,
    /// Codes that feed scales 2 and up, `[input_batch, T−1, k]`.
    pub inputs: &'a B::Activation,
    /// Number of samples in `inputs`: B, or B/2 if an unconditional half runs on the same inputs.
    pub input_batch: usize,
    /// Whether the class token carries `pos_start` (a student pass does not).
    pub with_start: bool,
    /// Drop path: factor of sample b in branch n at `[n·b_total + b]`; `None` in evaluation.
    pub keep: Option<&'a B::Accum>,
}

impl<B: Buffers> Clone for PassInput<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Buffers> Copy for PassInput<'_, B> {}

/// Dimensions that all layers of a pass share.
#[derive(Clone, Copy)]
pub(super) struct Dims {
    pub(super) tokens: TokenDims,
    pub(super) attention: AttentionDims,
}

impl Dims {
    pub(super) fn linear(&self, inputs: usize, outputs: usize) -> LinearDims {
        LinearDims { rows: self.tokens.rows(), inputs, outputs }
    }
}

impl Generator {
    /// Runs the model up to its head. The last norm's output ([`Trace::output`], the input of
    /// [`Generator::head`]) and everything that the backward needs are left in `trace`.
    ///
    /// # Errors
    /// Shape, if the trace is too small; a device fault.
    pub fn forward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        input: &PassInput<'_, B>,
        trace: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        let dims = self.dims(input, trace)?;
        self.embed(backend, params, input, trace)?;
        for norm in 0..=2 * self.shape().depth {
            self.norm(backend, input, input.batch, dims, norm, trace)?;
            match norm % 2 {
                // The last norm is followed by the head.
                _ if norm == 2 * self.shape().depth => {}
                0 => self.attention(backend, params, dims, norm / 2, trace)?,
                _ => self.ffn(backend, params, dims, norm / 2, trace)?,
            }
        }
        Ok(())
    }

    /// Computes gradients of all parameters except the head's from the gradient of the last norm's
    /// output, which [`Generator::head_backward`] has left in `grads` for every sample.
    ///
    /// `input.batch` may be smaller than the forward's; then only the first samples take part
    /// (guided rollouts also run unconditional samples, which have no loss). A trace serves one
    /// backward only, because recomputed values overwrite what they are computed from.
    ///
    /// # Errors
    /// As for [`Generator::forward`].
    pub fn backward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        input: &PassInput<'_, B>,
        forward_batch: usize,
        trace: &mut Trace<B>,
        grads: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let dims = self.dims(input, trace)?;
        let depth = self.shape().depth;
        for norm in (0..=2 * depth).rev() {
            if norm < 2 * depth {
                self.renorm(backend, input, forward_batch, dims, norm, trace)?;
            }
            match norm % 2 {
                // What follows the last norm belongs to the head.
                _ if norm == 2 * depth => {}
                0 => self.attention_backward(backend, params, dims, norm / 2, trace, grads)?,
                _ => self.ffn_backward(backend, params, dims, norm / 2, trace, grads)?,
            }
            if trace.recompute == Recompute::Blocks && norm % 2 == 0 && norm > 0 {
                // Recompute the block before this norm, since the norm's backward first needs that
                // block's last branch.
                self.block_again(backend, params, input, forward_batch, dims, norm / 2 - 1, trace)?;
            }
            self.norm_backward(backend, input, forward_batch, dims, norm, trace, grads)?;
        }
        self.embed_backward(backend, params, input, trace, grads)?;
        grads.blocks = Write::Accumulate;
        Ok(())
    }

    fn dims<B: Backend>(
        &self,
        input: &PassInput<'_, B>,
        trace: &Trace<B>,
    ) -> Result<Dims, ShapeError> {
        let (batch, tokens) = (input.batch, input.schedule.tokens());
        ShapeError::at_least("generator", "trace batch", batch, trace.max_batch)?;
        ShapeError::at_least("generator", "trace tokens", tokens, trace.max_tokens)?;
        let (width, heads) = (self.shape().width, self.shape().heads);
        let attention = AttentionDims {
            batch,
            heads,
            head_dim: self.shape().head_dim(),
            schedule: input.schedule,
        };
        Ok(Dims { tokens: TokenDims { batch, tokens, width }, attention })
    }

    fn embedding_dims<B: Backend>(&self, input: &PassInput<'_, B>) -> EmbeddingDims {
        EmbeddingDims {
            batch: input.batch,
            input_batch: input.input_batch,
            span: 0..input.schedule.tokens(),
            width: self.shape().width,
            channels: self.shape().channels,
        }
    }

    fn embed<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        input: &PassInput<'_, B>,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        let of = &mut t.conditioning;
        self.condition(backend, params, input.batch, input.labels, &input.schedule, of)?;
        backend.token_embedding(
            &self.embedding_dims(input),
            &t.conditioning.cond,
            input.inputs,
            params,
            self.embedding(input.with_start),
            &t.conditioning.pos_lc,
            &mut t.sums[0],
        )
    }

    fn embed_backward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        input: &PassInput<'_, B>,
        t: &Trace<B>,
        g: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let (batch, c) = (input.batch, self.shape().width);
        backend.token_embedding_backward(
            &self.embedding_dims(input),
            &g.dx,
            input.inputs,
            self.embedding(input.with_start),
            &mut g.dcond,
            &mut g.dpos,
            &mut g.params,
        )?;
        let (places, grads) = (t.conditioning.places.as_ref(), &mut g.params);
        self.position_backward(backend, &input.schedule, places, &g.dpos, grads)?;
        let table = self.class_emb;
        backend.class_embedding_backward(batch, c, input.labels, &g.dcond, table, &mut g.params)?;
        let dims = LinearDims { rows: batch, inputs: c, outputs: self.ada_stride() };
        backend.linear_backward_input(dims, &g.d_ada, params, self.ada, &mut g.dcond)?;
        let (silu, into) = (&t.conditioning.silu_cond, &mut g.params);
        backend.linear_backward_weight(dims, &g.d_ada, silu, self.ada, g.blocks, into)?;
        backend.silu_backward(batch * c, &t.conditioning.cond, &mut g.dcond)?;
        backend.class_embedding_backward(batch, c, input.labels, &g.dcond, table, &mut g.params)
    }

    /// Returns branch n with this output; `keep` is laid out for `keep_batch` samples.
    fn branch<'a, B: Backend>(
        &self,
        input: &PassInput<'a, B>,
        keep_batch: usize,
        n: usize,
        value_blc: &'a B::Activation,
    ) -> Branch<'a, B> {
        let keep = input.keep.map(|k| (k, n * keep_batch));
        Branch { value_blc, gate: self.gate(n), keep }
    }

    /// Recomputes the output of norm n, unless it was kept.
    fn renorm<B: Backend>(
        &self,
        backend: &B,
        input: &PassInput<'_, B>,
        keep_batch: usize,
        dims: Dims,
        norm: usize,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        if t.recompute == Recompute::Nothing {
            return Ok(());
        }
        let normed = t.normed_of(norm);
        let (x, branch) = if t.keeps_sum(norm) {
            (t.sum_of(norm), None)
        } else {
            let value = &t.branches[t.branch_of(norm - 1)];
            (t.sum_of(norm - 1), Some(self.branch(input, keep_batch, norm - 1, value)))
        };
        backend.renorm(
            dims.tokens,
            &t.sums[x],
            branch,
            &t.stats[norm],
            &t.conditioning.ada,
            self.modulation(norm),
            &mut t.normed[normed],
        )
    }

    /// Recomputes the forward of block i from its input, to the same bits: everything its backward
    /// needs.
    fn block_again<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        input: &PassInput<'_, B>,
        forward_batch: usize,
        dims: Dims,
        i: usize,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        self.renorm(backend, input, forward_batch, dims, 2 * i, t)?;
        self.attention(backend, params, dims, i, t)?;
        self.norm(backend, input, forward_batch, dims, 2 * i + 1, t)?;
        self.ffn(backend, params, dims, i, t)
    }

    /// Computes norm n, after adding the branch before it to the residual stream. `keep` is laid
    /// out for `keep_batch` samples.
    fn norm<B: Backend>(
        &self,
        backend: &B,
        input: &PassInput<'_, B>,
        keep_batch: usize,
        dims: Dims,
        norm: usize,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        let normed = t.normed_of(norm);
        // Without a branch nothing is written to the sum, so any other buffer will do.
        let places = [t.sum_of(norm.saturating_sub(1)), t.sum_of(norm.max(1))];
        let value = t.branch_of(norm.saturating_sub(1));
        let branch =
            norm.checked_sub(1).map(|n| self.branch(input, keep_batch, n, &t.branches[value]));
        let Ok([before, after]) = t.sums.get_disjoint_mut(places) else {
            let (expected, found) = (places[0].max(places[1]) + 1, t.sums.len());
            let operand = "sums of the trace (two that differ)";
            return Err(ShapeError { op: "generator", operand, expected, found }.into());
        };
        backend.residual_norm(
            dims.tokens,
            self.shape().norm_eps,
            before,
            branch,
            &t.conditioning.ada,
            self.modulation(norm),
            after,
            &mut t.normed[normed],
            &mut t.stats[norm],
        )
    }

    fn norm_backward<B: Backend>(
        &self,
        backend: &B,
        input: &PassInput<'_, B>,
        forward_batch: usize,
        dims: Dims,
        norm: usize,
        t: &Trace<B>,
        g: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let branch = norm
            .checked_sub(1)
            .map(|n| self.branch(input, forward_batch, n, &t.branches[t.branch_of(n)]));
        let seen = if t.keeps_sum(norm) {
            Seen::Sum(&t.sums[t.sum_of(norm)])
        } else {
            Seen::Before(&t.sums[t.sum_of(norm - 1)])
        };
        // The layer that ends the branch, in attention or in the feed-forward network.
        let bias = norm.checked_sub(1).and_then(|n| {
            let block = &self.blocks[n / 2];
            [block.proj, block.fc2][n % 2].bias
        });
        let last = norm == 2 * self.shape().depth;
        let dbranch = branch.is_some().then_some(&mut g.dbranch);
        backend.residual_norm_backward(
            dims.tokens,
            &g.dy,
            seen,
            &t.stats[norm],
            branch,
            &t.conditioning.ada,
            self.modulation(norm),
            bias,
            if last { Write::Overwrite } else { Write::Accumulate },
            &mut g.dx,
            dbranch,
            &mut g.d_ada,
            &mut g.params,
        )
    }
}
