//! `class_embedding`: `cond_b = table[label_b]`.

use super::case::{Case, Numbers};
use super::full_size::repeatable;
use super::math::dot;
use super::rig::{Layout, Rig};
use super::subject::{
    self, Expected, Outputs, Subject, Variable, Verifier, refused, same_bits, shape_error,
};
use super::verdict::{Mismatch, Report};
use crate::Real as _;
use crate::backend::{EmbeddingOps, Slot};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    width: usize,
    labels: Vec<u32>,
    layout: Layout,
    table: Slot,
    dcond: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, labels: Vec<u32>, width: usize, classes: usize) -> Self {
        let mut layout = Layout::default();
        let table = layout.draw(n, (classes + 1) * width);
        let dcond = n.values(labels.len() * width);
        Self { width, labels, layout, table, dcond }
    }

    fn formula(&self, table: &[f64]) -> Vec<f64> {
        let row = |&label: &u32| &table[label as usize * self.width..][..self.width];
        self.labels.iter().flat_map(row).copied().collect()
    }
}

impl<B: EmbeddingOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["class_embedding"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (batch, len) = (self.labels.len(), self.dcond.len());
        let mut out = Outputs::default();
        let labels = rig.ids("labels", &self.labels)?;
        let params = rig.params("params", &self.layout.values)?;
        let mut cond = rig.blank("cond", len)?;
        rig.backend.class_embedding(batch, self.width, &labels, &params, self.table, &mut cond)?;
        out.push("cond", rig.read("cond", &cond, len)?);
        let labels = rig.ids("labels of backward", &self.labels)?;
        let dcond = rig.activation("dcond", &self.dcond)?;
        let mut grads = rig.accum("grads", start)?;
        rig.backend
            .class_embedding_backward(batch, self.width, &labels, &dcond, self.table, &mut grads)?;
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        alloc::vec![Expected::near("cond", self.formula(&self.layout.get(self.table)))]
    }

    fn variables(&self) -> Vec<Variable> {
        alloc::vec![Variable::parameter("the table", &self.layout, self.table)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        dot(&self.dcond, &self.formula(&at[0]))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        self.labels.len()
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(Self {
            labels: alloc::vec![self.labels[row]],
            dcond: self.dcond[row * self.width..][..self.width].to_vec(),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["cond"]
    }
}

/// Checks a table of frozen weights that is held at full width, between other weights that need not
/// be, and a table that lies outside the weights.
fn frozen<B: EmbeddingOps>(backend: &B, of: &Operands) -> Result<(), Mismatch> {
    const OP: &str = "class_embedding";
    let (before, after) = (5, 3);
    let mut host = vec![B::Host::of(7.5); before];
    host.extend(of.layout.get(of.table).iter().map(|&v| B::Host::of(v)));
    host.extend(vec![B::Host::of(7.5); after]);
    let table = Slot { offset: before, len: of.table.len };
    let run = || {
        let rig = Rig::new(backend, 0, 7.5);
        let (batch, labels) = (of.labels.len(), rig.ids("labels", &of.labels)?);
        let params = backend.frozen_params(&host, &[table])?;
        let mut cond = rig.blank("cond", of.dcond.len())?;
        backend.class_embedding(batch, of.width, &labels, &params, table, &mut cond)?;
        rig.read("cond", &cond, of.dcond.len())
    };
    let zero = vec![0.0; of.layout.values.len()];
    let trained = subject::run(backend, of, 0, 7.5, &zero)?;
    let frozen = run().map_err(|e: B::Error| refused(OP, &e))?;
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let what = "frozen weights give the bits of others";
    same_bits(OP, what, &bits(trained.get("cond")), &bits(&frozen))?;
    let outside = Slot { offset: host.len(), len: 1 };
    let outcome = backend.frozen_params(&host, &[outside]).map(drop);
    shape_error(&["frozen_params"], "a tensor outside the weights", outcome)
}

/// Checks `class_embedding` and its backward: repeated labels, the unconditional one, and a frozen table.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "class_embedding", case)?;
    let mut n = case.numbers("class_embedding");
    let (classes, batch) = (n.between(1, 4), n.between(1, 5));
    let labels = n.ids(batch, classes + 1);
    let width = n.between(1, 6);
    let operands = Operands::draw(&mut n, labels, width, classes);
    verifier.verify(&operands)?;
    frozen(backend, &operands)?;
    let last = classes as u32;
    verifier.verify(&Operands::draw(&mut n, alloc::vec![last, 0, last, last], width, classes))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 48 labels of 10 classes, width 96.
///
/// # Errors
/// A second run, or a label on its own, gives other bits.
pub fn fingerprint<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("class_embedding");
    let labels = n.ids(48, 11);
    repeatable(backend, &Operands::draw(&mut n, labels, 96, 10))
}
