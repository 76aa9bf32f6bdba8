//! `code_map`: the codes of one scale as a channel-first map.

use super::case::{Case, Numbers, mid_schedule};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, repeatable, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{RolloutDims, RolloutOps};
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: RolloutDims,
    scale: usize,
    ids: Vec<u32>,
    codebook: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: RolloutDims, scale: usize) -> Self {
        let ids = n.ids(dims.batch * dims.schedule.tokens(), dims.vocab);
        let codebook = n.values(dims.vocab * dims.channels);
        Self { dims, scale, ids, codebook }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["code_map"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let places = self.dims.schedule.range(self.scale).len();
        let len = self.dims.batch * self.dims.channels * places;
        let mut out = Outputs::default();
        let ids = rig.ids("ids", &self.ids)?;
        let codebook = rig.accum("codebook", &self.codebook)?;
        let mut map = rig.blank("map", len)?;
        rig.backend.code_map(&self.dims, self.scale, &ids, &codebook, &mut map)?;
        out.push("map", rig.read("map", &map, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let RolloutDims { batch, schedule, channels, .. } = self.dims;
        let mut map = Vec::new();
        for b in 0..batch {
            let ids = &self.ids[b * schedule.tokens()..][schedule.range(self.scale)];
            for k in 0..channels {
                map.extend(ids.iter().map(|&id| self.codebook[id as usize * channels + k]));
            }
        }
        alloc::vec![Expected::near("map", map)]
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let tokens = self.dims.schedule.tokens();
        Some(Self {
            dims: RolloutDims { batch: 1, ..self.dims.clone() },
            ids: self.ids[row * tokens..][..tokens].to_vec(),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["map"]
    }
}

fn draw_dims(n: &mut Numbers, schedule: ScaleSchedule) -> RolloutDims {
    let (batch, channels, vocab) = (n.between(1, 3), n.between(1, 4), n.between(1, 9));
    RolloutDims { batch, schedule, scales: 1..schedule.len(), channels, vocab }
}

fn past_the_last<B: RolloutOps>(backend: &B, dims: &RolloutDims) -> Result<(), B::Error> {
    let (ids, codebook) = (backend.ids(256)?, backend.accum(256)?);
    let mut map = backend.activation(256)?;
    backend.code_map(dims, dims.schedule.len(), &ids, &codebook, &mut map)
}

/// Checks `code_map` for every scale of a schedule.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "code_map", case)?;
    let mut n = case.numbers("code_map");
    let schedule = n.schedule();
    let dims = draw_dims(&mut n, schedule);
    for scale in 0..schedule.len() {
        verifier.verify(&Operands::draw(&mut n, dims.clone(), scale))?;
    }
    let outcome = past_the_last(backend, &dims);
    shape_error(&["code_map"], "the map of a scale past the last", outcome)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 maps of 32×8×10.
///
/// # Errors
/// Where a second run, or a sample alone, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("code_map");
    let dims = RolloutDims { batch: 3, channels: 32, ..draw_dims(&mut n, mid_schedule()) };
    repeatable(backend, &Operands::draw(&mut n, dims, 4))
}
