//! Gradients of the convolution.

use super::plan::Plan;
use super::{BAND, pack, pointwise};
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::ops::conv_kernel::{Correlate, CorrelateWeights, ROWS, with_offsets};
use crate::simd::{Shared, carve, sum1, vectorized, with_scratch};
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
    if let Some(dx) = dx {
        input_gradient(d, &dy[..d.batch * y_sample], weight, &mut dx[..d.batch * x_sample]);
    }
    weight_gradient(d, &dy[..d.batch * y_sample], &x[..d.batch * x_sample], dweight, dbias);
}

/// `dx[b, inputs, h, w]`, each sample by itself and band by band.
fn input_gradient<T: Element>(d: ConvDims, dy: &[T], weight: &[T], dx: &mut [T]) {
    let (x_sample, y_sample) = (dx.len() / d.batch, dy.len() / d.batch);
    let apart = d.batch < rayon::current_num_threads();
    let samples = dx.par_chunks_mut(x_sample).zip(dy.par_chunks(y_sample));
    if pointwise(d) {
        let area = d.height * d.width;
        let w = matrix(weight, d.outputs, d.inputs);
        return samples.for_each(|(dx, dy)| {
            let dx = matrix_mut(dx, d.inputs, area);
            matmul(T::one(), w.t(), matrix(dy, d.outputs, area), Onto::Nothing, dx, apart);
        });
    }
    let whole = Plan::new(d);
    let band = whole.gradient_band(BAND);
    let packed_len = d.inputs.div_ceil(ROWS) * d.outputs * band.taps() * ROWS;
    with_offsets(|offsets| {
        with_scratch(packed_len, |packed: &mut [T]| {
            pack_transposed(band, weight, packed, offsets);
            let (packed, offsets) = (&*packed, &offsets[..]);
            samples.for_each(|(dx, dy)| {
                let dx = Shared::new(dx);
                (0..whole.qh.div_ceil(band.qh)).into_par_iter().for_each(|number| {
                    band_backward(band, number * band.qh, dy, packed, offsets, &dx);
                });
            });
        });
    });
}

/// Gradients of the weights and biases, in groups of samples.
fn weight_gradient<T: Element>(d: ConvDims, dy: &[T], x: &[T], dweight: &mut [T], dbias: &mut [T]) {
    let (x_sample, y_sample) = (x.len() / d.batch, dy.len() / d.batch);
    let plan = Plan::new(d);
    let partial = dweight.len() + dbias.len();
    let groups = d.batch.div_ceil(SAMPLES_PER_PARTIAL);
    // Fewer groups than threads: the threads share the outputs of each group.
    let apart = groups < rayon::current_num_threads();
    with_offsets(|offsets| {
        with_scratch(groups * partial, |sums: &mut [T]| {
            sums.fill(T::zero());
            plan.x_offsets(offsets);
            let offsets = &offsets[..];
            let groups = sums
                .par_chunks_mut(partial)
                .zip(x.par_chunks(SAMPLES_PER_PARTIAL * x_sample))
                .zip(dy.par_chunks(SAMPLES_PER_PARTIAL * y_sample));
            groups.for_each(|((sums, x), dy)| {
                let (dw, db) = sums.split_at_mut(dweight.len());
                add_bias_gradient(dy, plan.oh * plan.ow, db);
                match pointwise(d) {
                    true => pointwise_weights(d, dy, x, dw, apart),
                    false => group_weights(plan, dy, x, offsets, dw, apart),
                }
            });
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
    vectorized!({
        for (plane, dy) in dy.chunks_exact(area).enumerate() {
            dbias[plane % outputs] += sum1(dy, |v| v);
        }
    });
}

fn pointwise_weights<T: Element>(d: ConvDims, dy: &[T], x: &[T], dw: &mut [T], apart: bool) {
    let area = d.height * d.width;
    for (dy, x) in dy.chunks_exact(d.outputs * area).zip(x.chunks_exact(d.inputs * area)) {
        let (dy, x) = (matrix(dy, d.outputs, area), matrix(x, d.inputs, area));
        matmul(T::one(), dy, x.t(), Onto::Itself, matrix_mut(dw, d.outputs, d.inputs), apart);
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

/// Weight gradients of one group of samples; [`ROWS`] outputs at a time if these are to be computed
/// `apart`.
fn group_weights<T: Element>(
    plan: Plan,
    dy: &[T],
    x: &[T],
    offsets: &[usize],
    dw: &mut [T],
    apart: bool,
) {
    let d = plan.d;
    let (x_sample, y_sample) = (d.inputs * d.height * d.width, d.outputs * plan.oh * plan.ow);
    let (samples, len) = (x.len() / x_sample, plan.out_len());
    let sizes = [samples * plan.x_len(), samples * d.outputs * len];
    with_scratch(sizes.iter().sum(), |scratch: &mut [T]| {
        let [xs, dys] = carve(scratch, sizes);
        for (x, to) in x.chunks_exact(x_sample).zip(xs.chunks_exact_mut(plan.x_len())) {
            plan.pad_input(x, to);
        }
        for (dy, to) in dy.chunks_exact(y_sample).zip(dys.chunks_exact_mut(d.outputs * len)) {
            plan.pad_gradient(dy, to);
        }
        let (xs, dys) = (&*xs, &*dys);
        let together = if apart { ROWS } else { d.outputs };
        dw.par_chunks_mut(together * offsets.len()).enumerate().for_each(|(block, dw)| {
            let op = CorrelateWeights {
                dy: dys,
                dy_first: block * together * len,
                dy_plane: len,
                dy_sample: d.outputs * len,
                x: xs,
                x_sample: plan.x_len(),
                offsets,
                len,
                samples,
            };
            T::correlate_weights(op, dw);
        });
    });
}

/// Computes the rows of dx whose phase rows are the plan's band from `first` on.
fn band_backward<T: Element>(
    plan: Plan,
    first: usize,
    dy: &[T],
    packed: &[T],
    offsets: &[usize],
    dx: &Shared<'_, T>,
) {
    let ConvDims { inputs, outputs, height, width, stride, pad_before, .. } = plan.d;
    let row = |phase_row: usize| (phase_row * stride).saturating_sub(pad_before).min(height);
    let rows = row(first)..row(first + plan.qh);
    let (len, dy_len) = (plan.dx_len(), outputs * plan.dy_plane());
    with_scratch(dy_len + ROWS * len, |scratch: &mut [T]| {
        let [planes, out] = carve(scratch, [dy_len, ROWS * len]);
        plan.pad_gradient_band(dy, first, planes);
        let mut seen = 0;
        for_phases(plan, |a, b, taps, at| {
            let inner = outputs * taps.count();
            let offsets = &offsets[seen..seen + inner];
            seen += inner;
            for block in 0..inputs.div_ceil(ROWS) {
                let channels = block * ROWS..inputs.min((block + 1) * ROWS);
                let weights = &packed[at + block * inner * ROWS..][..inner * ROWS];
                let wanted = channels.len();
                T::correlate(Correlate { weights, offsets, planes, len, rows: wanted }, out);
                for (c, from) in channels.zip(out.chunks_exact(len)) {
                    let place = (c * height + rows.start) * width;
                    // SAFETY: the band's rows of one input, which no other task writes.
                    let dx = unsafe { dx.part(place, rows.len() * width) };
                    unpad(plan, (a, b), first, rows.start, from, dx);
                }
            }
        });
    });
}

/// Copies the positions of phase (a, b) that are not padding to the rows of dx from `row` on;
/// `from` holds the phase rows from `first` on.
fn unpad<T: Element>(
    plan: Plan,
    (a, b): (usize, usize),
    first: usize,
    row: usize,
    from: &[T],
    dx: &mut [T],
) {
    let ConvDims { width, stride: s, pad_before: pad, .. } = plan.d;
    for (y, to) in (row..).zip(dx.chunks_exact_mut(width)) {
        let at = y + pad;
        if at % s != a {
            continue;
        }
        let line = &from[(at / s - first) * plan.qw..][..plan.qw];
        if s == 1 {
            to.copy_from_slice(&line[pad..][..width]);
            continue;
        }
        for (x, to) in to.iter_mut().enumerate() {
            if (x + pad) % s == b {
                *to = line[(x + pad) / s];
            }
        }
    }
}
