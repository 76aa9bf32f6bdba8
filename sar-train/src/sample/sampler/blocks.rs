//! The generator's blocks on the tokens of one scale, with keys and values of earlier scales cached.

use super::Sampler;
use crate::model::generator::Generator;
use sar_math::backend::{
    Backend, Branch, CachedAttentionDims, EmbeddingDims, LinearDims, TokenDims,
};

impl<B: Backend> Sampler<B> {
    /// Runs all blocks on the tokens of one scale and leaves the input of the head. Issues ops
    /// only, so that it can be replayed.
    ///
    /// `x` and `sum` are swapped twice per block, an even number of times in all, so they end where
    /// they began and the next call issues its ops on the same buffers.
    pub(super) fn trunk(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        batch: usize,
        rows: usize,
        scale: usize,
    ) -> Result<(), B::Error> {
        let span = self.schedule.range(scale);
        let dims = TokenDims { batch: rows, tokens: span.len(), width: generator.shape().width };
        self.embed(backend, generator, params, batch, rows, span.clone())?;
        for block in 0..generator.shape().depth {
            self.add_and_norm(backend, generator, dims, 2 * block)?;
            self.attend(backend, generator, params, dims, span.start, block)?;
            self.add_and_norm(backend, generator, dims, 2 * block + 1)?;
            self.feed_forward(backend, generator, params, dims, block)?;
        }
        self.add_and_norm(backend, generator, dims, 2 * generator.shape().depth)
    }

    /// Adds the branch that follows the previous norm, if there is one, then normalises and modulates the sum.
    fn add_and_norm(
        &mut self,
        backend: &B,
        generator: &Generator,
        dims: TokenDims,
        norm: usize,
    ) -> Result<(), B::Error> {
        let branch = norm.checked_sub(1).map(|n| Branch::<B> {
            value_blc: &self.branch,
            gate: generator.gate(n),
            keep: None,
        });
        let added = branch.is_some();
        backend.residual_norm(
            dims,
            generator.shape().norm_eps,
            &self.x,
            branch,
            &self.ada,
            generator.modulation(norm),
            &mut self.sum,
            &mut self.normed,
            &mut self.stats,
        )?;
        if added {
            std::mem::swap(&mut self.x, &mut self.sum);
        }
        Ok(())
    }

    /// Attention of a scale's tokens, the first of which has number `past`, to themselves and to
    /// all tokens before them.
    fn attend(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        dims: TokenDims,
        past: usize,
        block: usize,
    ) -> Result<(), B::Error> {
        let (g, c, slots) = (generator.shape(), dims.width, generator.blocks[block]);
        let attention = CachedAttentionDims {
            batch: dims.batch,
            heads: g.heads,
            head_dim: g.head_dim(),
            past,
            tokens: dims.tokens,
            capacity: self.schedule.tokens(),
        };
        let linear = |outputs| LinearDims { rows: dims.rows(), inputs: c, outputs };
        backend.linear(linear(3 * c), &self.normed, params, slots.qkv, &mut self.wide)?;
        backend.cached_attention(
            attention,
            &mut self.wide,
            params,
            slots.attention,
            &mut self.cache[block],
            &mut self.activated,
        )?;
        backend.linear(linear(c), &self.activated, params, slots.proj, &mut self.branch)
    }

    fn feed_forward(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        dims: TokenDims,
        block: usize,
    ) -> Result<(), B::Error> {
        let (rows, c, slots) = (dims.rows(), dims.width, generator.blocks[block]);
        let wide = generator.shape().mlp_ratio * c;
        let [up, down] =
            [(c, wide), (wide, c)].map(|(inputs, outputs)| LinearDims { rows, inputs, outputs });
        backend.linear(up, &self.normed, params, slots.fc1, &mut self.wide)?;
        backend.gelu(rows * wide, &self.wide, &mut self.activated)?;
        backend.linear(down, &self.activated, params, slots.fc2, &mut self.branch)
    }

    fn embed(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        batch: usize,
        rows: usize,
        span: std::ops::Range<usize>,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        let embedding = EmbeddingDims {
            batch: rows,
            input_batch: batch,
            span,
            width: g.width,
            channels: g.channels,
        };
        backend.token_embedding(
            &embedding,
            &self.cond,
            &self.inputs,
            params,
            generator.embedding(true),
            &self.pos_lc,
            &mut self.x,
        )
    }
}
