//! What `gelu` and `silu` share: y = f(x), element by element, and a backward in place.

use super::case::{Case, Numbers, storable};
use super::full_size::repeatable;
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{Buffers, Slot, TransformerOps};
use alloc::vec;
use alloc::vec::Vec;

/// The shape of x as a matrix, and the bias of the layer that made x.
#[derive(Clone, Copy)]
pub(super) struct Made {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) bias: Option<Slot>,
}

impl Made {
    pub(super) fn len(self) -> usize {
        self.rows * self.columns
    }
}

/// A method that reads one activation and writes another.
pub(super) type Method<B> = fn(
    &B,
    usize,
    &<B as Buffers>::Activation,
    &mut <B as Buffers>::Activation,
) -> Result<(), <B as Buffers>::Error>;

/// A method that changes a gradient in place, and adds to the gradient of a bias.
pub(super) type Backward<B> = fn(
    &B,
    Made,
    &<B as Buffers>::Activation,
    &mut <B as Buffers>::Activation,
    &mut <B as Buffers>::Accum,
) -> Result<(), <B as Buffers>::Error>;

/// Like [`Backward`], but changes both of its activations.
pub(super) type InPlace<B> = fn(
    &B,
    Made,
    &mut <B as Buffers>::Activation,
    &mut <B as Buffers>::Activation,
    &mut <B as Buffers>::Accum,
) -> Result<(), <B as Buffers>::Error>;

/// A method that does forward and backward, and the formula of the slope.
pub(super) type Again<B> = (InPlace<B>, fn(f64) -> f64);

/// An activation function: its formula and the backend's methods.
pub(super) struct Function<B: TransformerOps> {
    pub(super) ops: &'static [&'static str],
    pub(super) formula: fn(f64) -> f64,
    pub(super) forward: Method<B>,
    pub(super) backward: Backward<B>,
    /// Forward and backward in place: x becomes y, and dy becomes dx.
    pub(super) again: Option<Again<B>>,
    /// Whether the backward gives the gradient of a bias.
    pub(super) biased: bool,
}

/// Start value of the gradients of the second backward, which adds to them as the first does.
const BEGUN: f64 = 0.5;

struct Operands<'f, B: TransformerOps> {
    function: &'f Function<B>,
    x: Vec<f64>,
    dy: Vec<f64>,
    made: Made,
    /// Holds the bias: zeros, since x already includes it.
    layout: Layout,
}

impl<'f, B: TransformerOps> Operands<'f, B> {
    /// Draws operands of `columns` columns, with a bias if the function can use one and `bias` is
    /// true.
    fn draw(
        n: &mut Numbers,
        function: &'f Function<B>,
        x: Vec<f64>,
        columns: usize,
        bias: bool,
    ) -> Self {
        let mut layout = Layout::default();
        let zeros = vec![0.0; columns];
        let bias = (bias && function.biased).then(|| layout.push(n, &zeros));
        let made = Made { rows: x.len() / columns, columns, bias };
        Self { function, dy: n.values(x.len()), x, made, layout }
    }

    /// The gradients that the second backward leaves.
    fn begun(&self, slope: fn(f64) -> f64) -> Vec<f64> {
        let mut grads = vec![BEGUN; self.layout.values.len()];
        if let Some(bias) = self.made.bias {
            for (i, (&x, dy)) in self.x.iter().zip(&self.dy).enumerate() {
                grads[bias.offset + i % self.made.columns] += dy * slope(x);
            }
        }
        grads
    }
}

impl<B: TransformerOps> Subject<B> for Operands<'_, B> {
    fn ops(&self) -> &'static [&'static str] {
        self.function.ops
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (made, len) = (self.made, self.made.len());
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let mut y = rig.blank("y", len)?;
        (self.function.forward)(rig.backend, len, &x, &mut y)?;
        out.push("y", rig.read("y", &y, len)?);
        let x = rig.activation("x of backward", &self.x)?;
        let mut dy = rig.activation("dy", &self.dy)?;
        let mut grads = rig.accum("grads", start)?;
        (self.function.backward)(rig.backend, made, &x, &mut dy, &mut grads)?;
        out.push("x", rig.read("dy", &dy, len)?);
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        if let Some((again, _)) = self.function.again {
            let mut x = rig.activation("x of both", &self.x)?;
            let mut dy = rig.activation("dy of both", &self.dy)?;
            let begun = vec![BEGUN; start.len()];
            let mut grads = rig.accum("grads of both", &begun)?;
            again(rig.backend, made, &mut x, &mut dy, &mut grads)?;
            out.push("y of both", rig.read("x of both", &x, len)?);
            out.push("dx of both", rig.read("dy of both", &dy, len)?);
            let grads = rig.read_accum("grads of both", &grads, start.len())?;
            out.push("grads of both", grads);
        }
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let y: Vec<f64> = self.x.iter().map(|&x| (self.function.formula)(x)).collect();
        let mut all = vec![Expected::near("y", y.clone())];
        if let Some((_, slope)) = self.function.again {
            let dx = self.x.iter().zip(&self.dy).map(|(&x, dy)| dy * slope(x)).collect();
            all.extend([Expected::near("y of both", y), Expected::near("dx of both", dx)]);
            all.push(Expected::near("grads of both", self.begun(slope)));
        }
        all
    }

    fn variables(&self) -> Vec<Variable> {
        let mut all = vec![Variable::activation("x", &self.x)];
        if let Some(bias) = self.made.bias {
            all.push(Variable::parameter("the bias", &self.layout, bias));
        }
        all
    }

    /// The objective of x + bias, where the bias is zero at the point where the gradients are
    /// taken.
    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let bias = |i: usize| at.get(1).map_or(0.0, |bias| bias[i % self.made.columns]);
        let terms = at[0].iter().zip(&self.dy).enumerate();
        terms.map(|(i, (&x, dy))| dy * (self.function.formula)(x + bias(i))).sum()
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.x.len()
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(Self {
            function: self.function,
            x: vec![self.x[row]],
            dy: vec![self.dy[row]],
            made: Made { rows: 1, columns: 1, bias: None },
            layout: self.layout.clone(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y"]
    }
}

/// Checks random values, one value alone, zeros, and values where the exponential over- or
/// underflows; with and without a bias.
pub(super) fn check<B: TransformerOps>(
    backend: &B,
    function: &Function<B>,
    case: Case,
) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, function.ops[0], case)?;
    let mut n = case.numbers(function.ops[0]);
    for (rows, columns, bias) in [(1, 1, true), (3, n.between(1, 13), true), (2, 5, false)] {
        let x = n.values(rows * columns);
        verifier.verify(&Operands::draw(&mut n, function, x, columns, bias))?;
    }
    let x: Vec<f64> = [0.0, -0.0, 8.0, -8.0, 40.0, -40.0].to_vec();
    verifier.verify(&Operands::draw(&mut n, function, x, 3, true))?;
    let x = [1e4, -1e4, 1e-30, 750.0, -750.0].map(storable).to_vec();
    verifier.verify(&Operands::draw(&mut n, function, x, 1, true))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
pub(super) fn fingerprint<B: TransformerOps>(
    backend: &B,
    function: &Function<B>,
    case: Case,
) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers(function.ops[0]);
    let x = n.values(3 * 150 * 96);
    repeatable(backend, &Operands::draw(&mut n, function, x, 96, true))
}
