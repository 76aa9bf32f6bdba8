//! `linear`: y = x·Wᵀ + bias.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::dot;
use super::rig::{Layout, Rig};
use super::subject::{
    Expected, Outputs, Subject, Variable, Verifier, refused, same_bits, shape_error,
};
use super::verdict::{Mismatch, Report};
use crate::Real as _;
use crate::backend::{Buffers, Linear, LinearDims, Slot, TransformerOps, Write};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: LinearDims,
    x: Vec<f64>,
    layout: Layout,
    layer: Linear,
    dy: Vec<f64>,
    /// Whether the gradient of x is asked for.
    want_dx: bool,
    /// How the gradient of the weight is written.
    write: Write,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: LinearDims, bias: bool, want_dx: bool) -> Self {
        let mut layout = Layout::default();
        let bias = bias.then(|| layout.draw(n, dims.outputs));
        let weight = layout.draw(n, dims.outputs * dims.inputs);
        Self {
            dims,
            x: n.values(dims.rows * dims.inputs),
            layout,
            layer: Linear { weight, bias },
            dy: n.values(dims.rows * dims.outputs),
            want_dx,
            write: Write::Accumulate,
        }
    }

    fn formula(&self, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let LinearDims { rows, inputs, outputs } = self.dims;
        let mut y = Vec::with_capacity(rows * outputs);
        for r in 0..rows {
            for o in 0..outputs {
                let product = dot(&x[r * inputs..][..inputs], &weight[o * inputs..][..inputs]);
                y.push(product + bias.map_or(0.0, |b| b[o]));
            }
        }
        y
    }
}

impl<B: TransformerOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["linear"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, layer) = (self.dims, self.layer);
        let mut out = Outputs::default();
        let params = rig.params("params", &self.layout.values)?;
        let x = rig.activation("x", &self.x)?;
        let mut y = rig.blank("y", dims.rows * dims.outputs)?;
        rig.backend.linear(dims, &x, &params, layer, &mut y)?;
        out.push("y", rig.read("y", &y, dims.rows * dims.outputs)?);

        // The weight is used only for dx.
        let params = if self.want_dx {
            rig.params("params of backward", &self.layout.values)?
        } else {
            params
        };
        let x = rig.activation("x of backward", &self.x)?;
        let dy = rig.activation("dy", &self.dy)?;
        // What is overwritten may hold anything, even NaN; its start values are added afterwards,
        // so that it compares like the others.
        let mut begin = start.to_vec();
        let mut before = vec![0.0; start.len()];
        if self.write == Write::Overwrite {
            let weight = layer.weight.range();
            before[weight.clone()].copy_from_slice(&start[weight.clone()]);
            begin[weight].fill(f64::NAN);
        }
        let mut grads = rig.accum("grads", &begin)?;
        if self.want_dx {
            let mut dx = rig.blank("dx", self.x.len())?;
            rig.backend.linear_backward_input(dims, &dy, &params, layer, &mut dx)?;
            out.push("x", rig.read("dx", &dx, self.x.len())?);
        }
        rig.backend.linear_backward_weight(dims, &dy, &x, layer, self.write, &mut grads)?;
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        out.grads.iter_mut().zip(before).for_each(|(found, before)| *found += before);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let bias = self.layer.bias.map(|b| self.layout.get(b));
        let weight = self.layout.get(self.layer.weight);
        vec![Expected::near("y", self.formula(&self.x, &weight, bias.as_deref()))]
    }

    fn variables(&self) -> Vec<Variable> {
        let mut all = vec![Variable::parameter("the weight", &self.layout, self.layer.weight)];
        if let Some(bias) = self.layer.bias {
            all.push(Variable::parameter("the bias", &self.layout, bias));
        }
        if self.want_dx {
            all.push(Variable::activation("x", &self.x));
        }
        all
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let bias = self.layer.bias.map(|_| at[1].as_slice());
        let x = if self.want_dx { &at[at.len() - 1] } else { &self.x };
        dot(&self.dy, &self.formula(x, &at[0], bias))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.dims.rows
    }

    fn row(&self, row: usize) -> Option<Self> {
        let LinearDims { inputs, outputs, .. } = self.dims;
        Some(Self {
            dims: LinearDims { rows: 1, inputs, outputs },
            x: self.x[row * inputs..][..inputs].to_vec(),
            dy: self.dy[row * outputs..][..outputs].to_vec(),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y"]
    }
}

/// Whether, for zero rows, the gradient of the weight is overwritten by zeros and that of the bias
/// left alone.
fn of_no_rows<B: TransformerOps>(backend: &B) -> Result<bool, B::Error> {
    let dims = LinearDims { rows: 0, inputs: 3, outputs: 2 };
    let (weight, bias) = (Slot { offset: 1, len: 6 }, Slot { offset: 7, len: 2 });
    let layer = Linear { weight, bias: Some(bias) };
    let (x, dy, mut grads) = (backend.activation(0)?, backend.activation(0)?, backend.accum(9)?);
    backend.upload_accum(
        &[7.5, f64::NAN, 7.5, 7.5, 7.5, 7.5, 7.5, 7.5, 7.5].map(B::Host::of),
        &mut grads,
        0,
    )?;
    backend.linear_backward_weight(dims, &dy, &x, layer, Write::Overwrite, &mut grads)?;
    let mut found = [B::Host::of(1.0); 9];
    backend.download_accum(&grads, 0, &mut found)?;
    let expected = [7.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 7.5, 7.5];
    Ok(found.iter().zip(expected).all(|(found, expected)| found.wide() == expected))
}

/// A weight whose slot ends beyond `usize::MAX`.
fn past_the_end<B: TransformerOps>(backend: &B) -> Result<(), B::Error> {
    let dims = LinearDims { rows: 1, inputs: 2, outputs: 2 };
    let layer = Linear { weight: Slot { offset: usize::MAX - 1, len: 4 }, bias: None };
    let (x, mut y) = (backend.activation(2)?, backend.activation(2)?);
    backend.linear(dims, &x, &Buffers::params(backend, 4)?, layer, &mut y)
}

/// Checks a layer of frozen weights, which a backend may hold only in the form that matrix products
/// take.
fn frozen<B: TransformerOps>(backend: &B, of: &Operands) -> Result<(), Mismatch> {
    let bits = |params: Result<B::Params, B::Error>| {
        let rig = Rig::new(backend, 0, 7.5);
        let (len, x) = (of.dims.rows * of.dims.outputs, rig.activation("x", &of.x)?);
        let mut y = rig.blank("y", len)?;
        backend.linear(of.dims, &x, &params?, of.layer, &mut y)?;
        Ok(rig.read("y", &y, len)?.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    let host: Vec<B::Host> = of.layout.values.iter().map(|&v| B::Host::of(v)).collect();
    let trained = bits(Rig::new(backend, 0, 7.5).params("params", &of.layout.values));
    let frozen = bits(backend.frozen_params(&host, &[]));
    let [trained, frozen] =
        [trained, frozen].map(|bits| bits.map_err(|e: B::Error| refused("linear", &e)));
    same_bits("linear", "frozen weights give the bits of others", &trained?, &frozen?)
}

/// Checks `linear` and its two backwards: with and without bias, with and without `dx`, writing and
/// adding, and with frozen weights.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: TransformerOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "linear", case)?;
    let mut n = case.numbers("linear");
    for (bias, want_dx) in [(true, true), (false, true), (true, false)] {
        let (rows, inputs, outputs) = (n.between(1, 5), n.between(1, 7), n.between(1, 6));
        let dims = LinearDims { rows, inputs, outputs };
        let operands = Operands::draw(&mut n, dims, bias, want_dx);
        verifier.verify(&operands)?;
        frozen(backend, &operands)?;
        verifier.verify(&Operands { write: Write::Overwrite, ..operands })?;
    }
    of_no_rows(backend).map_err(|e| refused("linear", &e))?.then_some(()).ok_or_else(|| {
        let property = "a gradient of no rows that is overwritten";
        Mismatch::outcome("linear", property, "zeros, and a bias left alone", "other values")
    })?;
    let single = LinearDims { rows: 1, inputs: 1, outputs: 1 };
    verifier.verify(&Operands::draw(&mut n, single, true, true))?;
    shape_error(&["linear"], "a weight past the end of the parameters", past_the_end(backend))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run; 450 rows of width 96 to the 3·96 columns of q, k and v.
///
/// # Errors
/// A second run, or a row on its own, gives other bits.
pub fn fingerprint<B: TransformerOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = LinearDims { rows: 450, inputs: 96, outputs: 288 };
    repeatable(backend, &Operands::draw(&mut case.numbers("linear"), dims, true, true))
}
