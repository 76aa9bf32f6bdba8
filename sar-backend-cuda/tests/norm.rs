//! `residual_norm`, `gelu`, `silu` and the bias gradient of `linear` at widths of real models, which
//! take the vectorised kernels, and at odd ones, which do not.

#![allow(clippy::unwrap_used)]

mod compare;
mod lengths;

use compare::{Case, Kind, Output, accum, activation, compare, noise, read, read_accum};
use sar_math::backend::{
    Backend, Branch, Linear, LinearDims, Modulation, Seen, Slot, TokenDims, Write,
};

/// As published.
const EPS: f64 = 1e-6;

struct Norm {
    dims: TokenDims,
    /// Columns of the modulation matrix beyond four vectors.
    extra: usize,
    branch: bool,
    write: Write,
}

impl Norm {
    fn new([batch, tokens, width]: [usize; 3]) -> Self {
        let dims = TokenDims { batch, tokens, width };
        Self { dims, extra: 0, branch: true, write: Write::Accumulate }
    }
}

impl Case for Norm {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let (dims, len, c) = (self.dims, self.dims.len(), self.dims.width);
        let stride = 4 * c + self.extra;
        let m = Modulation { stride, scale: c, shift: 3 * c };
        let ada_len = dims.batch * stride;
        let x = activation(backend, &noise(1, len))?;
        let value = activation(backend, &noise(2, len))?;
        let ada = activation(backend, &noise(3, ada_len))?;
        let keep = accum(backend, &[9.0, 1.25, 0.0, 1.25])?;
        let branch = || {
            let keep = Some((&keep, 1));
            self.branch.then_some(Branch { value_blc: &value, gate: 0, keep })
        };
        let mut sum = activation(backend, &vec![9.0; len])?;
        let mut y = activation(backend, &vec![9.0; len])?;
        let mut stats = accum(backend, &vec![9.0; 2 * dims.rows()])?;
        backend.residual_norm(dims, EPS, &x, branch(), &ada, m, &mut sum, &mut y, &mut stats)?;
        let seen = if self.branch { &sum } else { &x };
        let mut again = activation(backend, &vec![9.0; len])?;
        backend.renorm(dims, seen, None, &stats, &ada, m, &mut again)?;
        let (y, renormed) = (read(backend, &y, len)?, read(backend, &again, len)?);
        assert_same("renorm", &y, &renormed);
        let mut again = activation(backend, &vec![9.0; len])?;
        backend.renorm(dims, &x, branch(), &stats, &ada, m, &mut again)?;
        assert_same("renorm of x and branch", &y, &read(backend, &again, len)?);
        let backward = |seen: Seen<'_, B>| -> Result<[Output; 4], B::Error> {
            let dy = activation(backend, &noise(4, len))?;
            let mut dx = activation(backend, &noise(5, len))?;
            let mut dbranch = activation(backend, &vec![9.0; len])?;
            let mut d_ada = activation(backend, &vec![0.5; ada_len])?;
            // A column that is not the bias's on either side.
            let mut grads = accum(backend, &noise(12, c + 2))?;
            backend.residual_norm_backward(
                dims,
                &dy,
                seen,
                &stats,
                branch(),
                &ada,
                m,
                self.branch.then_some(Slot { offset: 1, len: c }),
                self.write,
                &mut dx,
                self.branch.then_some(&mut dbranch),
                &mut d_ada,
                &mut grads,
            )?;
            Ok([
                ("dx", Kind::Gradient, read(backend, &dx, len)?),
                ("dbranch", Kind::Gradient, read(backend, &dbranch, len)?),
                ("d_ada", Kind::Gradient, read(backend, &d_ada, ada_len)?),
                ("dbias", Kind::Wide, read_accum(backend, &grads, c + 2)?),
            ])
        };
        let gradients = backward(Seen::Sum(seen))?;
        for ((name, _, kept), (_, _, again)) in gradients.iter().zip(backward(Seen::Before(&x))?) {
            assert_same(name, kept, &again);
        }
        let mut outputs = vec![
            ("sum", Kind::Value, read(backend, &sum, len)?),
            ("y", Kind::Value, y),
            ("y of renorm", Kind::Value, renormed),
            ("stats", Kind::Value, read_accum(backend, &stats, 2 * dims.rows())?),
        ];
        outputs.extend(gradients);
        Ok(outputs)
    }
}

/// A trainer that norms or adds up once more for the backward must see what the forward saw: to the bit.
fn assert_same(name: &str, before: &[f64], again: &[f64]) {
    let off = before.iter().zip(again).position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(
        (off, before.len()),
        (None, again.len()),
        "{name} is another where it is made again"
    );
}

#[test]
fn norm_of_a_published_generator() {
    compare(&Norm::new([2, 680, 1024]));
}

#[test]
fn norm_of_every_kernel() {
    // Up to 256, 512, 1536 and 2048 in registers, then past them; whole vectors of both types.
    for width in [64, 264, 1280, 1536, 2048, 2304] {
        compare(&Norm::new([2, 35, width]));
    }
    // More vectors than the backward has threads: in f32, then in bf16 as well.
    for width in [2056, 4104] {
        compare(&Norm::new([1, 3, width]));
    }
}

#[test]
fn norm_of_every_length() {
    for schedule in lengths::schedules() {
        compare(&Norm::new([1, schedule.tokens(), 64]));
    }
}

#[test]
fn norm_of_odd_widths_and_of_modulation_out_of_line() {
    compare(&Norm::new([2, 67, 97]));
    compare(&Norm { extra: 1, ..Norm::new([3, 33, 64]) });
}

#[test]
fn norm_without_a_branch() {
    for width in [97, 128, 1024] {
        compare(&Norm { branch: false, write: Write::Overwrite, ..Norm::new([2, 33, width]) });
    }
}

/// `gelu` or `silu` of a ramp of so many rows and columns, and the gradient of a bias before `gelu`.
struct Activation {
    rows: usize,
    columns: usize,
    gelu: bool,
}

impl Case for Activation {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let (rows, columns) = (self.rows, self.columns);
        let len = rows * columns;
        // A column that is not the bias's on either side.
        let (bias, all) = (Some(Slot { offset: 1, len: columns }), columns + 2);
        let begun = noise(12, all);
        let mut grads = accum(backend, &begun)?;
        let ramp: Vec<f64> = noise(6, len).into_iter().map(|value| 8.0 * value).collect();
        let x = activation(backend, &ramp)?;
        let mut y = backend.activation(len)?;
        let mut d = activation(backend, &noise(7, len))?;
        if self.gelu {
            backend.gelu(len, &x, &mut y)?;
            backend.gelu_backward(rows, columns, &x, bias, &mut d, &mut grads)?;
            let (mut x, mut again) = (x, activation(backend, &noise(7, len))?);
            let mut more = accum(backend, &begun)?;
            backend.regelu_backward(rows, columns, bias, &mut x, &mut again, &mut more)?;
            let both = [read(backend, &x, len)?, read(backend, &again, len)?];
            assert!(both == [read(backend, &y, len)?, read(backend, &d, len)?], "once more");
            let (grads, more) =
                (read_accum(backend, &grads, all)?, read_accum(backend, &more, all)?);
            assert!(grads == more, "bias gradient once more");
        } else {
            backend.silu(len, &x, &mut y)?;
            backend.silu_backward(len, &x, &mut d)?;
        }
        let (y, d) = (read(backend, &y, len)?, read(backend, &d, len)?);
        let grads = read_accum(backend, &grads, all)?;
        Ok(vec![("y", Kind::Value, y), ("dx", Kind::Gradient, d), ("dbias", Kind::Wide, grads)])
    }
}

#[test]
fn activations_of_all_lengths() {
    for gelu in [true, false] {
        for len in [1, 3, 4, 7, 8, 9, 2047, 2048, 2049, 100_003] {
            compare(&Activation { rows: 1, columns: len, gelu });
        }
    }
}

#[test]
fn bias_gradients_of_gelu_of_odd_shapes() {
    // Whole vectors and none, rows that end a chunk and begin one, fewer rows than warps.
    for (rows, columns) in
        [(680, 1024), (128, 4096), (129, 257), (127, 264), (7, 97), (300, 8), (2049, 1)]
    {
        compare(&Activation { rows, columns, gelu: true });
    }
}

/// The bias gradient of a layer with a single input.
struct Bias {
    rows: usize,
    columns: usize,
}

impl Case for Bias {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let dims = LinearDims { rows: self.rows, inputs: 1, outputs: self.columns };
        let weight = Slot { offset: self.columns + 1, len: self.columns };
        let layer = Linear { weight, bias: Some(Slot { offset: 1, len: self.columns }) };
        let len = 2 * self.columns + 1;
        let dy = activation(backend, &noise(9, self.rows * self.columns))?;
        let x = activation(backend, &noise(10, self.rows))?;
        let mut grads = accum(backend, &noise(11, len))?;
        backend.linear_backward_weight(dims, &dy, &x, layer, Write::Accumulate, &mut grads)?;
        let grads = read_accum(backend, &grads, len)?;
        Ok(vec![("gradients", Kind::Wide, grads)])
    }
}

#[test]
fn bias_gradients_of_odd_shapes() {
    for (rows, columns) in [(1360, 1024), (1, 8), (129, 257), (127, 264), (7, 97), (300, 8912)] {
        compare(&Bias { rows, columns });
    }
}
