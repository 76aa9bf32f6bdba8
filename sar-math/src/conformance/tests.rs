//! Tests of the kit itself: a backend with one fault at a time, each of which a check must find.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::Mismatch;
use crate::backend::{AdamW, BackendError, Buffers, ErrorKind, OptimizerOps, ShapeError, Slot};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;

/// What the backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Value,
    Gradient,
    GradientOverwritten,
    GapWritten,
    OutputAdded,
    PastTheEnd,
    DifferentBits,
    RowsMixed,
    TooShortAccepted,
    UnnamedError,
    NotFinite,
    StepDespiteNan,
    ReplayedNothing,
    ReplayedTwice,
    ReplayErrorDropped,
    /// Wrong only beyond the elements of one thread or tile.
    ValueBeyondATile,
    GradientBeyondATile,
    GradientInfinite,
    /// NaN where the formula has no derivative, so that nothing is compared.
    NanBeside,
    OneKeyForAll,
}

/// Elements of a tile of the toy backend.
const TILE: usize = 64;

#[derive(Debug)]
struct ToyError(ShapeError);

impl core::fmt::Display for ToyError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for ToyError {}

impl From<ShapeError> for ToyError {
    fn from(error: ShapeError) -> Self {
        Self(error)
    }
}

impl BackendError for ToyError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Shape
    }
}

/// The toy backend: plain vectors, one op `y = w·x` with its backward, and the optimiser.
struct Toy {
    fault: Fault,
    calls: Cell<u64>,
}

type Values = Vec<f64>;

fn range<T>(op: &'static str, from: &[T], at: usize, len: usize) -> Result<(), ToyError> {
    Ok(ShapeError::at_least(op, "buffer", at.saturating_add(len), from.len())?)
}

macro_rules! transfer {
    ($upload:ident, $download:ident, $element:ty) => {
        fn $upload(
            &self,
            host: &[$element],
            to: &mut Vec<$element>,
            at: usize,
        ) -> Result<(), ToyError> {
            range(stringify!($upload), to, at, host.len())?;
            to[at..at + host.len()].copy_from_slice(host);
            Ok(())
        }
        fn $download(
            &self,
            from: &Vec<$element>,
            at: usize,
            host: &mut [$element],
        ) -> Result<(), ToyError> {
            range(stringify!($download), from, at, host.len())?;
            host.copy_from_slice(&from[at..at + host.len()]);
            Ok(())
        }
    };
}

impl Buffers for Toy {
    type Host = f64;
    type Activation = Values;
    type Accum = Values;
    type Params = Values;
    type Ids = Vec<u32>;
    type Error = ToyError;

    fn activation(&self, len: usize) -> Result<Values, ToyError> {
        Ok(vec![0.0; len])
    }
    fn accum(&self, len: usize) -> Result<Values, ToyError> {
        Ok(vec![0.0; len])
    }
    fn params(&self, len: usize) -> Result<Values, ToyError> {
        Ok(vec![0.0; len])
    }
    fn ids(&self, len: usize) -> Result<Vec<u32>, ToyError> {
        Ok(vec![0; len])
    }
    transfer!(upload, download, f64);
    transfer!(upload_accum, download_accum, f64);
    transfer!(upload_params, download_params, f64);
    transfer!(upload_ids, download_ids, u32);
    fn zero_accum(&self, accum: &mut Values, offset: usize, len: usize) -> Result<(), ToyError> {
        range("zero_accum", accum, offset, len)?;
        accum[offset..][..len].fill(0.0);
        Ok(())
    }
    fn copy(
        &self,
        from: &Values,
        from_offset: usize,
        to: &mut Values,
        to_offset: usize,
        len: usize,
    ) -> Result<(), ToyError> {
        range("copy", from, from_offset, len)?;
        range("copy", to, to_offset, len)?;
        to[to_offset..][..len].copy_from_slice(&from[from_offset..][..len]);
        Ok(())
    }
    fn add(&self, from: &Values, to: &mut Values, len: usize) -> Result<(), ToyError> {
        range("add", from, 0, len)?;
        range("add", to, 0, len)?;
        to.iter_mut().zip(&from[..len]).for_each(|(to, from)| *to += from);
        Ok(())
    }
    fn replay(
        &self,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), ToyError>,
    ) -> Result<(), ToyError> {
        // Keys count up from 0, so every key up to the largest seen has been seen.
        let again = self.calls.get() > key;
        self.calls.set(self.calls.get().max(key + 1));
        match self.fault {
            Fault::ReplayedNothing if again => Ok(()),
            Fault::ReplayedTwice if again => work().and_then(|()| work()),
            Fault::ReplayErrorDropped => {
                let _ = work();
                Ok(())
            }
            _ => work(),
        }
    }
    fn params_key(&self, params: &Values) -> u64 {
        match self.fault {
            Fault::OneKeyForAll => 0,
            _ => core::ptr::from_ref(params).addr() as u64,
        }
    }
    fn synchronize(&self) -> Result<(), ToyError> {
        Ok(())
    }
}

impl Toy {
    fn with(fault: Fault) -> Self {
        Self { fault, calls: Cell::new(0) }
    }

    fn door(&self, buffer: &Values, len: usize) -> Result<bool, ToyError> {
        match self.fault {
            Fault::TooShortAccepted => Ok(buffer.len() >= len),
            Fault::UnnamedError => range("something", buffer, 0, len).map(|()| true),
            _ => range("scale", buffer, 0, len).map(|()| true),
        }
    }

    fn scale(&self, x: &Values, params: &Values, w: Slot, y: &mut Values) -> Result<(), ToyError> {
        let len = w.len;
        for (buffer, len) in [(x, len), (params, w.end()), (&*y, len)] {
            if !self.door(buffer, len)? {
                return Ok(());
            }
        }
        self.calls.set(self.calls.get() + 1);
        for i in 0..len {
            let value = x[i] * params[w.offset + i];
            match self.fault {
                Fault::OutputAdded => y[i] += value,
                Fault::Value => y[i] = value + 1e-9,
                Fault::DifferentBits => {
                    y[i] = value * (1.0 + f64::EPSILON * self.calls.get() as f64);
                }
                Fault::RowsMixed => y[i] = value * (1.0 + f64::EPSILON * len as f64),
                Fault::ValueBeyondATile if i >= TILE => y[i] = 0.0,
                _ => y[i] = value,
            }
        }
        if self.fault == Fault::PastTheEnd && y.len() > len {
            y[len] = 1.0;
        }
        Ok(())
    }

    fn scale_backward(
        &self,
        dy: &Values,
        x: &Values,
        w: Slot,
        dx: &mut Values,
        grads: &mut Values,
    ) -> Result<(), ToyError> {
        for (buffer, len) in [(dy, w.len), (x, w.len), (&*dx, w.len), (&*grads, w.end())] {
            if !self.door(buffer, len)? {
                return Ok(());
            }
        }
        let beside = if self.fault == Fault::NanBeside { f64::NAN } else { 0.0 };
        dx[..w.len].fill(beside);
        for i in 0..w.len {
            let g = &mut grads[w.offset + i];
            match self.fault {
                Fault::Gradient => *g += dy[i] * x[i] * (1.0 + 1e-6),
                Fault::GradientOverwritten => *g = dy[i] * x[i],
                Fault::GradientBeyondATile if i >= TILE => {}
                Fault::GradientInfinite if i == TILE => *g = f64::INFINITY,
                _ => *g += dy[i] * x[i],
            }
        }
        if self.fault == Fault::GapWritten && w.offset > 0 {
            grads[w.offset - 1] = 0.0;
        }
        Ok(())
    }
}

/// The op of the toy, as a subject.
#[derive(Clone)]
struct Scale {
    x: Values,
    dy: Values,
    layout: Layout,
    w: Slot,
}

impl Scale {
    fn draw(n: &mut Numbers, len: usize) -> Self {
        let mut layout = Layout { values: vec![1.0], slots: Vec::new() };
        let w = layout.draw(n, len);
        Self { x: n.values(len), dy: n.values(len), layout, w }
    }
}

impl Subject<Toy> for Scale {
    fn ops(&self) -> &'static [&'static str] {
        &["scale"]
    }

    fn run(&self, rig: &Rig<'_, Toy>, start: &[f64]) -> Result<Outputs, ToyError> {
        let mut out = Outputs::default();
        let x = rig.activation("x", &self.x)?;
        let params = rig.params("params", &self.layout.values)?;
        let mut y = rig.blank("y", self.w.len)?;
        rig.backend.scale(&x, &params, self.w, &mut y)?;
        // A toy that accepts a short buffer leaves fewer elements to read.
        let len = y.len().min(self.w.len);
        out.push("y", rig.read("y", &y, len)?);
        let dy = rig.activation("dy", &self.dy)?;
        let mut grads = rig.accum("grads", start)?;
        let mut dx = rig.blank("dx", self.w.len)?;
        rig.backend.scale_backward(&dy, &x, self.w, &mut dx, &mut grads)?;
        let len = dx.len().min(self.w.len);
        out.push("dx", rig.read("dx", &dx, len)?);
        let len = grads.len().min(start.len());
        out.grads = rig.read_accum("grads", &grads, len)?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let w = self.layout.get(self.w);
        vec![Expected::near("y", self.x.iter().zip(&w).map(|(x, w)| x * w).collect())]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::parameter("w", &self.layout, self.w)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        (0..self.x.len()).map(|i| self.dy[i] * self.x[i] * at[0][i]).sum()
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.x.len()
    }

    fn row(&self, row: usize) -> Option<Self> {
        let w = Slot { offset: self.w.offset + row, len: 1 };
        Some(Self { x: vec![self.x[row]], dy: vec![self.dy[row]], w, ..self.clone() })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["y"]
    }
}

fn found(fault: Fault) -> Result<(), Mismatch> {
    let toy = Toy::with(fault);
    let case = Case::new(3);
    let mut verifier = Verifier::new(&toy, "scale", case)?;
    verifier.verify(&Scale::draw(&mut case.numbers("scale"), 5))
}

#[test]
fn a_correct_backend_passes() {
    assert_eq!(found(Fault::None), Ok(()));
}

#[test]
fn every_fault_is_found_and_named() {
    for (fault, property) in [
        (Fault::Value, "value of y"),
        (Fault::Gradient, "gradient of w"),
        (Fault::GradientOverwritten, "gradients accumulate"),
        (Fault::GapWritten, "gradients outside the op's slots are not touched"),
        (Fault::OutputAdded, "value of y"),
        (Fault::PastTheEnd, "y: elements past the end"),
        (Fault::DifferentBits, "does not depend on what it held"),
        (Fault::RowsMixed, "does not depend on the number of rows"),
        (Fault::TooShortAccepted, "x too short"),
        (Fault::UnnamedError, "x too short"),
        (Fault::NanBeside, "element 0 of dx is finite"),
    ] {
        let message = found(fault).err().map(|m| m.to_string()).unwrap_or_default();
        assert!(
            message.starts_with("scale: ") && message.contains(property),
            "{fault:?}: {message}"
        );
    }
}

#[test]
fn repetition_at_full_size_finds_what_varies() {
    let subject = Scale::draw(&mut Case::new(0).numbers("scale"), 1000);
    assert!(repeatable(&Toy::with(Fault::None), &subject).is_ok());
    for fault in [Fault::DifferentBits, Fault::RowsMixed] {
        assert!(repeatable(&Toy::with(fault), &subject).is_err(), "{fault:?}");
    }
}

/// Faults that small cases cannot show.
#[test]
fn values_and_gradients_at_full_size_are_held_against_the_formula() {
    let along = "gradient of w at full size, along a direction";
    for (fault, property) in [
        (Fault::Value, "value of y"),
        (Fault::ValueBeyondATile, "value of y"),
        (Fault::Gradient, along),
        (Fault::GradientBeyondATile, along),
        (Fault::GradientInfinite, along),
    ] {
        let at = |len| {
            let subject = Scale::draw(&mut Case::new(0).numbers("scale"), len);
            repeatable(&Toy::with(fault), &subject).err().map(|m| m.to_string())
        };
        let message = at(1000).unwrap_or_default();
        assert!(message.contains(property), "{fault:?}: {message}");
        if !matches!(fault, Fault::Value | Fault::Gradient) {
            assert_eq!(at(TILE), None, "{fault:?}");
            assert_eq!(found(fault), Ok(()), "{fault:?}");
        }
    }
}

impl OptimizerOps for Toy {
    fn grad_norm(&self, len: usize, grads: &Values, norm: &mut Values) -> Result<(), ToyError> {
        range("grad_norm", grads, 0, len)?;
        range("grad_norm", norm, 0, 1)?;
        let sum: f64 = grads[..len].iter().map(|g| g * g).sum();
        let finite = if sum.is_finite() || self.fault != Fault::NotFinite { sum } else { 0.0 };
        norm[0] = num_traits::Float::sqrt(finite);
        Ok(())
    }

    fn adamw(
        &self,
        hyper: &AdamW,
        decayed: &[Slot],
        plain: &[Slot],
        grads: &Values,
        norm: &Values,
        first_moment: &mut Values,
        second_moment: &mut Values,
        params: &mut Values,
    ) -> Result<(), ToyError> {
        range("adamw", norm, 0, 1)?;
        for slot in decayed.iter().chain(plain) {
            for buffer in [grads, first_moment, second_moment, params] {
                range("adamw", buffer, slot.offset, slot.len)?;
            }
        }
        if !norm[0].is_finite() && self.fault != Fault::StepDespiteNan {
            return Ok(());
        }
        let clip = hyper.clip;
        let factor = if clip > 0.0 { (clip / (norm[0] + 1e-6)).min(1.0) } else { 1.0 };
        let power = |beta: f64| 1.0 - num_traits::Float::powf(beta, hyper.step as f64);
        for (slots, decay) in [(decayed, hyper.weight_decay), (plain, 0.0)] {
            for i in slots.iter().flat_map(|s| s.range()) {
                let g = grads[i] * factor;
                let (m, v) = (&mut first_moment[i], &mut second_moment[i]);
                *m += (1.0 - hyper.beta1) * (g - *m);
                *v += (1.0 - hyper.beta2) * (g * g - *v);
                let root = num_traits::Float::sqrt(*v / power(hyper.beta2)) + hyper.eps;
                params[i] *= 1.0 - hyper.lr * decay;
                params[i] -= hyper.lr * *m / power(hyper.beta1) / root;
            }
        }
        Ok(())
    }

    fn ema(
        &self,
        len: usize,
        decay: f64,
        params: &Values,
        average: &mut Values,
    ) -> Result<(), ToyError> {
        range("ema", params, 0, len)?;
        range("ema", average, 0, len)?;
        for (a, p) in average.iter_mut().zip(&params[..len]) {
            *a = match self.fault {
                Fault::Value => *a + (1.0 - decay) * p,
                _ => decay * *a + (1.0 - decay) * p,
            };
        }
        Ok(())
    }
}

#[test]
fn the_checks_of_whole_traits_pass_and_fail() {
    for seed in 0..8 {
        let (case, toy) = (Case::new(seed), Toy::with(Fault::None));
        assert_eq!(super::buffers::check(&toy, case).err(), None, "seed {seed}");
        for outcome in [
            super::grad_norm::check(&toy, case),
            super::adamw::check(&toy, case),
            super::ema::check(&toy, case),
        ] {
            assert_eq!(outcome.err(), None, "seed {seed}");
        }
    }
    let case = Case::new(0);
    for fault in [Fault::ReplayedNothing, Fault::ReplayedTwice, Fault::ReplayErrorDropped] {
        let outcome = super::buffers::check(&Toy::with(fault), case);
        assert_eq!(outcome.err().map(|m| m.op), Some("replay"), "{fault:?}");
    }
    let outcome = super::buffers::check(&Toy::with(Fault::OneKeyForAll), case);
    assert_eq!(outcome.err().map(|m| m.op), Some("params_key"));
    assert!(super::ema::check(&Toy::with(Fault::Value), case).is_err());
    assert!(super::grad_norm::check(&Toy::with(Fault::NotFinite), case).is_err());
    assert!(super::adamw::check(&Toy::with(Fault::StepDespiteNan), case).is_err());
}
