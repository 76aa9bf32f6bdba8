//! `soft_cross_entropy`: against the softmax of a teacher that takes no gradient.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::loss_rows::{
    TAILS, Weighted, draw_dims, extreme_logits, half_excluded, hand_over, in_proportion,
    of_samples, one_token, parts, stored_lse, target_rows, token_loss, unweighted, weight,
    wide_dims,
};
use super::math::{argmax, log_sum_exp, softmax};
use super::rig::Rig;
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::ScaleSchedule;
use crate::backend::{LossDims, LossOps};
use alloc::vec;
use alloc::vec::Vec;

/// Soft targets are not smoothed, whatever the dimensions say.
const UNUSED_SMOOTHING: f64 = 0.125;

#[derive(Clone)]
struct Operands {
    dims: LossDims,
    logits: Vec<f64>,
    teacher: Vec<f64>,
}

impl Operands {
    fn draw(n: &mut Numbers, dims: LossDims) -> Self {
        let logits = n.values(dims.batch * dims.schedule.tokens() * dims.vocab);
        let teacher = n.values(dims.batch * dims.targets.tokens * dims.vocab);
        Self { dims, logits, teacher }
    }

    /// The teacher's logits for each row of the student's.
    fn teachers(&self) -> impl Iterator<Item = &[f64]> + Clone {
        let v = self.dims.vocab;
        target_rows(&self.dims).map(move |row| &self.teacher[row * v..][..v])
    }

    /// `Σ softmax(teacher)·(lse − l)`.
    fn losses(&self, logits: &[f64]) -> Vec<f64> {
        let row = |(l, teacher): (&[f64], &[f64])| {
            let lse = log_sum_exp(l);
            softmax(teacher).iter().zip(l).map(|(p, l)| p * (lse - l)).sum()
        };
        logits.chunks(self.dims.vocab).zip(self.teachers()).map(row).collect()
    }
}

impl<B: LossOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["soft_cross_entropy"]
    }

    fn run(&self, rig: &Rig<'_, B>, _start: &[f64]) -> Result<Outputs, B::Error> {
        let rows = self.logits.len() / self.dims.vocab;
        let mut out = Outputs::default();
        let width = self.dims.schedule.tokens() * self.dims.vocab;
        let teacher_width = self.dims.targets.tokens * self.dims.vocab;
        let mut loss = token_loss(rig, rows, true)?;
        let (mut afterwards, mut teacher_afterwards) = (Vec::new(), Vec::new());
        for (dims, samples) in parts(&self.dims) {
            let logits = of_samples(&self.logits, &samples, width);
            let teacher = of_samples(&self.teacher, &samples, teacher_width);
            let device = rig.activation("logits", &logits)?;
            let teacher_device = rig.activation("teacher", &teacher)?;
            rig.backend.soft_cross_entropy(&dims, &device, &teacher_device, &mut loss)?;
            afterwards.extend(rig.read("logits", &device, logits.len())?);
            teacher_afterwards.extend(rig.read("teacher", &teacher_device, teacher.len())?);
        }
        out.push("loss", rig.read_accum("loss", &loss.loss_bl, rows)?);
        out.push("hits", rig.read_accum("hits", &loss.hits_bl, rows)?);
        out.push("lse", rig.read_accum("lse", &loss.lse_bl, rows)?);
        out.push("teacher_lse", rig.read_accum("teacher_lse", &loss.teacher_lse_bl, rows)?);
        out.push("logits of forward", afterwards);
        out.push("teacher of forward", teacher_afterwards);

        let saved = hand_over(rig, &loss, rows, true)?;
        let mut dlogits = Vec::new();
        for (dims, samples) in parts(&self.dims) {
            let logits = of_samples(&self.logits, &samples, width);
            let teacher = of_samples(&self.teacher, &samples, teacher_width);
            let mut device = rig.activation("logits of backward", &logits)?;
            let teacher = rig.activation("teacher of backward", &teacher)?;
            rig.backend.soft_cross_entropy_backward(&dims, &mut device, &teacher, &saved)?;
            dlogits.extend(rig.read("dlogits", &device, logits.len())?);
        }
        out.push("dlogits of weight zero", unweighted(&self.dims, &dlogits));
        out.push("logits", dlogits);
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let rows = self.logits.chunks(self.dims.vocab);
        let teachers = self.teachers();
        let hit = |(l, t): (&[f64], &[f64])| f64::from(u8::from(argmax(l) == argmax(t)));
        let zero = unweighted(&self.dims, &vec![0.0; self.logits.len()]);
        vec![
            Expected::near("loss", self.losses(&self.logits)),
            Expected::exact("hits", rows.clone().zip(teachers.clone()).map(hit).collect()),
            Expected::near("lse", rows.map(log_sum_exp).collect()),
            Expected::near("teacher_lse", teachers.map(log_sum_exp).collect()),
            Expected::exact("logits of forward", self.logits.clone()),
            Expected::exact("teacher of forward", self.teacher.clone()),
            Expected::exact("dlogits of weight zero", zero),
        ]
    }

    fn variables(&self) -> Vec<Variable> {
        vec![Variable::activation("logits", &self.logits)]
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let losses = self.losses(&at[0]);
        losses.iter().enumerate().map(|(row, loss)| weight(&self.dims, row) * loss).sum()
    }

    fn stored(&self) -> f64 {
        stored_lse(&self.dims, &self.logits) + stored_lse(&self.dims, &self.teacher)
    }

    fn rows(&self) -> usize {
        self.dims.batch
    }

    fn row(&self, row: usize) -> Option<Self> {
        let len = self.dims.schedule.tokens() * self.dims.vocab;
        let teacher = self.dims.targets.tokens * self.dims.vocab;
        Some(Self {
            dims: LossDims { batch: 1, ..self.dims },
            logits: self.logits[row * len..][..len].to_vec(),
            teacher: self.teacher[row * teacher..][..teacher].to_vec(),
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["loss", "hits", "lse", "teacher_lse"]
    }
}

impl Weighted for Operands {
    fn dims(&mut self) -> &mut LossDims {
        &mut self.dims
    }

    fn logits(&mut self) -> &mut Vec<f64> {
        &mut self.logits
    }
}

/// Checks `soft_cross_entropy` and its backward with the logits of a batch in two parts: scales of
/// weight zero (of logits that are no numbers, too), small weights, vocabularies as of `cross_entropy`, saturated and
/// tied logits on both sides.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: LossOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "soft_cross_entropy", case)?;
    let mut n = case.numbers("soft_cross_entropy");
    for _ in 0..2 {
        let schedule = n.schedule();
        let dims = draw_dims(&mut n, schedule, UNUSED_SMOOTHING);
        verifier.verify(&Operands::draw(&mut n, dims))?;
    }
    let schedule = ScaleSchedule::from_sides(&[1, 2]).expect("growing sides");
    let dims = LossDims { vocab: n.between(2, 6), ..draw_dims(&mut n, schedule, UNUSED_SMOOTHING) };
    let mut extreme = Operands::draw(&mut n, dims);
    extreme.logits = extreme_logits(&mut n, dims.batch * schedule.tokens(), dims.vocab);
    verifier.verify(&extreme)?;
    extreme.teacher = extreme_logits(&mut n, dims.batch * dims.targets.tokens, dims.vocab);
    verifier.verify(&extreme)?;
    let dims = LossDims { vocab: 1, ..dims };
    verifier.verify(&Operands::draw(&mut n, dims))?;
    for vocab in TAILS {
        let dims = one_token(&mut n, vocab);
        verifier.verify(&Operands::draw(&mut n, dims))?;
    }
    let dims = half_excluded(&mut n, UNUSED_SMOOTHING);
    in_proportion(backend, &Operands::draw(&mut n, dims))?;
    Ok(verifier.report())
}

/// All bits of two mid-size runs, as of `cross_entropy`.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: LossOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("soft_cross_entropy");
    let dims = LossDims { batch: 3, vocab: 528, ..draw_dims(&mut n, mid_schedule(), 0.0) };
    let mut bits = repeatable(backend, &Operands::draw(&mut n, dims))?;
    let dims = wide_dims(&mut n);
    bits.extend(repeatable(backend, &Operands::draw(&mut n, dims))?);
    Ok(bits)
}
