//! `conv2d`: two-dimensional cross-correlation with bias.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::dot;
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{Conv, ConvDims, Slot, TokenizerOps};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: ConvDims,
    x: Vec<f64>,
    layout: Layout,
    layer: Conv,
    dy: Vec<f64>,
    /// Whether the gradient of x is asked for.
    want_dx: bool,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: ConvDims, want_dx: bool) -> Self {
        let mut layout = Layout::default();
        let bias = layout.draw(n, dims.outputs);
        let weight = layout.draw(n, dims.outputs * dims.inputs * dims.kernel * dims.kernel);
        let (rows, columns) = dims.output();
        Self {
            dims,
            x: n.values(dims.batch * dims.inputs * dims.height * dims.width),
            layout,
            layer: Conv { weight, bias },
            dy: n.values(dims.batch * dims.outputs * rows * columns),
            want_dx,
        }
    }

    fn formula(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let ConvDims { batch, outputs, .. } = self.dims;
        let (rows, columns) = self.dims.output();
        let mut y = Vec::with_capacity(self.dy.len());
        for b in 0..batch {
            for o in 0..outputs {
                for row in 0..rows {
                    for column in 0..columns {
                        y.push(bias[o] + self.window(x, weight, (b, o, row, column)));
                    }
                }
            }
        }
        y
    }

    /// Sum of the products under the kernel at one output; x is zero outside the image.
    fn window(&self, x: &[f64], weight: &[f64], at: (usize, usize, usize, usize)) -> f64 {
        let ConvDims { inputs, height, width, kernel, stride, pad_before, .. } = self.dims;
        let (b, o, row, column) = at;
        let mut sum = 0.0;
        for i in 0..inputs {
            for ky in 0..kernel {
                for kx in 0..kernel {
                    let (y, x_at) = (row * stride + ky, column * stride + kx);
                    let (Some(y), Some(x_at)) =
                        (y.checked_sub(pad_before), x_at.checked_sub(pad_before))
                    else {
                        continue;
                    };
                    if y < height && x_at < width {
                        let tap = weight[((o * inputs + i) * kernel + ky) * kernel + kx];
                        sum += tap * x[((b * inputs + i) * height + y) * width + x_at];
                    }
                }
            }
        }
        sum
    }
}

impl<B: TokenizerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["conv2d"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, layer) = (self.dims, self.layer);
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let params = rig.params("params", &self.layout.values)?;
        let mut y = rig.blank("y", self.dy.len())?;
        rig.backend.conv2d(dims, &x, &params, layer, &mut y)?;
        out.push("y", rig.read("y", &y, self.dy.len())?);

        let dy = rig.activation("dy", &self.dy)?;
        let x = rig.activation("x of backward", &self.x)?;
        // The weight is used only for dx.
        let params = if self.want_dx {
            rig.params("params of backward", &self.layout.values)?
        } else {
            params
        };
        let mut grads = rig.accum("grads", start)?;
        if self.want_dx {
            let mut dx = rig.blank("dx", self.x.len())?;
            let wanted = Some(&mut dx);
            rig.backend.conv2d_backward(dims, &dy, &x, &params, layer, wanted, &mut grads)?;
            out.push("x", rig.read("dx", &dx, self.x.len())?);
        } else {
            rig.backend.conv2d_backward(dims, &dy, &x, &params, layer, None, &mut grads)?;
        }
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let (weight, bias) = (self.layout.get(self.layer.weight), self.layout.get(self.layer.bias));
        vec![Expected::near("y", self.formula(&self.x, &weight, &bias))]
    }

    fn variables(&self) -> Vec<Variable> {
        let mut all = vec![
            Variable::parameter("the weight", &self.layout, self.layer.weight),
            Variable::parameter("the bias", &self.layout, self.layer.bias),
        ];
        if self.want_dx {
            all.push(Variable::activation("x", &self.x));
        }
        all
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let x = at.get(2).unwrap_or(&self.x);
        dot(&self.dy, &self.formula(x, &at[0], &at[1]))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let cut = |all: &[f64]| {
            let len = all.len() / self.dims.batch;
            all[row * len..][..len].to_vec()
        };
        Some(Self {
            dims: ConvDims { batch: 1, ..self.dims },
            x: cut(&self.x),
            dy: cut(&self.dy),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y"]
    }
}

/// Kernel, stride, padding before and after: those of the tokenizer, and two that it does not use.
const FORMS: [(usize, usize, usize, usize); 5] =
    [(3, 1, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0), (2, 1, 0, 0), (3, 3, 2, 0)];

/// A kernel of 3 on an image of 1×1 without padding, and a stride of 0, neither of which has an
/// output.
fn no_output<B: TokenizerOps>(backend: &B, (side, stride): (usize, usize)) -> Result<(), B::Error> {
    let dims = ConvDims {
        batch: 1,
        inputs: 1,
        outputs: 1,
        height: side,
        width: side,
        kernel: 3,
        stride,
        pad_before: 0,
        pad_after: 0,
    };
    let (x, params) = (backend.activation(64)?, backend.params(10)?);
    let slot = |offset, len| Slot { offset, len };
    let layer = Conv { weight: slot(0, 9), bias: slot(9, 1) };
    backend.conv2d(dims, &x, &params, layer, &mut backend.activation(64)?)
}

/// Checks `conv2d` and its backward: the tokenizer's kernels, strides and paddings, one pixel, with
/// and without `dx`.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TokenizerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "conv2d", case)?;
    let mut n = case.numbers("conv2d");
    for (kernel, stride, pad_before, pad_after) in FORMS {
        let dims = ConvDims {
            batch: n.between(1, 2),
            inputs: n.between(1, 3),
            outputs: n.between(1, 3),
            height: n.between(3, 5),
            width: n.between(3, 5),
            kernel,
            stride,
            pad_before,
            pad_after,
        };
        let want_dx = n.between(0, 3) > 0;
        verifier.verify(&Operands::draw(&mut n, dims, want_dx))?;
        if kernel == 3 && pad_after == 1 && pad_before == 1 {
            let pixel = ConvDims { height: 1, width: 1, ..dims };
            verifier.verify(&Operands::draw(&mut n, pixel, true))?;
        }
    }
    shape_error(&["conv2d"], "an image smaller than the kernel", no_output(backend, (1, 1)))?;
    shape_error(&["conv2d"], "a stride of 0", no_output(backend, (5, 0)))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 images of 32×24×20 to 48 channels.
///
/// # Errors
/// A second run, or an image on its own, gives other bits.
pub fn fingerprint<B: TokenizerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = ConvDims {
        batch: 3,
        inputs: 32,
        outputs: 48,
        height: 24,
        width: 20,
        kernel: 3,
        stride: 1,
        pad_before: 1,
        pad_after: 1,
    };
    repeatable(backend, &Operands::draw(&mut case.numbers("conv2d"), dims, true))
}
