//! `guide`: guided features, in place of the conditional ones.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::RolloutOps;
use crate::guidance::guide;
use alloc::vec::Vec;

struct Operands {
    t: f64,
    /// Conditional features and, behind them, as many unconditional ones.
    x: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, len: usize, t: f64) -> Self {
        Self { t, x: n.values(2 * len) }
    }

    fn len(&self) -> usize {
        self.x.len() / 2
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["guide"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let mut out = Outputs::default();
        let mut x = rig.activation("x", &self.x)?;
        rig.backend.guide(self.len(), self.t, &mut x)?;
        let mut x = rig.read("x", &x, self.x.len())?;
        let unconditional = x.split_off(self.len());
        out.push("guided", x);
        out.push("unconditional", unconditional);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let (conditional, unconditional) = self.x.split_at(self.len());
        let guided = conditional.iter().zip(unconditional).map(|(&c, &u)| guide(self.t, c, u));
        // The unconditional half stays as it is.
        alloc::vec![
            Expected::near("guided", guided.collect()),
            Expected::near("unconditional", unconditional.to_vec())
        ]
    }

    fn rows(&self) -> usize {
        self.len()
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(Self { t: self.t, x: alloc::vec![self.x[row], self.x[self.len() + row]] })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["guided", "unconditional"]
    }
}

/// Checks `guide`, for no guidance, some, and less than none.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "guide", case)?;
    let mut n = case.numbers("guide");
    for t in [0.0, 0.5, 4.0, -0.25] {
        for len in [1, 8 * n.between(1, 5), n.between(2, 60)] {
            verifier.verify(&Operands::draw(&mut n, len, t))?;
        }
    }
    // Twice the second length overflows.
    for len in [2, usize::MAX / 2 + 1] {
        let short = || backend.guide(len, 1.0, &mut backend.activation(3)?);
        shape_error(&["guide"], "no room for an unconditional twin", short())?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96.
///
/// # Errors
/// A second run gives other bits, or values or gradients are not those of the formula.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("guide"), 3 * 150 * 96, 1.5))
}
