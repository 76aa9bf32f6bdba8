//! `nearest_code`: the codebook row nearest to each vector, by angle or by distance.

use super::area_tokens::draw_span;
use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::{dot, normalised};
use super::rig::{GARBAGE_ID, Rig};
use super::subject::{Expected, Outputs, Subject, Verifier};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{CodeDims, Distance, RolloutOps, TokenSpan};
use alloc::vec::Vec;

/// Name of the elements that the op leaves as they were.
const REST: &str = "the rest of a row";

/// Cosines, and half squared distances, that are closer than this may round to either side in f32;
/// ids are compared where the best code is farther ahead, or exactly tied.
const CLEAR: f64 = 1e-4;

struct Operands {
    batch: usize,
    span: TokenSpan,
    codes: CodeDims,
    z: Vec<f64>,
    codebook: Vec<f64>,
}

/// Draws unit vectors, rounded to f32, some of them twice: the lower index wins.
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

/// The nearest row of `codebook` to `z` by angle, and whether it is clear which one that is.
pub(super) fn nearest(z: &[f64], codebook: &[f64]) -> (usize, bool) {
    let z = normalised(z);
    clearest(codebook.chunks(z.len()), |row| dot(&z, row))
}

/// The same by distance, where each row is a code followed by a number that depends on it.
fn nearest_by_distance(z: &[f64], codebook: &[f64]) -> (usize, bool) {
    let apart = |row: &[f64]| z.iter().zip(row).map(|(z, e)| (z - e) * (z - e)).sum::<f64>();
    clearest(codebook.chunks(z.len() + 1), |row| -0.5 * apart(row))
}

/// The nearest row, and whether it is clear, so that no row other than its equals is about as near.
fn clearest<'a>(
    rows: impl Iterator<Item = &'a [f64]>,
    nearness: impl Fn(&[f64]) -> f64,
) -> (usize, bool) {
    let rows: Vec<&[f64]> = rows.collect();
    let near: Vec<f64> = rows.iter().map(|row| nearness(row)).collect();
    let best = super::math::argmax(&near);
    let apart =
        |(row, &near_row): (&&[f64], &f64)| *row == rows[best] || near_row < near[best] - CLEAR;
    (best, rows.iter().zip(&near).all(apart))
}

/// Draws codes of any length, rounded to f32, each followed by `−|e|²/2`; some of them twice.
fn draw_lifted(n: &mut Numbers, vocab: usize, channels: usize) -> Vec<f64> {
    let mut codebook: Vec<f64> = Vec::new();
    for v in 0..vocab {
        if v > 0 && n.between(0, 3) == 0 {
            let twin = n.between(0, v - 1) * (channels + 1);
            codebook.extend_from_within(twin..twin + channels + 1);
        } else {
            let code: Vec<f64> = n.values(channels).iter().map(|&x| f64::from(x as f32)).collect();
            codebook.extend(&code);
            codebook.push(f64::from((-0.5 * dot(&code, &code)) as f32));
        }
    }
    codebook
}

/// A span whose rows have one token.
fn one_token() -> TokenSpan {
    TokenSpan::whole(&ScaleSchedule::from_sides(&[1]).expect("one token"))
}

impl Operands {
    fn draw(n: &mut Numbers, batch: usize, span: TokenSpan, codes: CodeDims) -> Self {
        let codebook = match codes.distance {
            Distance::Cosine => draw_codebook(n, codes.vocab, codes.channels),
            Distance::Euclidean => draw_lifted(n, codes.vocab, codes.channels),
        };
        let mut drawn = Self { batch, span, codes, z: Vec::new(), codebook };
        while drawn.z.len() < batch * drawn.span.columns().len() * codes.channels {
            let row = n.values(codes.channels);
            if drawn.nearest(&row).1 {
                drawn.z.extend(row);
            }
        }
        drawn
    }

    fn nearest(&self, z: &[f64]) -> (usize, bool) {
        match self.codes.distance {
            Distance::Cosine => nearest(z, &self.codebook),
            Distance::Euclidean => nearest_by_distance(z, &self.codebook),
        }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["nearest_code"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let (row, columns) = (self.span.row(), self.span.columns());
        let mut out = Outputs::default();
        let z = rig.activation("z", &self.z)?;
        let codebook = rig.accum("codebook", &self.codebook)?;
        let len = self.batch * row;
        let mut ids = rig.blank_ids("ids", len)?;
        rig.backend.nearest_code(self.batch, &self.span, self.codes, &z, &codebook, &mut ids)?;
        // The op writes only these columns; the rest of a row belongs to other ops.
        let ids = rig.read_ids("ids", &ids, len)?;
        out.push("ids", ids.chunks(row).flat_map(|row| &row[columns.clone()]).copied().collect());
        let rest = ids.chunks(row);
        let rest = rest.flat_map(|row| row[..columns.start].iter().chain(&row[columns.end..]));
        out.push(REST, rest.copied().collect());
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let ids = self.z.chunks(self.codes.channels).map(|z| self.nearest(z).0 as f64);
        let rest = self.batch * (self.span.row() - self.span.columns().len());
        let untouched = alloc::vec![f64::from(GARBAGE_ID); rest];
        alloc::vec![Expected::exact("ids", ids.collect()), Expected::exact(REST, untouched),]
    }

    fn rows(&self) -> usize {
        self.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.z.len() / self.batch;
        let z = self.z[row * len..][..len].to_vec();
        Some(Self {
            batch: 1,
            span: self.span.clone(),
            codebook: self.codebook.clone(),
            z,
            ..*self
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
        for distance in [Distance::Cosine, Distance::Euclidean] {
            let codes = CodeDims { vocab, channels, distance };
            let rows = n.between(1, 6);
            verifier.verify(&Operands::draw(&mut n, rows, one_token(), codes))?;
            let schedule = n.schedule();
            let span = draw_span(&mut n, schedule);
            verifier.verify(&Operands::draw(&mut n, 2, span, codes))?;
        }
    }
    // Zero is equally far from all codes, and exactly so where the codes lie on the axes.
    let codes = CodeDims { vocab: 4, channels: 4, distance: Distance::Cosine };
    let mut zero = Operands::draw(&mut n, 2, one_token(), codes);
    zero.codebook = axes(4);
    zero.z = [[0.0; 4], [0.0, -1.0, 0.5, 0.25]].concat();
    verifier.verify(&zero)?;
    Ok(verifier.report())
}

/// All bits of mid-size runs with 512 codes of 32 channels: 450 vectors by angle, two scales of 3 rows by distance.
///
/// # Errors
/// A second run, or a vector on its own, gives other ids.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let codes = CodeDims { vocab: 512, channels: 32, distance: Distance::Cosine };
    let mut n = case.numbers("nearest_code");
    let by_angle = repeatable(backend, &Operands::draw(&mut n, 450, one_token(), codes))?;
    let codes = CodeDims { distance: Distance::Euclidean, ..codes };
    let span = TokenSpan { scales: 2..4, ..TokenSpan::whole(&mid_schedule()) };
    let by_distance = repeatable(backend, &Operands::draw(&mut n, 3, span, codes))?;
    Ok([by_angle, by_distance].concat())
}
