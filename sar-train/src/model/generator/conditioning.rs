//! What a pass computes once for all tokens of a sample: class vectors, modulation, positions.

use super::{Generator, Places};
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers, LinearDims};

/// Class vectors, the modulation that follows from them, and the positions of a schedule.
pub(crate) struct Conditioning<B: Buffers> {
    /// Class vectors `[b, c]`, and their SiLU.
    pub(crate) cond: B::Activation,
    pub(crate) silu_cond: B::Activation,
    /// All modulation vectors `[b, (6d+2)c]`.
    pub(crate) ada: B::Activation,
    /// Positions `[l, c]`.
    pub(crate) pos_lc: B::Activation,
    pub(crate) places: Option<Places<B>>,
}

impl<B: Buffers> Conditioning<B> {
    /// Allocates memory for `batch` samples of `tokens` tokens.
    pub(crate) fn new(
        backend: &B,
        generator: &Generator,
        batch: usize,
        tokens: usize,
    ) -> Result<Self, B::Error> {
        let c = generator.shape().width;
        Ok(Self {
            cond: backend.activation(batch * c)?,
            silu_cond: backend.activation(batch * c)?,
            ada: backend.activation(batch * generator.ada_stride())?,
            pos_lc: backend.activation(tokens * c)?,
            places: generator.places(backend, tokens)?,
        })
    }
}

impl Generator {
    /// Computes class vectors and modulation of `batch` samples with these labels, and the positions of a schedule.
    pub(crate) fn condition<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        batch: usize,
        labels: &B::Ids,
        schedule: &ScaleSchedule,
        into: &mut Conditioning<B>,
    ) -> Result<(), B::Error> {
        let Conditioning { cond, silu_cond, ada, pos_lc, places } = into;
        let c = self.shape().width;
        backend.class_embedding(batch, c, labels, params, self.class_emb, cond)?;
        backend.silu(batch * c, cond, silu_cond)?;
        let dims = LinearDims { rows: batch, inputs: c, outputs: self.ada_stride() };
        backend.linear(dims, silu_cond, params, self.ada, ada)?;
        self.position(backend, params, schedule, places, pos_lc)
    }
}
