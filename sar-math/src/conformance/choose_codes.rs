//! `choose_codes`: guidance, filter and draw.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::{argmax, softmax};
use super::rig::{GARBAGE_ID, Rig};
use super::subject::{Expected, Outputs, Subject, Verifier, shape_error};
use super::verdict::{Mismatch, Report};
use crate::backend::{Choice, ChooseDims, DrawKeys, Filter, RolloutOps};
use crate::philox::token_uniform;
use crate::{MAX_SCALES, ScaleSchedule};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Probabilities nearer to a bound than this may round to either side of it; such draws are
/// replaced when a case is made.
const CLEAR: f64 = 1e-6;

#[derive(Clone)]
struct Operands {
    dims: ChooseDims,
    logits: Vec<f64>,
}

/// Places of the rows of the logits: sample, scale, token within the scale, token.
fn places(dims: &ChooseDims) -> Vec<(usize, usize, usize, usize)> {
    let mut places = Vec::new();
    for b in 0..dims.batch {
        for scale in dims.scales.clone() {
            let range = dims.schedule.range(scale);
            places.extend(range.clone().map(|token| (b, scale, token - range.start, token)));
        }
    }
    places
}

/// The probabilities that a filter leaves, and whether it is clear which of them remain.
///
/// Top-k comes first: logits below the k-th largest are dropped, ties with it stay. Then top-p on
/// the softmax of the rest: in ascending order, the higher index first among equals, all are
/// dropped whose cumulative probability is at most 1−p; the largest always stays.
fn filtered(logits: &[f64], filter: Filter) -> (Vec<f64>, bool) {
    let mut logits = logits.to_vec();
    if filter.top_k > 0 && filter.top_k < logits.len() {
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[filter.top_k - 1];
        logits.iter_mut().filter(|l| **l < least).for_each(|l| *l = f64::NEG_INFINITY);
    }
    let p = softmax(&logits);
    if filter.top_p == 0.0 {
        return (p, true);
    }
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| p[i] > 0.0).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]).then(b.cmp(&a)));
    let (mut cumulative, mut clear) = (0.0, true);
    for &i in &order[..order.len() - 1] {
        cumulative += p[i];
        clear &= (cumulative - (1.0 - filter.top_p)).abs() > CLEAR;
        if cumulative <= 1.0 - filter.top_p {
            logits[i] = f64::NEG_INFINITY;
        }
    }
    (softmax(&logits), clear)
}

/// The first id whose cumulative probability exceeds `uniform`, and whether that is clear.
fn drawn(p: &[f64], uniform: f64) -> (usize, bool) {
    let (mut cumulative, mut chosen, mut clear) = (0.0, None, true);
    for (id, &p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        cumulative += p;
        // The last sum is 1 up to rounding, and no uniform is as large as 1.
        clear &= (cumulative - uniform).abs() > CLEAR || cumulative > 1.0 - CLEAR;
        if cumulative > uniform && chosen.is_none() {
            chosen = Some(id);
        }
    }
    (chosen.unwrap_or(0), clear && chosen.is_some())
}

impl Operands {
    /// Logits with ties, redrawn until every choice is clear.
    fn draw(n: &mut Numbers, dims: ChooseDims) -> Self {
        let halves = if dims.guidance.is_some() { 2 } else { 1 };
        let rows = places(&dims).len();
        let logits = n.values(halves * rows * dims.vocab);
        let mut operands = Self { dims, logits };
        let vocab = operands.dims.vocab;
        for row in 0..rows {
            while !operands.choose(row).1 {
                operands.logits[row * vocab..][..vocab].copy_from_slice(&n.values(vocab));
            }
        }
        operands
    }

    /// The logits of some samples: conditional and, with guidance, unconditional ones.
    fn of_samples(&self, samples: &Range<usize>) -> Vec<f64> {
        let halves = if self.dims.guidance.is_some() { 2 } else { 1 };
        let (batch, len) = (self.dims.batch, self.logits.len() / halves / self.dims.batch);
        let of_half = |half: usize| {
            let first = half * batch + samples.start;
            self.logits[first * len..][..samples.len() * len].iter()
        };
        (0..halves).flat_map(of_half).copied().collect()
    }

    fn choose(&self, row: usize) -> (usize, bool) {
        let ChooseDims { vocab, guidance, choice, .. } = self.dims;
        let places = places(&self.dims);
        let (sample, scale, token, _) = places[row];
        let mut logits = self.logits[row * vocab..][..vocab].to_vec();
        if let Some(t) = guidance {
            let unconditional = &self.logits[(places.len() + row) * vocab..][..vocab];
            for (c, u) in logits.iter_mut().zip(unconditional) {
                *c = (1.0 + t[scale]) * *c - t[scale] * u;
            }
        }
        match choice {
            Choice::Argmax => (argmax(&logits), true),
            Choice::Draw(filter, keys) => {
                let (p, clear) = filtered(&logits, filter);
                let image = keys.first_image + sample as u64;
                let uniform = token_uniform(keys.seed, image, scale as u32, token as u32);
                let (id, sure) = drawn(&p, uniform);
                (id, sure && clear)
            }
        }
    }
}

impl<B: RolloutOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["choose_codes"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let len = self.dims.batch * self.dims.schedule.tokens();
        let mut out = Outputs::default();
        let mut ids = rig.blank_ids("ids", len)?;
        let mut unchanged = true;
        // The logits of all samples but the first are given first, then those of the first.
        for samples in [1..self.dims.batch, 0..1] {
            if samples.is_empty() {
                continue;
            }
            let logits = self.of_samples(&samples);
            let dims = ChooseDims {
                batch: samples.len(),
                first_sample: samples.start,
                ..self.dims.clone()
            };
            let device = rig.activation("logits", &logits)?;
            rig.backend.choose_codes(&dims, &device, &mut ids)?;
            let after = rig.read("logits", &device, logits.len())?;
            unchanged &= after.iter().zip(&logits).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
        }
        out.push("ids", rig.read_ids("ids", &ids, len)?);
        out.push("logits unchanged", vec![f64::from(u8::from(unchanged))]);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let tokens = self.dims.schedule.tokens();
        let mut ids = vec![f64::from(GARBAGE_ID); self.dims.batch * tokens];
        for (row, (b, _, _, token)) in places(&self.dims).into_iter().enumerate() {
            ids[b * tokens + token] = self.choose(row).0 as f64;
        }
        vec![Expected::exact("ids", ids), Expected::exact("logits unchanged", vec![1.0])]
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    /// The image keeps its number, so it keeps its draws.
    fn row(&self, row: usize) -> Option<Self> {
        let choice = match self.dims.choice {
            Choice::Draw(filter, keys) => {
                let first_image = keys.first_image + row as u64;
                Choice::Draw(filter, DrawKeys { first_image, ..keys })
            }
            Choice::Argmax => Choice::Argmax,
        };
        let logits = self.of_samples(&(row..row + 1));
        Some(Self { dims: ChooseDims { batch: 1, choice, ..self.dims.clone() }, logits })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["ids"]
    }
}

/// Strengths whose products with stored logits are all exact in f32, so that guidance rounds
/// nowhere and ties stay ties.
fn strengths() -> [f64; MAX_SCALES] {
    core::array::from_fn(|i| [0.0, 1.5, 0.25, 3.0, 2.0][i % 5])
}

fn draw_dims(n: &mut Numbers, schedule: ScaleSchedule, choice: Choice) -> ChooseDims {
    let first = n.between(0, schedule.len() - 1);
    ChooseDims {
        batch: n.between(1, 3),
        first_sample: 0,
        schedule,
        scales: first..n.between(first + 1, schedule.len()),
        vocab: n.between(2, 30),
        guidance: n.flip().then(strengths),
        choice,
    }
}

/// Rows of NaN and −∞, where the choice is 0; for argmax, also rows with one number among them.
fn without_numbers(dims: &ChooseDims, keys: DrawKeys) -> Vec<Operands> {
    let off = Filter { top_k: 0, top_p: 0.0 };
    let mut cases = Vec::new();
    for (number, choice) in [
        (None, Choice::Argmax),
        (None, Choice::Draw(off, keys)),
        (Some(1), Choice::Argmax),
        (Some(dims.vocab - 1), Choice::Argmax),
    ] {
        let dims = ChooseDims { guidance: None, choice, ..dims.clone() };
        let nothing = [f64::NAN, f64::NEG_INFINITY].into_iter().cycle();
        let logits = nothing.take(places(&dims).len() * dims.vocab);
        let mut case = Operands { dims: dims.clone(), logits: logits.collect() };
        if let Some(id) = number {
            case.logits.iter_mut().skip(id).step_by(dims.vocab).for_each(|logit| *logit = -2.0);
        }
        cases.push(case);
    }
    cases
}

fn past_the_last<B: RolloutOps>(backend: &B, mut dims: ChooseDims) -> Result<(), B::Error> {
    dims.scales = 0..dims.schedule.len() + 1;
    backend.choose_codes(&dims, &backend.activation(1 << 14)?, &mut backend.ids(256)?)
}

/// Checks `choose_codes`: argmax and draws, with and without guidance, every combination of top-k
/// and top-p, single scales, ties, a vocabulary of one, NaN and −∞.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: RolloutOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "choose_codes", case)?;
    let mut n = case.numbers("choose_codes");
    let keys = DrawKeys { seed: n.next(), first_image: n.next() >> 33 };
    let mut choices = vec![Choice::Argmax];
    for (top_k, top_p) in [(0, 0.0), (1, 0.0), (3, 0.0), (0, 0.5), (5, 0.9), (1000, 1.0)] {
        choices.push(Choice::Draw(Filter { top_k, top_p }, keys));
    }
    for choice in choices {
        let schedule = n.schedule();
        let dims = draw_dims(&mut n, schedule, choice);
        verifier.verify(&Operands::draw(&mut n, dims.clone()))?;
        let single = ChooseDims { vocab: 1, ..dims.clone() };
        verifier.verify(&Operands::draw(&mut n, single))?;
        let mut equal = Operands::draw(&mut n, ChooseDims { choice: Choice::Argmax, ..dims });
        equal.logits.fill(0.5);
        verifier.verify(&equal)?;
    }
    let schedule = n.schedule();
    let dims = draw_dims(&mut n, schedule, Choice::Argmax);
    for case in without_numbers(&dims, keys) {
        verifier.verify(&case)?;
    }
    shape_error(&["choose_codes"], "a scale past the last", past_the_last(backend, dims))?;
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 images of 150 tokens, a vocabulary of 512, guidance and filters.
///
/// # Errors
/// A second run, or an image on its own, gives other ids.
pub fn fingerprint<B: RolloutOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("choose_codes");
    let schedule = mid_schedule();
    let filter = Filter { top_k: 400, top_p: 0.95 };
    let dims = ChooseDims {
        batch: 3,
        first_sample: 0,
        schedule,
        scales: 0..schedule.len(),
        vocab: 512,
        guidance: Some(strengths()),
        choice: Choice::Draw(filter, DrawKeys { seed: case.seed, first_image: 7 }),
    };
    repeatable(backend, &Operands::draw(&mut n, dims))
}
