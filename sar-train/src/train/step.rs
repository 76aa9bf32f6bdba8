//! One step's gradients: tokenise, teacher pass, rollout, student pass.
//!
//! Nothing here waits for the device and nothing is allocated there. Gradients of the first pass are
//! taken before the second runs in the same memory, so the peak of SAR is that of teacher forcing.

use super::memory::{SoftTeacher, StepMemory};
use super::settings::StepSettings;
use crate::model::generator::{Generator, parts};
use crate::model::tokenizer::Quantizer;
use crate::sample::{self, Decoding, Model};
use sar_math::backend::{Backend, Buffers, ChooseDims, MapDims, ShapeError};
use sar_math::guidance::Guidance;
use sar_math::loss::{LossBatch, StudentTargets, Supervision};
use sar_math::philox::{Purpose, Stream};
use sar_math::rollout::{Pass, Plan, Rollout, Target};
use sar_math::{MAX_SCALES, ScaleSchedule};
use std::ops::Range;

/// The model that a step trains, its settings, and one micro-batch of its images.
pub struct StepInput<'a, B: Buffers> {
    /// What every step of the run has in common.
    pub settings: &'a StepSettings,
    /// The model.
    pub generator: &'a Generator,
    /// Its weights.
    pub params: &'a B::Params,
    /// Turns latents into codes, and codes into inputs.
    pub quantizer: &'a Quantizer<B>,
    /// Latents of the images, `[b, k, h, w]`.
    pub latents: &'a B::Activation,
    /// Their dimensions.
    pub latent_dims: MapDims,
    /// Classes of the images, before class dropout.
    pub labels: &'a [u32],
    /// Passes of the step: which scales feed which, and what supervises them.
    pub plan: &'a Plan,
    /// Number of the step, which selects its random numbers.
    pub step: u64,
    /// Which of the step's images these are.
    pub micro_batch: MicroBatch,
}

/// The place of a forward pass's images among all images of their step. Random numbers depend on it, so that a step draws
/// the same ones however its images are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Number of the micro-batch; the first, 0, begins a step.
    pub index: usize,
    /// Number of its first image among the step's.
    pub first_image: usize,
    /// Images of the whole step.
    pub images_in_step: usize,
}

/// Source of the codes that a pass reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Codes {
    Truth,
    Own,
    Mixed,
}

impl<B: Backend> StepMemory<B> {
    /// Adds the gradients of a micro-batch to those of its step; the first one begins a new step. Losses stay on the device.
    ///
    /// # Errors
    /// A shape error, if the batch or schedule is larger than the memory, or if the plan needs memory that was not asked
    /// for (see [`Needs`](super::Needs)); a device fault.
    pub fn accumulate(&mut self, backend: &B, input: &StepInput<'_, B>) -> Result<(), B::Error> {
        let (plan, part) = (input.plan, input.micro_batch.index);
        if part == 0 {
            self.grads.begin(backend)?;
            self.supervised.clear();
        }
        self.tokenise(backend, input, &plan.first.schedule)?;
        self.upload_labels(backend, input)?;
        if let Rollout::ScaleByScale { scales } = plan.rollout {
            self.decode_scale_by_scale(backend, input, scales)?;
        }
        let teacher = self.teacher_pass(backend, input)?;
        self.teacher_loss.keep(backend, &teacher, part)?;
        let student = match &plan.second {
            None => None,
            Some(second) => Some(self.student_pass(backend, input, second)?),
        };
        if let Some(student) = &student {
            self.student_loss.keep(backend, student, part)?;
        }
        self.supervised.push((teacher, student));
        Ok(())
    }

    /// Computes the codes of the images on every scale.
    pub(crate) fn tokenise(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        schedule: &ScaleSchedule,
    ) -> Result<(), B::Error> {
        let (latents, coding, ids) = (input.latents, &mut self.coding, &mut self.truth);
        input.quantizer.codes(backend, coding, input.latent_dims, schedule, latents, ids)
    }

    fn upload_labels(&mut self, backend: &B, input: &StepInput<'_, B>) -> Result<(), B::Error> {
        let unconditional = input.generator.shape().classes as u32;
        let mut stream = Stream::new(input.settings.seed, Purpose::ClassDropout, input.step);
        let mut dropped = || stream.chance(input.settings.class_dropout);
        for _ in 0..input.micro_batch.first_image {
            dropped();
        }
        let kept = |&label| if dropped() { unconditional } else { label };
        self.labels.clear();
        self.labels.extend(input.labels.iter().map(kept));
        if input.settings.guidance() != Guidance::Off {
            self.labels.resize(2 * input.labels.len(), unconditional);
        }
        backend.upload_ids(&self.labels, &mut self.given.labels, 0)
    }

    /// Samples the scales that the first pass reads from the model itself, and takes ground truth for the others. An image
    /// whose label was dropped is sampled without it as well, so that the pass repeats what was sampled.
    fn decode_scale_by_scale(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        scales: usize,
    ) -> Result<(), B::Error> {
        let reads = input.plan.first.reads_rollout();
        let sampler = self.sampler.as_mut().ok_or_else(|| no_memory("own samples"))?;
        let given = sample::Given {
            ids: &self.truth,
            scales: reads.map(|own| !own),
            kept: None,
            latents: None,
        };
        let decoding = Decoding {
            guidance: None,
            choice: input.settings.choice(input.step, input.micro_batch),
        };
        sampler.set_schedule(&input.plan.first.schedule);
        let (generator, params, quantizer) = (input.generator, input.params, input.quantizer);
        let model = Model { generator, params, quantizer };
        let (labels, given, unseen) = (&self.labels, Some(&given), |_: usize, _: &_| Ok(()));
        sampler.run_scales(backend, model, labels, &decoding, given, scales, unseen)?;
        let batch = input.labels.len();
        let schedule = &input.plan.first.schedule;
        let all = &[true; MAX_SCALES][..schedule.len()];
        backend.merge_ids(batch, schedule, all, &sampler.ids, &mut self.own)
    }

    /// Runs the first pass with its rollout, loss and gradients; returns what supervised it.
    fn teacher_pass(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
    ) -> Result<Supervision, B::Error> {
        let (pass, batch) = (&input.plan.first, input.labels.len());
        let guided = input.settings.guidance() != Guidance::Off && input.plan.second.is_some();
        let rows = if guided { 2 * batch } else { batch };
        self.feed(backend, input, pass)?;
        let keep = self.draw_keep(backend, input, 0, rows)?;
        let forward = self.given.input(pass, rows, batch, keep);
        input.generator.forward(backend, input.params, &forward, &mut self.trace)?;
        if input.plan.second.is_some_and(|pass| is_soft(target_of(&pass))) {
            let teacher = self.soft.as_mut().ok_or_else(|| no_memory("soft targets"))?;
            let len = batch * pass.schedule.tokens() * input.generator.shape().width;
            backend.copy(self.trace.output(), 0, &mut teacher.normed, 0, len)?;
        }
        let supervised = self.teacher_head(backend, input, guided)?;
        let backward = self.given.input(pass, batch, batch, keep);
        let (trace, grads) = (&mut self.trace, &mut self.grads);
        input.generator.backward(backend, input.params, &backward, rows, trace, grads)?;
        Ok(supervised)
    }

    /// Runs head, rollout and loss of the first pass and the head's backward, in chunks of samples.
    fn teacher_head(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        guided: bool,
    ) -> Result<Supervision, B::Error> {
        let (pass, batch) = (&input.plan.first, input.labels.len());
        let (g, params, tokens) = (input.generator, input.params, pass.schedule.tokens());
        let halves = if guided { 2 } else { 1 };
        let supervised = Supervision::teacher(loss_batch(input), pass);
        for samples in parts(batch, self.head.samples(halves * tokens)) {
            let both = [samples.clone(), batch + samples.start..batch + samples.end];
            let normed = self.trace.output();
            g.head(backend, params, tokens, normed, &both[..halves], &mut self.head)?;
            let logits = &mut self.head.logits;
            if let Rollout::Parallel { .. } = input.plan.rollout {
                let dims = parallel_decode(input, guided, &samples);
                backend.choose_codes(&dims, logits, &mut self.own)?;
            }
            let loss = &mut self.teacher_loss;
            loss.forward(backend, &supervised, samples.clone(), logits, &self.truth)?;
            loss.backward(backend, &supervised, samples.clone(), logits, &self.truth)?;
            g.head_backward(backend, params, tokens, samples, &self.head, &mut self.grads)?;
        }
        Ok(supervised)
    }

    /// Runs the second pass with its loss and gradients, weighted by σ; returns what supervised it.
    fn student_pass(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        pass: &Pass,
    ) -> Result<Supervision, B::Error> {
        let batch = input.labels.len();
        self.feed(backend, input, pass)?;
        let keep = self.draw_keep(backend, input, 1, batch)?;
        let forward = self.given.input(pass, batch, batch, keep);
        input.generator.forward(backend, input.params, &forward, &mut self.trace)?;
        let supervised = self.student_head(backend, input, pass)?;
        let forward = self.given.input(pass, batch, batch, keep);
        let (trace, grads) = (&mut self.trace, &mut self.grads);
        input.generator.backward(backend, input.params, &forward, batch, trace, grads)?;
        Ok(supervised)
    }

    /// Runs head and loss of the second pass and the head's backward, in chunks of samples.
    fn student_head(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        pass: &Pass,
    ) -> Result<Supervision, B::Error> {
        let (batch, whole) = (input.labels.len(), &input.plan.first.schedule);
        let (g, params, tokens) = (input.generator, input.params, pass.schedule.tokens());
        let target = target_of(pass);
        let mut soft = self.soft.as_mut().filter(|_| is_soft(target));
        let of_teacher = soft.as_ref().map_or(batch, |s| s.head.samples(whole.tokens()));
        let supervised =
            Supervision::student(loss_batch(input), pass, whole, input.settings.sigma());
        for samples in parts(batch, self.head.samples(tokens).min(of_teacher)) {
            let chunk = [samples.clone()];
            g.head(backend, params, tokens, self.trace.output(), &chunk, &mut self.head)?;
            if let Some(SoftTeacher { normed, head }) = soft.as_deref_mut() {
                g.head(backend, params, whole.tokens(), normed, &chunk, head)?;
            }
            let targets = match (target, soft.as_deref()) {
                (Target::TeacherSoft { .. }, Some(teacher)) => {
                    StudentTargets::Soft(&teacher.head.logits)
                }
                (Target::TeacherSoft { .. }, None) => return Err(no_memory("soft targets").into()),
                (Target::Rollout { .. }, _) => StudentTargets::Hard(&self.own),
                (Target::GroundTruth { .. } | Target::None, _) => StudentTargets::Hard(&self.truth),
            };
            let (logits, loss) = (&mut self.head.logits, &mut self.student_loss);
            loss.forward(backend, &supervised, samples.clone(), logits, targets)?;
            loss.backward(backend, &supervised, samples.clone(), logits, targets)?;
            g.head_backward(backend, params, tokens, samples, &self.head, &mut self.grads)?;
        }
        Ok(supervised)
    }

    /// Makes the inputs of a pass from codes of the image, of the rollout, or of both.
    fn feed(&mut self, backend: &B, input: &StepInput<'_, B>, pass: &Pass) -> Result<(), B::Error> {
        let (whole, batch) = (input.plan.first.schedule, input.labels.len());
        let scales = pass.schedule.len();
        if scales < 2 {
            return Ok(());
        }
        let reads = pass.reads_rollout();
        let codes = codes_read(pass, input.quantizer.adds_up());
        if codes == Codes::Mixed {
            let (all, own) = (&[true; MAX_SCALES][..whole.len()], &reads[..whole.len()]);
            backend.merge_ids(batch, &whole, all, &self.truth, &mut self.mixed)?;
            backend.merge_ids(batch, &whole, own, &self.own, &mut self.mixed)?;
        }
        let ids = match codes {
            Codes::Truth => &self.truth,
            Codes::Own => &self.own,
            Codes::Mixed => &self.mixed,
        };
        let range = pass.origin[1]..pass.origin[scales - 1] + 1;
        let (coding, inputs) = (&mut self.coding, &mut self.given.inputs);
        input.quantizer.inputs(backend, coding, batch, &whole, range, ids, inputs)
    }

    /// Draws which samples skip which branch (drop path); returns whether any can.
    fn draw_keep(
        &mut self,
        backend: &B,
        input: &StepInput<'_, B>,
        which: u64,
        rows: usize,
    ) -> Result<bool, B::Error> {
        if input.settings.drop_path == 0.0 {
            return Ok(false);
        }
        let depth = input.generator.shape().depth;
        let mut stream =
            Stream::new(input.settings.seed, Purpose::DropPath, 2 * input.step + which);
        // Of all the step's images, and where there is an unconditional half once more of all.
        let MicroBatch { first_image, images_in_step, .. } = input.micro_batch;
        let these = first_image..first_image + input.labels.len();
        let drawn = images_in_step * rows / input.labels.len().max(1);
        let mut keep = Vec::with_capacity(2 * depth * rows);
        for branch in 0..2 * depth {
            // Linear over depth: nothing at the first block, the whole rate at the last.
            let rate = input.settings.drop_path * (branch / 2) as f64 / (depth.max(2) - 1) as f64;
            for row in 0..drawn {
                let kept = if stream.chance(rate) { 0.0 } else { 1.0 / (1.0 - rate) };
                if these.contains(&(row % images_in_step.max(1))) {
                    keep.push(<B::Host as sar_math::Real>::of(kept));
                }
            }
        }
        backend.upload_accum(&keep, &mut self.given.keep, 0)?;
        Ok(true)
    }
}

/// Describes how the codes of all scales are chosen from the first pass's logits of `samples`.
fn parallel_decode<B: Buffers>(
    input: &StepInput<'_, B>,
    guided: bool,
    samples: &Range<usize>,
) -> ChooseDims {
    let schedule = input.plan.first.schedule;
    let ramp = input.settings.guidance().ramp(schedule.len());
    ChooseDims {
        batch: samples.len(),
        first_sample: samples.start,
        schedule,
        scales: 0..schedule.len(),
        vocab: input.generator.shape().vocab,
        guidance: ramp.filter(|_| guided),
        choice: input.settings.choice(input.step, input.micro_batch),
    }
}

/// Returns the source of the codes that the inputs of a pass are made from, which has at least two scales. The inputs of
/// a scale come from the scale before it or, if scales add up, from all scales before it.
fn codes_read(pass: &Pass, adds_up: bool) -> Codes {
    let (scales, reads) = (pass.schedule.len(), pass.reads_rollout());
    let last = pass.origin[scales - 1];
    let read = |&before: &usize| adds_up || pass.origin[1..scales].contains(&(before + 1));
    let (mut truth, mut own) = (false, false);
    for before in (0..last).filter(read) {
        truth |= !reads[before];
        own |= reads[before];
    }
    match (truth, own) {
        (_, false) => Codes::Truth,
        (false, true) => Codes::Own,
        (true, true) => Codes::Mixed,
    }
}

/// The error for a plan that needs memory which [`StepMemory::new`] was not asked for.
fn no_memory(what: &'static str) -> ShapeError {
    ShapeError { op: "training step", operand: what, expected: 1, found: 0 }
}

fn is_soft(target: Target) -> bool {
    matches!(target, Target::TeacherSoft { .. })
}

/// Returns the kind of target that all supervised scales of a pass share.
fn target_of(pass: &Pass) -> Target {
    pass.target.iter().copied().find(|t| *t != Target::None).unwrap_or_default()
}

/// Describes the batch of a loss. Gradients of every micro-batch are divided by the number of images in the step.
fn loss_batch<B: Buffers>(input: &StepInput<'_, B>) -> LossBatch {
    let smoothing = input.settings.smoothing;
    let samples = input.labels.len();
    let vocab = input.generator.shape().vocab;
    LossBatch { samples, divisor: samples * input.settings.accumulate, vocab, smoothing }
}
