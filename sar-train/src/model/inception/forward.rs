//! From an image to features. Channels are the innermost dimension of maps, so that a convolution
//! is one matrix product of rows, and the outputs of branches lie side by side.

use super::network::{Conv, Node, SPATIAL, WINDOW};
use rayon::prelude::*;
use sar_backend_cpu::{Buffer, CpuBackend, CpuError};
use sar_math::backend::{Buffers, Linear, LinearDims, TransformerOps};

/// Number of elements of the rows multiplied at a time: with their products they fit into a core's
/// own cache.
const PIECE: usize = 1 << 18;

/// Number of channels of [`SPATIAL`] that are used, as published: 7 of them make 2,023 features.
pub(super) const SPATIAL_CHANNELS: usize = 7;
/// Rows and columns of the [`SPATIAL`] map.
pub(super) const SPATIAL_SIDE: usize = 17;

/// A map `[batch, height, width, channels]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Map {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) values: Vec<f32>,
}

impl Map {
    /// Creates a map of zeros.
    pub(super) fn new(batch: usize, height: usize, width: usize, channels: usize) -> Self {
        let values = vec![0.0; batch * height * width * channels];
        Self { batch, height, width, channels, values }
    }

    /// Returns the channels at a position of an image.
    fn at(&self, image: usize, y: usize, x: usize) -> &[f32] {
        let first = ((image * self.height + y) * self.width + x) * self.channels;
        &self.values[first..][..self.channels]
    }

    /// Returns image, row and column of the i-th position.
    fn place(&self, i: usize) -> (usize, usize, usize) {
        let (line, x) = (i / self.width, i % self.width);
        (line / self.height, line % self.height, x)
    }
}

/// Sliding windows over a map: the positions that each output sees.
#[derive(Clone, Copy)]
struct Windows {
    kernel: (usize, usize),
    stride: usize,
    pad: (usize, usize),
}

impl Windows {
    /// Number of rows and columns of windows.
    fn of(self, map: &Map) -> (usize, usize) {
        let along = |n: usize, kernel: usize, pad: usize| (n + 2 * pad - kernel) / self.stride + 1;
        (along(map.height, self.kernel.0, self.pad.0), along(map.width, self.kernel.1, self.pad.1))
    }

    /// Returns the channels under each tap of the window at (y, x) of an image, row by row; `None`
    /// in the border.
    fn taps(
        self,
        map: &Map,
        (image, y, x): (usize, usize, usize),
    ) -> impl Iterator<Item = Option<&[f32]>> {
        let Self { kernel: (rows, columns), stride, pad } = self;
        (0..rows).flat_map(move |ky| {
            let row = (y * stride + ky).checked_sub(pad.0).filter(|&row| row < map.height);
            (0..columns).map(move |kx| {
                let column = (x * stride + kx).checked_sub(pad.1).filter(|&c| c < map.width);
                Some(map.at(image, row?, column?))
            })
        })
    }
}

/// A pass through the network with its weights.
pub(super) struct Pass<'a> {
    pub(super) params: &'a Buffer<f32>,
    /// The first channels of the [`SPATIAL`] map, once it has been computed.
    pub(super) spatial: Vec<f32>,
}

impl Pass<'_> {
    /// Runs a map through a part of the network.
    pub(super) fn run(&mut self, node: &Node, map: &Map) -> Result<Map, CpuError> {
        match node {
            Node::Conv(conv) => {
                let out = convolve(self.params, conv, map)?;
                if conv.name == SPATIAL {
                    let first = |all: &[f32]| all[..SPATIAL_CHANNELS.min(all.len())].to_vec();
                    self.spatial = out.values.chunks_exact(out.channels).flat_map(first).collect();
                }
                Ok(out)
            }
            Node::Max { stride, pad } => Ok(largest(map, *stride, *pad)),
            Node::Mean => Ok(means(map)),
            Node::Chain(nodes) => {
                let mut nodes = nodes.iter();
                let Some(first) = nodes.next() else { return Ok(map.clone()) };
                let first = self.run(first, map)?;
                nodes.try_fold(first, |map, node| self.run(node, &map))
            }
            Node::Join(nodes) => {
                let parts = nodes.iter().map(|node| self.run(node, map));
                Ok(side_by_side(&parts.collect::<Result<Vec<_>, _>>()?))
            }
        }
    }
}

/// Convolution, bias and ReLU.
fn convolve(params: &Buffer<f32>, conv: &Conv, map: &Map) -> Result<Map, CpuError> {
    let windows = Windows { kernel: conv.kernel, stride: conv.stride, pad: conv.pad };
    let (height, width) = windows.of(map);
    let mut out = Map::new(map.batch, height, width, conv.outputs);
    let (terms, outputs) = (conv.terms(), conv.outputs);
    let rows = (PIECE / terms).max(1);
    let layer = Linear { weight: conv.weight, bias: Some(conv.bias) };
    let backend = CpuBackend::<f32>::new();
    let shape = Map { values: Vec::new(), ..out };
    let scratch = || (backend.activation(rows * terms), backend.activation(rows * outputs));
    out.values.par_chunks_mut(rows * outputs).enumerate().try_for_each_init(
        scratch,
        |scratch, (piece, to)| {
            let (Ok(x), Ok(y)) = scratch else {
                return Err(CpuError::OutOfMemory { bytes: 4 * rows * (terms + outputs) });
            };
            let count = to.len() / outputs;
            for (i, x) in x.as_mut_slice().chunks_exact_mut(terms).take(count).enumerate() {
                let taps = windows.taps(map, shape.place(piece * rows + i));
                for (x, tap) in x.chunks_exact_mut(conv.inputs).zip(taps) {
                    match tap {
                        Some(tap) => x.copy_from_slice(tap),
                        None => x.fill(0.0),
                    }
                }
            }
            backend.linear(
                LinearDims { rows: count, inputs: terms, outputs },
                x,
                params,
                layer,
                y,
            )?;
            for (to, &y) in to.iter_mut().zip(y.as_slice()) {
                // NaN is kept, so that it is reported.
                *to = if y < 0.0 { 0.0 } else { y };
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// Pools every window: starts from the channels of the first tap inside the map and calls `each`
/// with those of every further one. Also returns the number of taps inside the map.
fn pool(map: &Map, windows: Windows, each: impl Fn(&mut [f32], &[f32]) + Sync) -> (Map, Vec<f32>) {
    let (height, width) = windows.of(map);
    let mut out = Map::new(map.batch, height, width, map.channels);
    let mut seen = vec![0.0; map.batch * height * width];
    let shape = Map { values: Vec::new(), ..out };
    let positions = out.values.par_chunks_exact_mut(map.channels).zip(&mut seen).enumerate();
    positions.for_each(|(i, (to, seen))| {
        for tap in windows.taps(map, shape.place(i)).flatten() {
            match *seen == 0.0 {
                true => to.copy_from_slice(tap),
                false => each(to, tap),
            }
            *seen += 1.0;
        }
    });
    (out, seen)
}

fn largest(map: &Map, stride: usize, pad: usize) -> Map {
    let windows = Windows { kernel: (WINDOW, WINDOW), stride, pad: (pad, pad) };
    let (out, _) = pool(map, windows, |to, tap| {
        for (to, &v) in to.iter_mut().zip(tap) {
            // NaN is kept here, too.
            *to = if *to < v || v.is_nan() { v } else { *to };
        }
    });
    out
}

fn means(map: &Map) -> Map {
    let windows = Windows { kernel: (WINDOW, WINDOW), stride: 1, pad: (WINDOW / 2, WINDOW / 2) };
    let (mut out, seen) = pool(map, windows, |to, tap| {
        for (to, &v) in to.iter_mut().zip(tap) {
            *to += v;
        }
    });
    for (to, seen) in out.values.chunks_exact_mut(map.channels).zip(seen) {
        to.iter_mut().for_each(|v| *v /= seen);
    }
    out
}

/// Concatenates maps of the same size along their channels.
fn side_by_side(parts: &[Map]) -> Map {
    let channels = parts.iter().map(|part| part.channels).sum();
    let Some(&Map { batch, height, width, .. }) = parts.first() else {
        return Map::new(0, 0, 0, 0);
    };
    let mut out = Map::new(batch, height, width, channels);
    out.values.par_chunks_exact_mut(channels).enumerate().for_each(|(i, mut to)| {
        for part in parts {
            let (own, rest) = to.split_at_mut(part.channels);
            own.copy_from_slice(&part.values[i * part.channels..][..part.channels]);
            to = rest;
        }
    });
    out
}

/// Returns the mean of every channel over all positions of an image, `[batch, channels]`.
pub(super) fn mean_of_positions(map: &Map) -> Vec<f32> {
    let positions = map.height * map.width;
    let mut out = Vec::with_capacity(map.batch * map.channels);
    for image in map.values.chunks_exact(positions * map.channels) {
        let mut sums = vec![0.0f64; map.channels];
        for position in image.chunks_exact(map.channels) {
            sums.iter_mut().zip(position).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        out.extend(sums.iter().map(|sum| (sum / positions as f64) as f32));
    }
    out
}
