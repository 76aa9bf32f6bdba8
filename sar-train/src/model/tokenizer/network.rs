//! A chain of layers, run forward and backward over memory allocated once.

use super::layer::{Backward, Forward, Kept, Layer, too_few};
use sar_math::backend::{Buffers, MapDims, ShapeError, TokenizerOps};

/// Encoder or decoder: a chain of layers.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) layers: Vec<Layer>,
    pub(super) inputs: usize,
}

/// What the forward of one layer keeps for its backward.
pub(super) struct Saved<B: Buffers> {
    pub maps: Vec<B::Activation>,
    pub stats: Vec<B::Accum>,
}

/// Memory of a chain: every layer's input and what it keeps, or, if no backward follows, two
/// alternating maps and one layer's worth of the rest.
pub struct Trace<B: Buffers> {
    maps: Vec<B::Activation>,
    saved: Vec<Saved<B>>,
    /// Dimensions of every layer's input and of the output, in the last forward.
    dims: Vec<MapDims>,
    keeps: bool,
}

/// Gradients on their way back through a chain.
pub struct Gradients<B: Buffers> {
    /// Gradient of the last layer's output before a backward, of the first layer's input after it.
    pub current: B::Activation,
    /// A buffer as large as `current`, for callers to swap with it between two chains.
    pub other: B::Activation,
    pub(super) inner: [B::Activation; 4],
}

/// Returns the map with index `from`, and that with index `to` for writing; the indices differ.
fn pair<T>(maps: &mut [T], from: usize, to: usize) -> (&T, &mut T) {
    if from < to {
        let (low, high) = maps.split_at_mut(to);
        (&low[from], &mut high[0])
    } else {
        let (low, high) = maps.split_at_mut(from);
        (&high[0], &mut low[to])
    }
}

impl Network {
    fn dims(&self, input: MapDims) -> Vec<MapDims> {
        let mut all = vec![input];
        let mut x = input;
        for layer in &self.layers {
            x = layer.output(x);
            all.push(x);
        }
        all
    }

    /// Returns the dimensions of the output for `batch` maps of `height`×`width`.
    pub fn output(&self, batch: usize, height: usize, width: usize) -> MapDims {
        let input = MapDims { batch, channels: self.inputs, height, width };
        self.layers.iter().fold(input, |x, layer| layer.output(x))
    }

    /// Allocates memory for up to `batch` maps of up to `height`×`width`; `keeps` if a backward
    /// will follow.
    ///
    /// # Errors
    /// Out of memory.
    pub fn trace<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        height: usize,
        width: usize,
        keeps: bool,
    ) -> Result<Trace<B>, B::Error> {
        let dims = self.dims(MapDims { batch, channels: self.inputs, height, width });
        let mut kept: Vec<_> = self.layers.iter().zip(&dims).map(|(l, &d)| l.kept(d)).collect();
        let mut map_lens: Vec<usize> = dims.iter().map(|d| d.len()).collect();
        if !keeps {
            map_lens = vec![map_lens.iter().copied().max().unwrap_or(0); 2];
            kept = vec![in_turns(&kept)];
        }
        let maps = map_lens.iter().map(|&n| backend.activation(n)).collect::<Result<_, _>>()?;
        let mut saved = Vec::with_capacity(kept.len());
        for (maps, stats) in kept {
            saved.push(Saved {
                maps: maps.iter().map(|&n| backend.activation(n)).collect::<Result<_, _>>()?,
                stats: stats.iter().map(|&n| backend.accum(n)).collect::<Result<_, _>>()?,
            });
        }
        Ok(Trace { maps, saved, dims, keeps })
    }

    /// Number of elements of the largest map or kept map, the size that [`Gradients`] needs.
    pub(super) fn largest(&self, batch: usize, height: usize, width: usize) -> usize {
        let dims = self.dims(MapDims { batch, channels: self.inputs, height, width });
        // The probabilities of attention, the sixth kept map, need no gradient buffer.
        let inner = self
            .layers
            .iter()
            .zip(&dims)
            .flat_map(|(l, &d)| l.kept(d).0.into_iter().take(5).collect::<Vec<_>>());
        dims.iter().map(|d| d.len()).chain(inner).max().unwrap_or(0)
    }

    /// Number of elements of the largest map that a pass over one map of `height`×`width`
    /// allocates.
    pub(super) fn largest_map(&self, height: usize, width: usize) -> usize {
        let dims = self.dims(MapDims { batch: 1, channels: self.inputs, height, width });
        let kept = self.layers.iter().zip(&dims).flat_map(|(l, &d)| l.kept(d).0);
        dims.iter().map(|d| d.len()).chain(kept).max().unwrap_or(0)
    }

    /// Runs the chain on `trace.input_mut()`, which holds `batch` maps of `height`×`width`. The
    /// result is in `trace.output()` and has the returned dimensions. Allocates nothing.
    ///
    /// # Errors
    /// Shape, if the trace is too small.
    pub fn forward<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        batch: usize,
        height: usize,
        width: usize,
        trace: &mut Trace<B>,
    ) -> Result<MapDims, B::Error> {
        ShapeError::equal("tokenizer", "layers", self.layers.len() + 1, trace.dims.len())?;
        let mut dims = MapDims { batch, channels: self.inputs, height, width };
        for (i, layer) in self.layers.iter().enumerate() {
            trace.dims[i] = dims;
            let (from, to) = (trace.map_index(i), trace.map_index(i + 1));
            let at = if trace.keeps { i } else { 0 };
            let saved = trace.saved.get_mut(at).ok_or_else(|| too_few("trace"))?;
            let (x, y) = pair(&mut trace.maps, from, to);
            layer.forward(&Forward { backend, params }, dims, x, saved, y)?;
            dims = layer.output(dims);
        }
        trace.dims[self.layers.len()] = dims;
        Ok(dims)
    }

    /// Backward of the last [`Network::forward`]: replaces the output's gradient in `space.current`
    /// by the input's, if that is asked for. Parameter gradients accumulate.
    ///
    /// # Errors
    /// Shape, or a trace that keeps nothing.
    pub fn backward<B: TokenizerOps>(
        &self,
        backend: &B,
        params: &B::Params,
        trace: &Trace<B>,
        input_gradient: bool,
        space: &mut Gradients<B>,
        grads: &mut B::Accum,
    ) -> Result<(), B::Error> {
        ShapeError::equal("tokenizer", "layers kept", self.layers.len(), trace.saved.len())?;
        let mut pass = Backward { backend, params, grads };
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let needed = input_gradient || i > 0;
            let (dims, x, saved) = (trace.dims[i], &trace.maps[i], &trace.saved[i]);
            layer.backward(&mut pass, dims, x, saved, needed, space)?;
        }
        Ok(())
    }
}

/// Returns what all layers can use in turn: the largest of what any of them keeps.
fn in_turns(kept: &[Kept]) -> Kept {
    let mut all = (vec![], vec![]);
    for (maps, stats) in kept {
        merge_largest(&mut all.0, maps);
        merge_largest(&mut all.1, stats);
    }
    all
}

fn merge_largest(all: &mut Vec<usize>, lens: &[usize]) {
    all.resize(all.len().max(lens.len()), 0);
    for (to, &len) in all.iter_mut().zip(lens) {
        *to = (*to).max(len);
    }
}

impl<B: Buffers> Trace<B> {
    fn map_index(&self, layer: usize) -> usize {
        if self.keeps { layer } else { layer % 2 }
    }

    /// Returns the buffer that the chain reads its input from.
    pub fn input_mut(&mut self) -> &mut B::Activation {
        &mut self.maps[0]
    }

    /// Returns the input.
    pub fn input(&self) -> &B::Activation {
        &self.maps[0]
    }

    /// Returns the output of the last forward.
    pub fn output(&self) -> &B::Activation {
        &self.maps[self.map_index(self.dims.len() - 1)]
    }
}
