//! Attention over the positions of a map.

use super::super::network::{Gradients, Saved};
use super::pass::{Backward, ConvLayer, Forward};
use super::{Kept, stats_of, too_few};
use sar_math::backend::{GroupNorm, MapDims, TokenizerOps, Write};

/// x + proj(attention(q, k, v of norm(x))).
#[derive(Clone, Debug)]
pub(in super::super) struct AttentionBlock {
    pub norm: GroupNorm,
    pub qkv: [ConvLayer; 3],
    pub proj_out: ConvLayer,
}

impl AttentionBlock {
    /// Returns the sizes of what is kept: the norm's output, q, k, v, the attention output and, last,
    /// the probabilities.
    pub(super) fn kept(&self, x: MapDims) -> Kept {
        let (n, len) = (x.height * x.width, x.len());
        (vec![len, len, len, len, len, x.batch * n * n], vec![stats_of(&self.norm, x)])
    }

    pub(super) fn forward<B: TokenizerOps>(
        &self,
        pass: &Forward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &mut Saved<B>,
        y: &mut B::Activation,
    ) -> Result<(), B::Error> {
        let ([a, q, k, v, o, p, ..], [stats, ..]) = (&mut saved.maps[..], &mut saved.stats[..])
        else {
            return Err(too_few("trace"));
        };
        pass.norm(self.norm, dims, x, a, stats)?;
        for (layer, to) in self.qkv.iter().zip([&mut *q, &mut *k, &mut *v]) {
            pass.conv(layer, dims, a, to)?;
        }
        pass.backend.spatial_attention(dims, q, k, v, p, o)?;
        pass.conv(&self.proj_out, dims, o, y)?;
        pass.backend.add(x, y, dims.len())
    }

    pub(super) fn backward<B: TokenizerOps>(
        &self,
        pass: &mut Backward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &Saved<B>,
        space: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let ([a, q, k, v, o, p, ..], [stats, ..]) = (&saved.maps[..], &saved.stats[..]) else {
            return Err(too_few("trace"));
        };
        // `da` holds the gradient of the attention output and, once that has been used, the
        // gradient of `a`.
        let Gradients { current, inner: [da, dq, dk, dv], .. } = space;
        let [to_q, to_k, to_v] = &self.qkv;
        pass.conv(&self.proj_out, dims, current, o, Some(da))?;
        pass.backend.spatial_attention_backward(dims, da, q, k, v, p, dq, dk, dv)?;
        pass.conv(to_q, dims, dq, a, Some(da))?;
        for (layer, gradient) in [(to_k, dk), (to_v, dv)] {
            pass.conv(layer, dims, gradient, a, Some(dq))?;
            pass.backend.add(dq, da, dims.len())?;
        }
        pass.norm(self.norm, dims, da, (x, stats), Write::Accumulate, current)
    }
}
