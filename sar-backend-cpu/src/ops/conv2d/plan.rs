//! Where things lie in padded planes.

use crate::Element;
use crate::ops::conv_kernel::LANES;
use sar_math::backend::ConvDims;

/// Where things lie in the padded planes.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) d: ConvDims,
    /// Rows and columns of y.
    pub(super) oh: usize,
    pub(super) ow: usize,
    /// Rows and columns of a phase plane.
    pub(super) qh: usize,
    pub(super) qw: usize,
    /// Furthest a tap reaches within its phase, in rows or columns.
    reach: usize,
}

impl Plan {
    pub(super) fn new(d: ConvDims) -> Self {
        let (oh, ow) = d.output();
        let pad = d.pad_before + d.pad_after;
        Self {
            d,
            oh,
            ow,
            qh: (d.height + pad).div_ceil(d.stride),
            qw: (d.width + pad).div_ceil(d.stride),
            reach: (d.kernel - 1) / d.stride,
        }
    }

    /// The plan of a band of y: as many rows, at least one, as give planes of about `elements`
    /// elements.
    pub(super) fn band(self, elements: usize) -> Self {
        let row = (self.d.inputs * self.d.stride * self.d.stride * self.qw).max(1);
        let rows = (elements / row).saturating_sub(self.reach).clamp(1, self.oh.max(1));
        // The bands have nearly equal numbers of rows, so that the last one is not small.
        let oh = self.oh.div_ceil(self.oh.div_ceil(rows));
        Self { oh, qh: oh + self.reach, ..self }
    }

    /// The plan of a band of dx: as many rows of a phase, at least one, as need planes of dy of
    /// about `elements` elements.
    pub(super) fn gradient_band(self, elements: usize) -> Self {
        let row = (self.d.outputs * self.qw).max(1);
        let rows = (elements / row).saturating_sub(self.reach).clamp(1, self.qh.max(1));
        Self { qh: self.qh.div_ceil(self.qh.div_ceil(rows)), ..self }
    }

    /// Elements of a kernel.
    pub(super) fn taps(&self) -> usize {
        self.d.kernel * self.d.kernel
    }

    /// Elements of a phase plane.
    fn plane(&self) -> usize {
        self.qh * self.qw
    }

    /// Elements of an output row-padded plane, in whole vectors.
    pub(super) fn out_len(&self) -> usize {
        (self.oh * self.qw).next_multiple_of(LANES)
    }

    /// Elements of an input gradient plane, in whole vectors.
    pub(super) fn dx_len(&self) -> usize {
        self.plane().next_multiple_of(LANES)
    }

    /// Elements of a sample's padded input, with room for the last vector of the last tap.
    pub(super) fn x_len(&self) -> usize {
        let phases = self.d.stride * self.d.stride;
        self.d.inputs * phases * self.plane() + self.lead() + LANES
    }

    /// Room before an output gradient's plane that the input gradient reads: the furthest that a
    /// tap looks back.
    pub(super) fn lead(&self) -> usize {
        self.reach * (self.qw + 1)
    }

    /// Elements of the plane of an output's gradient that the input gradient reads.
    pub(super) fn dy_plane(&self) -> usize {
        self.lead() + self.dx_len()
    }

    /// Offset of tap (ky, kx) of input c in the padded input.
    fn x_offset(&self, c: usize, ky: usize, kx: usize) -> usize {
        let s = self.d.stride;
        let phase = (ky % s) * s + kx % s;
        (c * s * s + phase) * self.plane() + (ky / s) * self.qw + kx / s
    }

    /// Offsets of all weights in the order of the published layout.
    pub(super) fn x_offsets(&self, to: &mut Vec<usize>) {
        to.clear();
        for c in 0..self.d.inputs {
            for ky in 0..self.d.kernel {
                for kx in 0..self.d.kernel {
                    to.push(self.x_offset(c, ky, kx));
                }
            }
        }
    }

    /// Puts a sample's input in its padded planes.
    pub(super) fn pad_input<T: Element>(&self, x: &[T], to: &mut [T]) {
        let ConvDims { inputs, height, width, stride: s, pad_before, .. } = self.d;
        to.fill(T::zero());
        for c in 0..inputs {
            for y in 0..height {
                let row = &x[(c * height + y) * width..][..width];
                let (py, qy) = ((y + pad_before) % s, (y + pad_before) / s);
                let first = (c * s * s + py * s) * self.plane() + qy * self.qw;
                if s == 1 {
                    to[first + pad_before..][..width].copy_from_slice(row);
                    continue;
                }
                for (x, &v) in row.iter().enumerate() {
                    let at = x + pad_before;
                    to[first + (at % s) * self.plane() + at / s] = v;
                }
            }
        }
    }

    /// Puts the part of a sample's input that a band of rows of y from `first` on sees in its
    /// padded planes.
    pub(super) fn pad_band<T: Element>(&self, x: &[T], first: usize, to: &mut [T]) {
        let ConvDims { inputs, height, width, stride: s, pad_before, .. } = self.d;
        to.fill(T::zero());
        for c in 0..inputs {
            for row in 0..self.qh * s {
                let Some(y) = (first * s + row).checked_sub(pad_before).filter(|y| *y < height)
                else {
                    continue;
                };
                let from = &x[(c * height + y) * width..][..width];
                let line = (c * s * s + row % s * s) * self.plane() + row / s * self.qw;
                if s == 1 {
                    to[line + pad_before..][..width].copy_from_slice(from);
                    continue;
                }
                for (x, &v) in from.iter().enumerate() {
                    let at = x + pad_before;
                    to[line + (at % s) * self.plane() + at / s] = v;
                }
            }
        }
    }

    /// Puts a sample's output gradient in planes that are padded like those of the input.
    pub(super) fn pad_gradient<T: Element>(&self, dy: &[T], to: &mut [T]) {
        to.fill(T::zero());
        for (dy, to) in dy.chunks_exact(self.oh * self.ow).zip(to.chunks_exact_mut(self.out_len()))
        {
            for (row, to) in dy.chunks_exact(self.ow).zip(to.chunks_exact_mut(self.qw)) {
                to[..self.ow].copy_from_slice(row);
            }
        }
    }

    /// Puts the part of a sample's output gradient that a band of phase rows of dx from `first` on
    /// needs in its padded planes.
    pub(super) fn pad_gradient_band<T: Element>(&self, dy: &[T], first: usize, to: &mut [T]) {
        to.fill(T::zero());
        let rows = first.saturating_sub(self.reach)..self.oh.min(first + self.qh);
        for (dy, to) in dy.chunks_exact(self.oh * self.ow).zip(to.chunks_exact_mut(self.dy_plane()))
        {
            for y in rows.clone() {
                let at = self.lead() + y * self.qw - first * self.qw;
                to[at..][..self.ow].copy_from_slice(&dy[y * self.ow..][..self.ow]);
            }
        }
    }
}
