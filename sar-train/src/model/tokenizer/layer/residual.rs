//! A residual block of two convolutions.

use super::super::network::{Gradients, Saved};
use super::pass::{Backward, ConvLayer, Forward};
use super::{Kept, stats_of, too_few, with_channels};
use sar_math::backend::{GroupNorm, MapDims, TokenizerOps, Write};

/// x + conv(silu(norm(conv(silu(norm(x)))))); the first x passes a 1×1 convolution if the channels
/// change.
#[derive(Clone, Debug)]
pub(in super::super) struct ResidualBlock {
    pub norm1: GroupNorm,
    pub conv1: ConvLayer,
    pub norm2: GroupNorm,
    pub conv2: ConvLayer,
    pub nin_shortcut: Option<ConvLayer>,
}

impl ResidualBlock {
    /// Returns the sizes of what is kept: the outputs of the first norm, the first convolution, the
    /// second norm and the shortcut.
    pub(super) fn kept(&self, x: MapDims) -> Kept {
        let out = with_channels(x, self.conv2.outputs).len();
        let shortcut = if self.nin_shortcut.is_some() { out } else { 0 };
        let stats = vec![stats_of(&self.norm1, x), stats_of(&self.norm2, x)];
        (vec![x.len(), out, out, shortcut], stats)
    }

    pub(super) fn forward<B: TokenizerOps>(
        &self,
        pass: &Forward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &mut Saved<B>,
        y: &mut B::Activation,
    ) -> Result<(), B::Error> {
        let ([a1, h, a2, shortcut, ..], [stats1, stats2, ..]) =
            (&mut saved.maps[..], &mut saved.stats[..])
        else {
            return Err(too_few("trace"));
        };
        let inner = with_channels(dims, self.conv1.outputs);
        pass.norm(self.norm1, dims, x, a1, stats1)?;
        pass.conv(&self.conv1, dims, a1, h)?;
        pass.norm(self.norm2, inner, h, a2, stats2)?;
        pass.conv(&self.conv2, inner, a2, y)?;
        match &self.nin_shortcut {
            Some(layer) => {
                pass.conv(layer, dims, x, shortcut)?;
                pass.backend.add(shortcut, y, inner.len())
            }
            None => pass.backend.add(x, y, inner.len()),
        }
    }

    pub(super) fn backward<B: TokenizerOps>(
        &self,
        pass: &mut Backward<'_, B>,
        dims: MapDims,
        x: &B::Activation,
        saved: &Saved<B>,
        space: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let ([a1, h, a2, ..], [stats1, stats2, ..]) = (&saved.maps[..], &saved.stats[..]) else {
            return Err(too_few("trace"));
        };
        let Gradients { current, other, inner: [da, dh, ..] } = space;
        let inner = with_channels(dims, self.conv1.outputs);
        pass.conv(&self.conv2, inner, current, a2, Some(da))?;
        if let Some(layer) = &self.nin_shortcut {
            pass.conv(layer, dims, current, x, Some(other))?;
            core::mem::swap(current, other);
        }
        pass.norm(self.norm2, inner, da, (h, stats2), Write::Overwrite, dh)?;
        pass.conv(&self.conv1, dims, dh, a1, Some(da))?;
        pass.norm(self.norm1, dims, da, (x, stats1), Write::Accumulate, current)
    }
}
