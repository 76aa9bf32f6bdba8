//! `nearest_code`: the codebook row nearest to each normalised vector.

use super::case::{Case, Numbers};
use super::math::{dot, normalised};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Verifier, repeatable};
use super::verdict::{Mismatch, Report};
use crate::backend::RolloutOps;
use alloc::vec::Vec;

/// Cosines nearer than this may round to either side in f32; ids are compared where the best code
/// is farther ahead, or exactly tied.
const CLEAR: f64 = 1e-4;

struct Operands {
    vocab: usize,
    channels: usize,
    z: Vec<f64>,
    codebook: Vec<f64>,
}

/// Unit vectors, rounded to f32, some of them twice: the lower index wins.
pub(super) fn draw_codebook(n: &mut Numbers, vocab: usize, channels: usize) -> Vec<f64> {
    let mut codebook: Vec<f64> = Vec::new();
    for v in 0..vocab {
        if v > 0 && n.between(0, 3) == 0 {
            let twin = n.between(0, v - 1) * channels;
            codebook.extend_from_within(twin..twin + channels);
        } else {
            let row = normalised(&n.values(channels));
            codebook.extend(row.iter().map(|&x| f64::from(x as f32)));
        }
    }
    codebook
}

/// The unit vectors along the axes.
pub(super) fn axes(channels: usize) -> Vec<f64> {
    let one = |i: usize| f64::from(u8::from(i.is_multiple_of(channels + 1)));
    (0..channels * channels).map(one).collect()
}

/// The nearest row of `codebook` to `z`, and whether it is clear which one that is.
pub(super) fn nearest(z: &[f64], codebook: &[f64]) -> (usize, bool) {
    let z = normalised(z);
    let cosines: Vec<f64> = codebook.chunks(z.len()).map(|row| dot(&z, row)).collect();
    let best = super::math::argmax(&cosines);
    let clear = cosines.iter().all(|&c| c == cosines[best] || c < cosines[best] - CLEAR);
    (best, clear)
}

impl Operands {
    fn draw(n: &mut Numbers, rows: usize, vocab: usize, channels: usize) -> Self {
        let codebook = draw_codebook(n, vocab, channels);
        let mut z = Vec::new();
        while z.len() < rows * channels {
            let row = n.values(channels);
            if nearest(&row, &codebook).1 {
                z.extend(row);
            }
        }
        Self { vocab, channels, z, codebook }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["nearest_code"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let rows = self.z.len() / self.channels;
        let mut out = Outputs::default();
        let z = rig.activation("z", &self.z)?;
        let codebook = rig.accum("codebook", &self.codebook)?;
        let mut ids = rig.blank_ids("ids", rows)?;
        rig.backend.nearest_code(rows, self.vocab, self.channels, &z, &codebook, &mut ids)?;
        out.push("ids", rig.read_ids("ids", &ids, rows)?);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let ids = self.z.chunks(self.channels).map(|z| nearest(z, &self.codebook).0 as f64);
        alloc::vec![Expected::exact("ids", ids.collect())]
    }

    fn rows(&self) -> usize {
        self.z.len() / self.channels
    }

    fn row(&self, row: usize) -> Option<Self> {
        let z = self.z[row * self.channels..][..self.channels].to_vec();
        Some(Self {
            vocab: self.vocab,
            channels: self.channels,
            z,
            codebook: self.codebook.clone(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["ids"]
    }
}

/// Checks `nearest_code`: repeated codes, a codebook of one, a single channel, a zero vector.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "nearest_code", case)?;
    let mut n = case.numbers("nearest_code");
    for (vocab, channels) in [(n.between(2, 40), n.between(2, 8)), (1, 3), (4, 1)] {
        let rows = n.between(1, 6);
        verifier.verify(&Operands::draw(&mut n, rows, vocab, channels))?;
    }
    // Every code is as far from zero as any other, exactly where codes lie on the axes.
    let mut zero = Operands::draw(&mut n, 2, 4, 4);
    zero.codebook = axes(4);
    zero.z = [[0.0; 4], [0.0, -1.0, 0.5, 0.25]].concat();
    verifier.verify(&zero)?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 450 vectors, 512 codes of 32 channels.
///
/// # Errors
/// Where a second run, or a vector alone, gives other ids.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    repeatable(backend, &Operands::draw(&mut case.numbers("nearest_code"), 450, 512, 32))
}
