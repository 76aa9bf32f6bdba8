//! `cached_attention`: attention of one scale to itself and all before it, from cached keys and
//! values.
//!
//! Scale by scale it gives what `attention` gives on the whole schedule, so both share one formula.

use super::attention::{INITIAL_SCALE, Operands as Whole};
use super::case::{Case, Numbers, mid_schedule, storable};
use super::full_size::repeatable;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{
    AttentionDims, AttentionSlots, Buffers, CachedAttentionDims, RolloutOps, Slot,
};
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    /// Operands of the whole schedule.
    whole: Whole,
    /// Tokens the cache has room for.
    capacity: usize,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: AttentionDims, spare: usize, scales: &[f64]) -> Self {
        let capacity = dims.schedule.tokens() + spare;
        Self { whole: Whole::draw(n, dims, scales), capacity }
    }

    /// The part of a tensor `[b, T, width]` that lies in `tokens`.
    fn scale(&self, all: &[f64], tokens: &core::ops::Range<usize>) -> Vec<f64> {
        let whole = self.whole.dims.schedule.tokens();
        let width = all.len() / (self.whole.dims.batch * whole);
        let mut part = Vec::new();
        for b in 0..self.whole.dims.batch {
            let start = (b * whole + tokens.start) * width;
            part.extend_from_slice(&all[start..start + tokens.len() * width]);
        }
        part
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["cached_attention"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let AttentionDims { batch, heads, head_dim, schedule } = self.whole.dims;
        let width = heads * head_dim;
        let params = rig.params("params", &self.whole.layout.values)?;
        let mut cache = rig.blank("cache", 2 * batch * self.capacity * width)?;
        let mut out = Outputs::default();
        let mut whole = alloc::vec![0.0; batch * schedule.tokens() * width];
        for scale in 0..schedule.len() {
            let range = schedule.range(scale);
            let (past, tokens) = (range.start, range.len());
            let dims = CachedAttentionDims {
                batch,
                heads,
                head_dim,
                past,
                tokens,
                capacity: self.capacity,
            };
            let mut qkv = rig.activation("qkv", &self.scale(&self.whole.qkv, &range))?;
            let len = batch * tokens * width;
            let mut y = rig.blank("out", len)?;
            let slots = self.whole.slots;
            rig.backend.cached_attention(dims, &mut qkv, &params, slots, &mut cache, &mut y)?;
            let y = rig.read("out", &y, len)?;
            for b in 0..batch {
                let to = (b * schedule.tokens() + past) * width;
                whole[to..to + tokens * width]
                    .copy_from_slice(&y[b * tokens * width..][..tokens * width]);
            }
        }
        out.push("out", whole);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        alloc::vec![Expected::near("out", self.whole.formula().out)]
    }

    fn amplification(&self) -> f64 {
        self.whole.largest_factor()
    }

    fn rows(&self) -> usize {
        self.whole.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        Some(Self { whole: self.whole.sample(row), capacity: self.capacity })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["out"]
    }
}

/// A scale that does not fit into the cache.
fn overfull<B: RolloutOps>(backend: &B) -> Result<(), B::Error> {
    let dims =
        CachedAttentionDims { batch: 1, heads: 1, head_dim: 2, past: 2, tokens: 4, capacity: 5 };
    let slot = |offset, len| Slot { offset, len };
    let slots = AttentionSlots { q_bias: slot(0, 2), v_bias: slot(2, 2), scale_mul: slot(4, 1) };
    let (mut qkv, mut out) = (backend.activation(24)?, backend.activation(8)?);
    let mut cache = backend.activation(64)?;
    let params = Buffers::params(backend, 5)?;
    backend.cached_attention(dims, &mut qkv, &params, slots, &mut cache, &mut out)
}

/// Checks `cached_attention` scale by scale on caches with and without room to spare.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "cached_attention", case)?;
    let mut n = case.numbers("cached_attention");
    for spare in [0, 3] {
        let schedule = n.schedule();
        let (batch, heads, head_dim) = (n.between(1, 3), n.between(1, 3), n.between(2, 5));
        let dims = AttentionDims { batch, heads, head_dim, schedule };
        verifier.verify(&Operands::draw(&mut n, dims, spare, &[storable(INITIAL_SCALE), 0.5]))?;
    }
    if !verifier.tolerance.narrow {
        let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
        let dims = AttentionDims { batch: 2, heads: 2, head_dim: 3, schedule };
        verifier.verify(&Operands::draw(&mut n, dims, 1, &[4.5, 1e4]))?;
    }
    shape_error(&["cached_attention"], "a scale beyond the capacity", overfull(backend))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96, scale by scale.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = AttentionDims { batch: 3, heads: 3, head_dim: 32, schedule: mid_schedule() };
    let mut n = case.numbers("cached_attention");
    repeatable(backend, &Operands::draw(&mut n, dims, 10, &[INITIAL_SCALE]))
}
