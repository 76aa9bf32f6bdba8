//! `code_map`: the codes of one scale as a channel-first map of any size.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::bicubic;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{RolloutDims, RolloutOps};
use alloc::vec::Vec;

#[derive(Clone)]
struct Operands {
    dims: RolloutDims,
    scale: usize,
    size: (usize, usize),
    ids: Vec<u32>,
    codebook: Vec<f64>,
}

impl Operands {
    /// Draws operands for a map of the grid's size, unless another size is given.
    fn draw(
        n: &mut Numbers,
        dims: RolloutDims,
        scale: usize,
        size: Option<(usize, usize)>,
    ) -> Self {
        let grid = dims.schedule.scales()[scale];
        let size = size.unwrap_or((grid.height, grid.width));
        let ids = n.ids(dims.batch * dims.schedule.tokens(), dims.vocab);
        let codebook = n.values(dims.vocab * dims.channels);
        Self { dims, scale, size, ids, codebook }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["code_map"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.dims.batch * self.dims.channels * self.size.0 * self.size.1;
        let mut out = Outputs::default();
        let ids = rig.ids("ids", &self.ids)?;
        let codebook = rig.accum("codebook", &self.codebook)?;
        let mut map = rig.blank("map", len)?;
        rig.backend.code_map(&self.dims, self.scale, self.size, &ids, &codebook, &mut map)?;
        out.push("map", rig.read("map", &map, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let RolloutDims { batch, schedule, channels, .. } = self.dims;
        let grid = schedule.scales()[self.scale];
        let mut map = Vec::new();
        for b in 0..batch {
            let ids = &self.ids[b * schedule.tokens()..][schedule.range(self.scale)];
            for k in 0..channels {
                let code = |&id: &u32| self.codebook[id as usize * channels + k];
                let codes: Vec<f64> = ids.iter().map(code).collect();
                map.extend(bicubic(&codes, (grid.height, grid.width), self.size));
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
    backend.code_map(dims, dims.schedule.len(), (1, 1), &ids, &codebook, &mut map)
}

/// Checks `code_map` for every scale of a schedule, at its own size and at another.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "code_map", case)?;
    let mut n = case.numbers("code_map");
    let schedule = n.schedule();
    let dims = draw_dims(&mut n, schedule);
    for scale in 0..schedule.len() {
        verifier.verify(&Operands::draw(&mut n, dims.clone(), scale, None))?;
        let size = (n.between(1, 7), n.between(1, 7));
        verifier.verify(&Operands::draw(&mut n, dims.clone(), scale, Some(size)))?;
    }
    let outcome = past_the_last(backend, &dims);
    shape_error(&["code_map"], "the map of a scale past the last", outcome)?;
    Ok(verifier.report())
}

/// All bits of mid-size runs: 3 maps of 32×8×10, and of 32×11×16.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("code_map");
    let dims = RolloutDims { batch: 3, channels: 32, ..draw_dims(&mut n, mid_schedule()) };
    let grid = repeatable(backend, &Operands::draw(&mut n, dims.clone(), 4, None))?;
    let larger = repeatable(backend, &Operands::draw(&mut n, dims, 4, Some((11, 16))))?;
    Ok([grid, larger].concat())
}
