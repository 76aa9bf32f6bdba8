//! `area_tokens`: a latent area-downsampled to every scale, token-major.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::area;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{MapDims, RolloutOps, TokenSpan};
use alloc::vec::Vec;

/// Name of the change of the elements that the op leaves as they were.
const REST: &str = "change of the rest of a row";

struct Operands {
    dims: MapDims,
    span: TokenSpan,
    latent: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: MapDims, span: TokenSpan) -> Self {
        let latent = n.values(dims.batch * dims.channels * dims.height * dims.width);
        Self { dims, span, latent }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["area_tokens"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let (columns, k) = (self.span.columns(), self.dims.channels);
        let row = self.span.row() * k;
        let len = self.dims.batch * row;
        let mut out = Outputs::default();
        let latent = rig.activation("latent", &self.latent)?;
        let mut tokens = rig.blank("tokens", len)?;
        rig.backend.area_tokens(self.dims, &self.span, &latent, &mut tokens)?;
        // The op writes only these columns; the rest of a row belongs to other ops.
        let tokens = rig.read("tokens", &tokens, len)?;
        let (from, to) = (columns.start * k, columns.end * k);
        let written = tokens.chunks(row).flat_map(|row| &row[from..to]);
        out.push("tokens", written.copied().collect());
        let rest = tokens.chunks(row).flat_map(|row| row[..from].iter().chain(&row[to..]));
        out.push(REST, rest.map(|v| v - rig.garbage).collect());
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let MapDims { batch, channels, height, width } = self.dims;
        let schedule = &self.span.schedule;
        let columns = schedule.span(self.span.scales.clone());
        let total = columns.len();
        let mut tokens = alloc::vec![0.0; batch * total * channels];
        for (bk, map) in self.latent.chunks(height * width).enumerate() {
            let (b, k) = (bk / channels, bk % channels);
            for i in self.span.scales.clone() {
                let scale = schedule.scales()[i];
                let map = area(map, (height, width), (scale.height, scale.width));
                for (token, value) in schedule.range(i).zip(map) {
                    tokens[(b * total + token - columns.start) * channels + k] = value;
                }
            }
        }
        let rest = batch * (self.span.row() - total) * channels;
        let untouched = Expected::exact(REST, alloc::vec![0.0; rest]);
        alloc::vec![Expected::near("tokens", tokens), untouched]
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.latent.len() / self.dims.batch;
        Some(Self {
            dims: MapDims { batch: 1, ..self.dims },
            span: self.span.clone(),
            latent: self.latent[row * len..][..len].to_vec(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["tokens"]
    }
}

/// Draws rows that hold some scales of a schedule, and selects some of those.
pub(super) fn draw_span(n: &mut Numbers, schedule: ScaleSchedule) -> TokenSpan {
    let from = n.between(0, schedule.len() - 1);
    let to = n.between(from + 1, schedule.len());
    let first = n.between(from, to - 1);
    TokenSpan { schedule, held: from..to, scales: first..n.between(first + 1, to) }
}

fn past_the_row<B: RolloutOps>(backend: &B) -> Result<(), B::Error> {
    let dims = MapDims { batch: 1, channels: 1, height: 1, width: 1 };
    let (latent, mut tokens) = (backend.activation(64)?, backend.activation(64)?);
    let span = TokenSpan { held: 0..2, scales: 1..3, ..TokenSpan::whole(&mid_schedule()) };
    backend.area_tokens(dims, &span, &latent, &mut tokens)
}

/// Checks `area_tokens`: scales smaller and larger than the latent, and equal to it.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "area_tokens", case)?;
    let mut n = case.numbers("area_tokens");
    for (height, width) in [(4, 4), (1, 1), (n.between(1, 7), n.between(1, 7))] {
        let dims = MapDims { batch: n.between(1, 3), channels: n.between(1, 4), height, width };
        let schedule = n.schedule();
        verifier.verify(&Operands::draw(&mut n, dims, TokenSpan::whole(&schedule)))?;
        let span = draw_span(&mut n, schedule);
        verifier.verify(&Operands::draw(&mut n, dims, span))?;
    }
    let outcome = past_the_row(backend);
    shape_error(&["area_tokens"], "a scale that the rows do not hold", outcome)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 latents of 32×8×10 to 150 tokens.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = MapDims { batch: 3, channels: 32, height: 8, width: 10 };
    let mut n = case.numbers("area_tokens");
    repeatable(backend, &Operands::draw(&mut n, dims, TokenSpan::whole(&mid_schedule())))
}
