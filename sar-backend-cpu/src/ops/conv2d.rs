//! Two-dimensional convolution without copies per tap.
//!
//! A sample's input is padded into planes, one for each of the `stride²` phases of its rows and
//! columns, all with the same row stride. What a tap sees is then such a plane, shifted, and the
//! convolution is one call of the register-tiled kernel per eight outputs. It works on a band of
//! rows at a time, whose planes lie together and stay in the cache for all outputs. The weight
//! gradient uses planes of the whole map; the input gradient is the same kernel, also band by band,
//! over the padded output gradient.

mod gradients;
mod plan;

pub(crate) use gradients::backward;

use super::conv_kernel::{Correlate, ROWS, with_offsets};
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::{Shared, carve, with_scratch};
use plan::Plan;
use rayon::prelude::*;
use sar_math::backend::ConvDims;

/// Elements of the planes of a band: together with the band's outputs and the weights of eight of
/// them, they fit a core's second-level cache. In the tests next to this file small maps have
/// several bands; in those through the backend they have one.
const BAND: usize = if cfg!(test) { 48 } else { 160 << 10 };

/// Whether the convolution is a matrix product of the maps as they lie in memory.
fn pointwise(d: ConvDims) -> bool {
    d.kernel == 1 && d.stride == 1 && d.pad_before == 0 && d.pad_after == 0
}

/// Rows of `weight` packed in blocks of [`ROWS`], zeros where a block has fewer.
fn pack<T: Element>(rows: usize, columns: usize, at: impl Fn(usize, usize) -> T, to: &mut [T]) {
    if columns == 0 {
        return;
    }
    for (block, to) in to.chunks_exact_mut(columns * ROWS).enumerate() {
        for (k, to) in to.chunks_exact_mut(ROWS).enumerate() {
            for (r, to) in to.iter_mut().enumerate() {
                let row = block * ROWS + r;
                *to = if row < rows { at(row, k) } else { T::zero() };
            }
        }
    }
}

/// `y[b, outputs, oh, ow]`.
pub(crate) fn forward<T: Element>(d: ConvDims, x: &[T], weight: &[T], bias: &[T], y: &mut [T]) {
    let (oh, ow) = d.output();
    let (x_sample, y_sample) = (d.inputs * d.height * d.width, d.outputs * oh * ow);
    if x_sample == 0 || y_sample == 0 {
        for (y, &bias) in y.chunks_exact_mut((oh * ow).max(1)).zip(bias.iter().cycle()) {
            y.fill(bias);
        }
        return;
    }
    // Fewer samples than threads: large images, of which one or two are processed at a time.
    let apart = x.len() / x_sample < rayon::current_num_threads();
    let samples = y.par_chunks_mut(y_sample).zip(x.par_chunks(x_sample));
    if pointwise(d) {
        let area = oh * ow;
        samples.for_each(|(y, x)| {
            for (y, &bias) in y.chunks_exact_mut(area).zip(bias) {
                y.fill(bias);
            }
            let w = matrix(weight, d.outputs, d.inputs);
            let y = matrix_mut(y, d.outputs, area);
            matmul(T::one(), w, matrix(x, d.inputs, area), Onto::Itself, y, apart);
        });
        return;
    }
    let plan = Plan::new(d).band(BAND);
    let columns = d.inputs * plan.taps();
    let blocks = d.outputs.div_ceil(ROWS);
    with_offsets(|offsets| {
        plan.x_offsets(offsets);
        with_scratch(blocks * columns * ROWS, |packed: &mut [T]| {
            pack(d.outputs, columns, |o, k| weight[o * columns + k], packed);
            let (packed, offsets) = (&*packed, &offsets[..]);
            samples.for_each(|(y, x)| {
                let y = Shared::new(y);
                (0..oh.div_ceil(plan.oh)).into_par_iter().for_each(|band| {
                    band_forward(plan, oh, band * plan.oh, x, packed, offsets, bias, &y);
                });
            });
        });
    });
}

/// Computes the rows of y from `first` on, as many as the plan's band has.
fn band_forward<T: Element>(
    plan: Plan,
    oh: usize,
    first: usize,
    x: &[T],
    packed: &[T],
    offsets: &[usize],
    bias: &[T],
    y: &Shared<'_, T>,
) {
    let (len, columns) = (plan.out_len(), offsets.len());
    let wanted = plan.oh.min(oh - first);
    with_scratch(plan.x_len() + ROWS * len, |scratch: &mut [T]| {
        let [planes, out] = carve(scratch, [plan.x_len(), ROWS * len]);
        plan.pad_band(x, first, planes);
        for (block, bias) in bias.chunks(ROWS).enumerate() {
            let weights = &packed[block * columns * ROWS..][..columns * ROWS];
            T::correlate(Correlate { weights, offsets, planes, len, rows: bias.len() }, out);
            for (r, &bias) in bias.iter().enumerate() {
                let at = ((block * ROWS + r) * oh + first) * plan.ow;
                // SAFETY: the band's rows of one output, which no other task writes.
                let y = unsafe { y.part(at, wanted * plan.ow) };
                for (j, y) in y.chunks_exact_mut(plan.ow).enumerate() {
                    let from = &out[r * len + j * plan.qw..][..plan.ow];
                    for (y, &v) in y.iter_mut().zip(from) {
                        *y = v + bias;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
