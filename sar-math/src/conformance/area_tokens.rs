//! `area_tokens`: a latent area-downsampled to every scale, token-major.

use super::case::{Case, Numbers, mid_schedule};
use super::math::area;
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, repeatable};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{LatentDims, RolloutOps};
use alloc::vec::Vec;

struct Operands {
    dims: LatentDims,
    schedule: ScaleSchedule,
    latent: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: LatentDims, schedule: ScaleSchedule) -> Self {
        let latent = n.values(dims.batch * dims.channels * dims.height * dims.width);
        Self { dims, schedule, latent }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["area_tokens"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.dims.batch * self.schedule.tokens() * self.dims.channels;
        let mut out = Outputs::default();
        let latent = rig.activation("latent", &self.latent)?;
        let mut tokens = rig.blank("tokens", len)?;
        rig.backend.area_tokens(self.dims, &self.schedule, &latent, &mut tokens)?;
        out.push("tokens", rig.read("tokens", &tokens, len)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let LatentDims { batch, channels, height, width } = self.dims;
        let total = self.schedule.tokens();
        let mut tokens = alloc::vec![0.0; batch * total * channels];
        for (bk, map) in self.latent.chunks(height * width).enumerate() {
            let (b, k) = (bk / channels, bk % channels);
            for (i, scale) in self.schedule.scales().iter().enumerate() {
                let map = area(map, (height, width), (scale.height, scale.width));
                for (token, value) in self.schedule.range(i).zip(map) {
                    tokens[(b * total + token) * channels + k] = value;
                }
            }
        }
        alloc::vec![Expected::near("tokens", tokens)]
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.latent.len() / self.dims.batch;
        Some(Self {
            dims: LatentDims { batch: 1, ..self.dims },
            schedule: self.schedule,
            latent: self.latent[row * len..][..len].to_vec(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["tokens"]
    }
}

/// Checks `area_tokens`: scales smaller and larger than the latent, and equal to it.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "area_tokens", case)?;
    let mut n = case.numbers("area_tokens");
    for (height, width) in [(4, 4), (1, 1), (n.between(1, 7), n.between(1, 7))] {
        let dims = LatentDims { batch: n.between(1, 3), channels: n.between(1, 4), height, width };
        let schedule = n.schedule();
        verifier.verify(&Operands::draw(&mut n, dims, schedule))?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 latents of 32×8×10 to 150 tokens.
///
/// # Errors
/// Where a second run, or a sample alone, gives other bits.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let dims = LatentDims { batch: 3, channels: 32, height: 8, width: 10 };
    let mut n = case.numbers("area_tokens");
    repeatable(backend, &Operands::draw(&mut n, dims, mid_schedule()))
}
