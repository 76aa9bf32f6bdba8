//! What `gelu` and `silu` share: y = f(x), element by element, and a backward in place.

use super::case::{Case, storable};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{Buffers, TransformerOps};
use alloc::vec::Vec;

/// A method that reads one activation and writes another.
pub(super) type Method<B> = fn(
    &B,
    usize,
    &<B as Buffers>::Activation,
    &mut <B as Buffers>::Activation,
) -> Result<(), <B as Buffers>::Error>;

/// A method that changes both of its activations.
pub(super) type InPlace<B> = fn(
    &B,
    usize,
    &mut <B as Buffers>::Activation,
    &mut <B as Buffers>::Activation,
) -> Result<(), <B as Buffers>::Error>;

/// A method that does both, and the formula of the slope.
pub(super) type Again<B> = (InPlace<B>, fn(f64) -> f64);

/// An activation function: its formula and the backend's methods.
pub(super) struct Function<B: TransformerOps> {
    pub(super) ops: &'static [&'static str],
    pub(super) formula: fn(f64) -> f64,
    pub(super) forward: Method<B>,
    pub(super) backward: Method<B>,
    /// Forward and backward in place, x becoming y and dy dx.
    pub(super) again: Option<Again<B>>,
}

struct Operands<'f, B: TransformerOps> {
    function: &'f Function<B>,
    x: Vec<f64>,
    dy: Vec<f64>,
}

impl<B: TransformerOps> Subject<B> for Operands<'_, B> {
    fn ops(&self) -> &'static [&'static str] {
        self.function.ops
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.x.len();
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let mut y = rig.blank("y", len)?;
        (self.function.forward)(rig.backend, len, &x, &mut y)?;
        out.push("y", rig.read("y", &y, len)?);
        let x = rig.activation("x of backward", &self.x)?;
        let mut dy = rig.activation("dy", &self.dy)?;
        (self.function.backward)(rig.backend, len, &x, &mut dy)?;
        out.push("x", rig.read("dy", &dy, len)?);
        if let Some((again, _)) = self.function.again {
            let mut x = rig.activation("x of both", &self.x)?;
            let mut dy = rig.activation("dy of both", &self.dy)?;
            again(rig.backend, len, &mut x, &mut dy)?;
            out.push("y of both", rig.read("x of both", &x, len)?);
            out.push("dx of both", rig.read("dy of both", &dy, len)?);
        }
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let y: Vec<f64> = self.x.iter().map(|&x| (self.function.formula)(x)).collect();
        let mut all = alloc::vec![Expected::near("y", y.clone())];
        if let Some((_, slope)) = self.function.again {
            let dx = self.x.iter().zip(&self.dy).map(|(&x, dy)| dy * slope(x)).collect();
            all.extend([Expected::near("y of both", y), Expected::near("dx of both", dx)]);
        }
        all
    }

    fn variables(&self) -> Vec<Variable> {
        alloc::vec![Variable::activation("x", &self.x)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        at[0].iter().zip(&self.dy).map(|(&x, dy)| dy * (self.function.formula)(x)).sum()
    }

    fn rows(&self) -> usize {
        self.x.len()
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(Self {
            function: self.function,
            x: alloc::vec![self.x[row]],
            dy: alloc::vec![self.dy[row]],
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y"]
    }
}

/// Random values, one value alone, zeros, and values where the exponential over- or underflows.
pub(super) fn check<B: TransformerOps>(
    backend: &B,
    function: &Function<B>,
    case: Case,
) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, function.ops[0], case)?;
    let mut n = case.numbers(function.ops[0]);
    for len in [1, n.between(2, 40)] {
        let (x, dy) = (n.values(len), n.values(len));
        verifier.verify(&Operands { function, x, dy })?;
    }
    let x: Vec<f64> = [0.0, -0.0, 8.0, -8.0, 40.0, -40.0].to_vec();
    verifier.verify(&Operands { function, dy: n.values(x.len()), x })?;
    let x = [1e4, -1e4, 1e-30, 750.0, -750.0].map(storable).to_vec();
    verifier.verify(&Operands { function, dy: n.values(x.len()), x })?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
pub(super) fn fingerprint<B: TransformerOps>(
    backend: &B,
    function: &Function<B>,
    case: Case,
) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers(function.ops[0]);
    let len = 3 * 150 * 96;
    repeatable(backend, &Operands { function, x: n.values(len), dy: n.values(len) })
}
