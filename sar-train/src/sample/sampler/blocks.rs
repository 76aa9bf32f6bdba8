//! The generator's blocks on the tokens of one scale, with keys and values of earlier scales cached.

use super::{Call, Model};
use crate::model::generator::{Conditioning, Generator};
use sar_math::ScaleSchedule;
use sar_math::backend::{
    Backend, Branch, Buffers, CachedAttentionDims, EmbeddingDims, LinearDims, TokenDims,
};

/// Memory of the blocks: the cache, and what one scale's tokens pass through.
pub(super) struct Blocks<B: Buffers> {
    /// Keys and values of every block.
    cache: Vec<B::Activation>,
    x: B::Activation,
    sum: B::Activation,
    /// Output of the last norm: in the end the features of the scale.
    pub(super) normed: B::Activation,
    branch: B::Activation,
    wide: B::Activation,
    activated: B::Activation,
    stats: B::Accum,
}

impl<B: Backend> Blocks<B> {
    /// Room for `rows` samples of `tokens` tokens, the largest scale of which has `largest`.
    pub(super) fn new(
        backend: &B,
        generator: &Generator,
        rows: usize,
        largest: usize,
        tokens: usize,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let (c, n) = (g.width, rows * largest);
        let cache = (0..g.depth).map(|_| backend.activation(2 * rows * tokens * c));
        Ok(Self {
            cache: cache.collect::<Result<_, _>>()?,
            x: backend.activation(n * c)?,
            sum: backend.activation(n * c)?,
            normed: backend.activation(n * c)?,
            branch: backend.activation(n * c)?,
            wide: backend.activation(n * g.widest())?,
            activated: backend.activation(n * g.mlp_ratio * c)?,
            stats: backend.accum(n * 2)?,
        })
    }

    /// Runs all blocks on the tokens of one scale and leaves the input of the head. Issues ops
    /// only, so that it can be replayed.
    ///
    /// `x` and `sum` are swapped twice per block, an even number of times in all, so they end where
    /// they began and the next call issues its ops on the same buffers.
    pub(super) fn run(
        &mut self,
        backend: &B,
        Model { generator, params, .. }: Model<'_, B>,
        conditioning: &Conditioning<B>,
        inputs: &B::Activation,
        schedule: &ScaleSchedule,
        Call { scale, batch, rows }: Call,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        let span = schedule.range(scale);
        let dims = TokenDims { batch: rows, tokens: span.len(), width: g.width };
        let embedding = EmbeddingDims {
            batch: rows,
            input_batch: batch,
            span: span.clone(),
            width: g.width,
            channels: g.channels,
        };
        let Conditioning { cond, ada, pos_lc, .. } = conditioning;
        let slots = generator.embedding(true);
        backend.token_embedding(&embedding, cond, inputs, params, slots, pos_lc, &mut self.x)?;
        let attention = CachedAttentionDims {
            batch: rows,
            heads: g.heads,
            head_dim: g.head_dim(),
            past: span.start,
            tokens: span.len(),
            capacity: schedule.tokens(),
        };
        for block in 0..g.depth {
            self.add_and_norm(backend, generator, dims, ada, 2 * block)?;
            self.attend(backend, generator, params, attention, block)?;
            self.add_and_norm(backend, generator, dims, ada, 2 * block + 1)?;
            self.feed_forward(backend, generator, params, dims, block)?;
        }
        self.add_and_norm(backend, generator, dims, ada, 2 * g.depth)
    }

    /// Adds the branch that follows the previous norm, if there is one, then normalises and modulates the sum.
    fn add_and_norm(
        &mut self,
        backend: &B,
        generator: &Generator,
        dims: TokenDims,
        ada: &B::Activation,
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
            ada,
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

    /// Attention of a scale's tokens to themselves and to all tokens before them.
    fn attend(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        dims: CachedAttentionDims,
        block: usize,
    ) -> Result<(), B::Error> {
        let (c, slots) = (generator.shape().width, generator.blocks[block]);
        let rows = dims.batch * dims.tokens;
        let linear = |outputs| LinearDims { rows, inputs: c, outputs };
        backend.linear(linear(3 * c), &self.normed, params, slots.qkv, &mut self.wide)?;
        let (cache, attended) = (&mut self.cache[block], &mut self.activated);
        let of = slots.attention;
        backend.cached_attention(dims, &mut self.wide, params, of, cache, attended)?;
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
}
