//! Gradients of the convolution.

use super::plan::Plan;
use super::{pack, pointwise};
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::ops::conv_kernel::{Correlate, CorrelateWeights, ROWS, with_offsets};
use crate::simd::{carve, sum1, vectorized, with_scratch};
use rayon::prelude::*;
use sar_math::backend::ConvDims;

/// Samples whose weight gradients are summed one after the other; fixed, so that the order of the
/// whole sum does not depend on the number of threads.
const SAMPLES_PER_PARTIAL: usize = 4;

/// Gradients of [`forward`](super::forward): `dx` overwritten where asked for, `dweight` and `dbias` added to.
pub(crate) fn backward<T: Element>(
    d: ConvDims,
    dy: &[T],
    x: &[T],
    weight: &[T],
    dx: Option<&mut [T]>,
    dweight: &mut [T],
    dbias: &mut [T],
) {
    let (oh, ow) = d.output();
    let (x_sample, y_sample) = (d.inputs * d.height * d.width, d.outputs * oh * ow);
    if x_sample == 0 || y_sample == 0 || d.batch == 0 {
        if let Some(dx) = dx {
            dx.fill(T::zero());
        }
        return;
    }
    let plan = Plan::new(d);
    let point = pointwise(d);
    let partial = dweight.len() + dbias.len();
    let sums_len = d.batch.div_ceil(SAMPLES_PER_PARTIAL) * partial;
    let packed_len = if dx.is_some() && !point {
        d.inputs.div_ceil(ROWS) * d.outputs * plan.taps() * ROWS
    } else {
        0
    };
    with_offsets(|offsets| {
        with_scratch(sums_len + packed_len, |scratch: &mut [T]| {
            let [sums, packed] = carve(scratch, [sums_len, packed_len]);
            sums.fill(T::zero());
            if !point {
                plan.x_offsets(offsets);
            }
            if packed_len > 0 {
                pack_transposed(plan, weight, packed, offsets);
            }
            let (packed, offsets) = (&*packed, &offsets[..]);
            let group = |g: usize, sums: &mut [T], dx: Option<&mut [T]>| {
                let first = g * SAMPLES_PER_PARTIAL;
                let samples = SAMPLES_PER_PARTIAL.min(d.batch - first);
                let x = &x[first * x_sample..][..samples * x_sample];
                let dy = &dy[first * y_sample..][..samples * y_sample];
                let (dw, db) = sums.split_at_mut(dweight.len());
                add_bias_gradient(dy, oh * ow, db);
                if point {
                    pointwise_backward(d, dy, x, weight, dx, dw);
                } else {
                    group_backward(plan, dy, x, packed, offsets, dx, dw);
                }
            };
            let sums_of = sums.par_chunks_mut(partial);
            match dx {
                Some(dx) => sums_of
                    .zip(dx.par_chunks_mut(SAMPLES_PER_PARTIAL * x_sample))
                    .enumerate()
                    .for_each(|(g, (sums, dx))| group(g, sums, Some(dx))),
                None => sums_of.enumerate().for_each(|(g, sums)| group(g, sums, None)),
            }
            for sums in sums.chunks_exact(partial) {
                let (dw, db) = sums.split_at(dweight.len());
                add(dw, dweight);
                add(db, dbias);
            }
        });
    });
}

/// Weights with inputs and outputs exchanged, phase by phase, and how far each looks back in a padded
/// output gradient.
fn pack_transposed<T: Element>(
    plan: Plan,
    weight: &[T],
    packed: &mut [T],
    offsets: &mut Vec<usize>,
) {
    let d = plan.d;
    for_phases(plan, |a, b, taps, first| {
        let inner = d.outputs * taps.count();
        let to = &mut packed[first..][..d.inputs.div_ceil(ROWS) * inner * ROWS];
        let at = |c: usize, k: usize| {
            let (o, ty, tx) = taps.place(k);
            let (ky, kx) = (a + ty * d.stride, b + tx * d.stride);
            weight[((o * d.inputs + c) * d.kernel + ky) * d.kernel + kx]
        };
        pack(d.inputs, inner, at, to);
        offsets.extend((0..inner).map(|k| {
            let (o, ty, tx) = taps.place(k);
            o * plan.dy_plane() + plan.lead() - ty * plan.qw - tx
        }));
    });
}

fn add<T: Element>(from: &[T], to: &mut [T]) {
    for (to, &v) in to.iter_mut().zip(from) {
        *to += v;
    }
}

/// Adds the sum of each output's plane, over samples.
fn add_bias_gradient<T: Element>(dy: &[T], area: usize, dbias: &mut [T]) {
    let outputs = dbias.len();
    vectorized(
        #[inline(always)]
        || {
            for (plane, dy) in dy.chunks_exact(area).enumerate() {
                dbias[plane % outputs] += sum1(dy, |v| v);
            }
        },
    );
}

fn pointwise_backward<T: Element>(
    d: ConvDims,
    dy: &[T],
    x: &[T],
    weight: &[T],
    mut dx: Option<&mut [T]>,
    dw: &mut [T],
) {
    let area = d.height * d.width;
    let (x_sample, y_sample) = (d.inputs * area, d.outputs * area);
    for (s, (dy, x)) in dy.chunks_exact(y_sample).zip(x.chunks_exact(x_sample)).enumerate() {
        let dy = matrix(dy, d.outputs, area);
        let dw = matrix_mut(dw, d.outputs, d.inputs);
        matmul(T::one(), dy, matrix(x, d.inputs, area).t(), Onto::Itself, dw, false);
        if let Some(dx) = dx.as_deref_mut() {
            let dx = matrix_mut(&mut dx[s * x_sample..][..x_sample], d.inputs, area);
            let w = matrix(weight, d.outputs, d.inputs);
            matmul(T::one(), w.t(), dy, Onto::Nothing, dx, false);
        }
    }
}

/// Taps of one phase: those whose row and column are congruent to the phase's.
#[derive(Clone, Copy)]
struct Taps {
    rows: usize,
    cols: usize,
}

impl Taps {
    fn new(plan: Plan, a: usize, b: usize) -> Self {
        let count = |phase: usize| plan.d.kernel.saturating_sub(phase).div_ceil(plan.d.stride);
        Self { rows: count(a), cols: count(b) }
    }

    fn count(self) -> usize {
        self.rows * self.cols
    }

    /// Output, row and column of the k-th weight.
    fn place(self, k: usize) -> (usize, usize, usize) {
        let tap = k % self.count();
        (k / self.count(), tap / self.cols, tap % self.cols)
    }
}

/// Calls `f(a, b, taps, first)` for every phase, `first` being where its packed weights begin.
fn for_phases(plan: Plan, mut f: impl FnMut(usize, usize, Taps, usize)) {
    let mut first = 0;
    for a in 0..plan.d.stride {
        for b in 0..plan.d.stride {
            let taps = Taps::new(plan, a, b);
            f(a, b, taps, first);
            first += plan.d.inputs.div_ceil(ROWS) * plan.d.outputs * taps.count() * ROWS;
        }
    }
}

/// Gradients of one group of samples.
fn group_backward<T: Element>(
    plan: Plan,
    dy: &[T],
    x: &[T],
    packed: &[T],
    offsets: &[usize],
    dx: Option<&mut [T]>,
    dw: &mut [T],
) {
    let d = plan.d;
    let columns = d.inputs * plan.taps();
    let (x_sample, y_sample) = (d.inputs * d.height * d.width, d.outputs * plan.oh * plan.ow);
    let samples = x.len() / x_sample;
    let dy_len = d.outputs * plan.dy_plane();
    let sizes = [samples * plan.x_len(), samples * dy_len, ROWS * plan.dx_len()];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [xs, dys, out] = carve(scratch, sizes);
        for (x, to) in x.chunks_exact(x_sample).zip(xs.chunks_exact_mut(plan.x_len())) {
            plan.pad_input(x, to);
        }
        for (dy, to) in dy.chunks_exact(y_sample).zip(dys.chunks_exact_mut(dy_len)) {
            plan.pad_gradient(dy, to);
        }
        let op = CorrelateWeights {
            dy: dys,
            dy_first: plan.lead(),
            dy_plane: plan.dy_plane(),
            dy_sample: dy_len,
            x: xs,
            x_sample: plan.x_len(),
            offsets: &offsets[..columns],
            len: plan.out_len(),
            samples,
        };
        T::correlate_weights(op, dw);
        if let Some(dx) = dx {
            for (dy, dx) in dys.chunks_exact(dy_len).zip(dx.chunks_exact_mut(x_sample)) {
                input_gradient(plan, dy, packed, &offsets[columns..], dx, out);
            }
        }
    });
}

fn input_gradient<T: Element>(
    plan: Plan,
    dy: &[T],
    packed: &[T],
    offsets: &[usize],
    dx: &mut [T],
    out: &mut [T],
) {
    let d = plan.d;
    let area = d.height * d.width;
    let mut seen = 0;
    for_phases(plan, |a, b, taps, first| {
        let inner = d.outputs * taps.count();
        let offsets = &offsets[seen..seen + inner];
        seen += inner;
        for (block, dx) in dx.chunks_mut(ROWS * area).enumerate() {
            let rows = dx.len() / area;
            let weights = &packed[first + block * inner * ROWS..][..inner * ROWS];
            let len = plan.dx_len();
            T::correlate(Correlate { weights, offsets, planes: dy, len, rows }, out);
            for (r, dx) in dx.chunks_exact_mut(area).enumerate() {
                unpad(plan, a, b, &out[r * len..][..len], dx);
            }
        }
    });
}

/// Takes the positions of phase (a, b) that are not padding.
fn unpad<T: Element>(plan: Plan, a: usize, b: usize, from: &[T], dx: &mut [T]) {
    let ConvDims { height, width, stride: s, pad_before: pad, .. } = plan.d;
    for y in 0..height {
        let at = y + pad;
        if at % s != a {
            continue;
        }
        let row = &from[(at / s) * plan.qw..][..plan.qw];
        let to = &mut dx[y * width..][..width];
        if s == 1 {
            to.copy_from_slice(&row[pad..][..width]);
            continue;
        }
        for (x, to) in to.iter_mut().enumerate() {
            if (x + pad) % s == b {
                *to = row[(x + pad) / s];
            }
        }
    }
}
