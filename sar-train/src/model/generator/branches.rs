//! The two branches of a block: attention and the feed-forward network.

use super::pass::Dims;
use super::{Generator, Gradients, Recompute, Trace};
use sar_math::backend::Backend;

impl Generator {
    /// Computes the attention of block i, written to its branch output.
    pub(super) fn attention<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: Dims,
        i: usize,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        let (c, slots) = (dims.tokens.width, &self.blocks[i]);
        let (normed, at, out) = (t.normed_of(2 * i), t.block(i), t.branch_of(2 * i));
        let qkv = &mut t.qkv[at];
        backend.linear(dims.linear(c, 3 * c), &t.normed[normed], params, slots.qkv, qkv)?;
        backend.attention(
            dims.attention,
            qkv,
            params,
            slots.attention,
            &mut t.inverse_norms[at],
            &mut t.lse[at],
            &mut t.attended[at],
        )?;
        let out = &mut t.branches[out];
        backend.linear(dims.linear(c, c), &t.attended[at], params, slots.proj, out)
    }

    /// Computes the gradient of the preceding norm's output from that of the branch.
    pub(super) fn attention_backward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: Dims,
        i: usize,
        t: &mut Trace<B>,
        g: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let (c, slots) = (dims.tokens.width, &self.blocks[i]);
        let (at, proj) = (t.block(i), dims.linear(c, c));
        backend.linear_backward_input(proj, &g.dbranch, params, slots.proj, &mut g.dy)?;
        let (attended, weight) = (&t.attended[at], slots.proj.without_bias());
        let into = &mut g.params;
        backend.linear_backward_weight(proj, &g.dbranch, attended, weight, g.blocks, into)?;
        backend.attention_backward(
            dims.attention,
            &g.dy,
            attended,
            &t.qkv[at],
            &t.inverse_norms[at],
            &t.lse[at],
            params,
            slots.attention,
            &mut t.wide,
            &mut g.params,
        )?;
        let (qkv, normed) = (dims.linear(c, 3 * c), &t.normed[t.normed_of(2 * i)]);
        backend.linear_backward_input(qkv, &t.wide, params, slots.qkv, &mut g.dy)?;
        backend.linear_backward_weight(qkv, &t.wide, normed, slots.qkv, g.blocks, &mut g.params)
    }

    /// Computes the feed-forward network of block i, written to its branch output.
    pub(super) fn ffn<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: Dims,
        i: usize,
        t: &mut Trace<B>,
    ) -> Result<(), B::Error> {
        let (c, slots) = (dims.tokens.width, &self.blocks[i]);
        let wide = self.shape().mlp_ratio * c;
        let (normed, at, out) = (t.normed_of(2 * i + 1), t.block(i), t.branch_of(2 * i + 1));
        let hidden = &mut t.hidden[at];
        let activated = match t.recompute {
            Recompute::Nothing => &mut t.activated[i],
            Recompute::Norms | Recompute::Blocks => &mut t.wide,
        };
        backend.linear(dims.linear(c, wide), &t.normed[normed], params, slots.fc1, hidden)?;
        backend.gelu(dims.tokens.rows() * wide, hidden, activated)?;
        let out = &mut t.branches[out];
        backend.linear(dims.linear(wide, c), activated, params, slots.fc2, out)
    }

    /// Like [`Generator::attention_backward`], for the feed-forward network.
    pub(super) fn ffn_backward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        dims: Dims,
        i: usize,
        t: &mut Trace<B>,
        g: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let (c, slots) = (dims.tokens.width, &self.blocks[i]);
        let wide = self.shape().mlp_ratio * c;
        let rows = dims.tokens.rows();
        let (at, fc1, fc2) = (t.block(i), dims.linear(c, wide), dims.linear(wide, c));
        backend.linear_backward_input(fc2, &g.dbranch, params, slots.fc2, &mut t.wide)?;
        // Nothing reads the hidden layer after this: if its activation was not kept, it is
        // overwritten by it.
        let activated = match t.recompute {
            Recompute::Nothing => {
                let (hidden, bias) = (&t.hidden[at], slots.fc1.bias);
                backend.gelu_backward(rows, wide, hidden, bias, &mut t.wide, &mut g.params)?;
                &t.activated[i]
            }
            Recompute::Norms | Recompute::Blocks => {
                let (hidden, bias) = (&mut t.hidden[at], slots.fc1.bias);
                backend.regelu_backward(rows, wide, bias, hidden, &mut t.wide, &mut g.params)?;
                &t.hidden[at]
            }
        };
        let weight = slots.fc2.without_bias();
        let into = &mut g.params;
        backend.linear_backward_weight(fc2, &g.dbranch, activated, weight, g.blocks, into)?;
        let normed = &t.normed[t.normed_of(2 * i + 1)];
        backend.linear_backward_input(fc1, &t.wide, params, slots.fc1, &mut g.dy)?;
        let weight = slots.fc1.without_bias();
        backend.linear_backward_weight(fc1, &t.wide, normed, weight, g.blocks, &mut g.params)
    }
}
