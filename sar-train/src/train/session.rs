//! The loop around a trainer: log, held-out loss, sample grids, checkpoints, interruption.

use super::held_out::{RISEN, Risen};
use super::journal::Journal;
use super::{
    Batches, HeldOut, HeldOutReport, StepCost, StepReport, TrainError, TrainState, Trainer,
};
use crate::checkpoint::{Header, Kind, Snapshot};
use crate::config::{Config, Mode};
use crate::run::{Interrupt, Interrupted, RunFolder, class_names, rate};
use sar_math::backend::Backend;
use serde::Serialize;
use std::time::Instant;

/// What happens at `train.sample_every`: a picture of the model as it is.
pub type PaintHook<'h, B> = dyn FnMut(&Trainer<'_, B>) -> Result<image::RgbImage, TrainError> + 'h;

/// A training run in its folder.
pub struct Session<'s, B: Backend> {
    /// The folder; this process holds its lock.
    pub run: &'s RunFolder,
    /// The run's resolved configuration.
    pub config: &'s Config,
    /// Held-out images; without, there is no held-out loss.
    pub held_out: Option<&'s HeldOut<B::Host>>,
    /// Paints sample grids.
    pub paint: Option<&'s mut PaintHook<'s, B>>,
    /// Ctrl-C.
    pub interrupt: &'s Interrupt,
    /// What the progress bar calls the work.
    pub what: &'s str,
    /// No progress.
    pub quiet: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Held-out loss at the end.
    pub held_out: Option<HeldOutReport>,
    /// Held-out loss over the run: step and loss.
    pub curve: Vec<(u64, f64)>,
    /// Training images per second, waiting for data counted, evaluation not.
    pub images_per_second: f64,
    /// Steps skipped because a gradient was not finite.
    pub skipped: u64,
}

/// A record of the log.
#[derive(Serialize)]
struct TrainRecord<'a> {
    #[serde(flatten)]
    report: &'a StepReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_tf: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_first_pass: Option<f64>,
    images_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tflop_per_s: Option<f64>,
    skipped: u64,
}

/// What a run has come to since it was taken up.
#[derive(Default)]
struct Course {
    outcome: Outcome,
    clock: Clock,
    /// Step and held-out loss of the last evaluation.
    measured: Option<(u64, f64)>,
    /// The one with the lowest loss among those whose weights were saved.
    lowest: Option<(u64, f64)>,
}

impl Course {
    /// Finds the saved step of the lowest held-out loss, which a run that goes on keeps too.
    fn find_lowest(&mut self, journal: &mut Journal) -> Result<(), TrainError> {
        for measured in journal.log.values("eval", "heldout_loss")? {
            if journal.checkpoints.has(measured.0) {
                self.measured = Some(measured);
                self.note_saved(measured.0, journal);
            }
        }
        Ok(())
    }

    /// Keeps the checkpoint of a step beyond `train.keep` if it has the lowest held-out loss so far.
    fn note_saved(&mut self, saved: u64, journal: &mut Journal) {
        // The weights that a run starts from are new, or kept elsewhere.
        let of_it = |(step, _): &(u64, f64)| *step == saved && saved > 0;
        let Some((step, loss)) = self.measured.filter(of_it) else { return };
        if self.lowest.is_none_or(|(_, lowest)| loss < lowest) {
            self.lowest = Some((step, loss));
            journal.checkpoints.keep_also(step);
        }
    }
}

/// Path of a step's samples in the run's folder.
fn samples_of(step: u64) -> String {
    format!("samples/step-{step:06}.png")
}

/// Time spent in steps, to tell their speed.
#[derive(Default)]
struct Clock {
    seconds: f64,
    images: u64,
}

impl Clock {
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.images as f64 / self.seconds } else { 0.0 }
    }
}

impl<B: Backend> Session<'_, B> {
    /// Trains to the last step of the configuration, from the step that the trainer is at.
    ///
    /// # Errors
    /// Images, backend or disk fail; too many non-finite steps in a row;
    /// [`Interrupted`] after the state has been saved, and [`TrainError::Stopped`] after it has been because
    /// of an error that leaves it whole.
    pub fn train(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        batches: &mut dyn Batches<B>,
    ) -> Result<Outcome, TrainError> {
        let (first, steps) = (trainer.step_number(), self.config.train.steps);
        let keep = self.config.train.keep;
        let mut journal = Journal::open(self.run, keep, (first, steps), self.what, self.quiet)?;
        let mut course = Course::default();
        course.find_lowest(&mut journal)?;
        self.catch_up(trainer, &mut journal, &mut course)?;
        if first >= steps {
            journal.progress.finish("nothing left to do, the last step is done");
            return Ok(course.outcome);
        }
        while trainer.step_number() < steps {
            let step = trainer.step_number();
            if self.interrupt.is_asked() && journal.is_saved(step) {
                return Err(Interrupted { step }.into());
            }
            match self.step(trainer, batches, &mut journal, &mut course) {
                Err(error) if error.leaves_the_model() => {
                    let step = trainer.step_number();
                    let save = |journal: &mut Journal| self.save(trainer, journal, &mut course);
                    return Err(journal.rescue(step, error, save));
                }
                made => made?,
            }
        }
        self.conclude(trainer, journal, course)
    }

    /// Does what is due before the first step, and what a process that was killed left undone at this one.
    fn catch_up(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        journal: &mut Journal,
        course: &mut Course,
    ) -> Result<(), TrainError> {
        let step = trainer.step_number();
        if !journal.checkpoints.has(step) {
            if self.interrupt.is_asked() || !self.evaluate(trainer, journal, course)? {
                return Err(TrainError::NotBegun);
            }
            // From here on there is something to resume, and a full disk is found out early.
            self.save(trainer, journal, course)?;
        }
        // The last process may have stopped at this step, but before evaluating it.
        if self.is_evaluated(step) && !journal.log.has(step, "eval")? {
            if !self.evaluate(trainer, journal, course)? {
                return Err(Interrupted { step }.into());
            }
            course.note_saved(step, journal);
        }
        // Or after saving this step, but before painting it.
        if step > 0 && !self.run.path().join(samples_of(step)).exists() {
            self.paint_due(trainer, journal)?;
        }
        Ok(())
    }

    /// Whether a step's held-out loss is due.
    fn is_evaluated(&self, step: u64) -> bool {
        let train = &self.config.train;
        step >= train.steps || (train.eval_every > 0 && step.is_multiple_of(train.eval_every))
    }

    /// Ends the progress with what the run has come to.
    fn conclude(
        &self,
        trainer: &Trainer<'_, B>,
        journal: Journal,
        course: Course,
    ) -> Result<Outcome, TrainError> {
        self.tell_risen(&journal, &course)?;
        let rate_of_run = course.clock.rate();
        let loss = course.outcome.held_out.as_ref().map(|h| h.heldout_loss);
        let loss = loss.map_or(String::new(), |l| format!("held-out loss {l:.4}, "));
        journal.progress.finish(&format!("{loss}{}", rate(rate_of_run)));
        let skipped = trainer.state().non_finite.skipped;
        Ok(Outcome { images_per_second: rate_of_run, skipped, ..course.outcome })
    }

    /// Warns of a held-out loss that has risen since it was lowest, and says where the best saved weights are.
    fn tell_risen(&self, journal: &Journal, course: &Course) -> Result<(), TrainError> {
        let curve = journal.log.values("eval", "heldout_loss")?;
        let Some(Risen { step, lowest, last }) = Risen::of(&curve, RISEN) else { return Ok(()) };
        let start = if step == 0 { ", what the run started from" } else { "" };
        let kept = course.lowest.map_or(String::new(), |(kept, loss)| {
            let folder = self.run.checkpoints_folder().join(format!("step-{kept}"));
            let of = if kept == step {
                String::new()
            } else {
                format!(", {loss:.4}, the lowest of those saved,")
            };
            format!("; the weights of step {kept}{of} are kept in {}", folder.display())
        });
        journal.progress.warn(&format!(
            "the held-out loss was lowest at step {step}, {lowest:.4}{start}, and has risen to {last:.4} since{kept}"
        ));
        Ok(())
    }

    /// One step, and what is due after it.
    fn step(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        batches: &mut dyn Batches<B>,
        journal: &mut Journal,
        course: &mut Course,
    ) -> Result<(), TrainError> {
        let train = &self.config.train;
        let start = Instant::now();
        let made = trainer.step(batches);
        if let Err(TrainError::NonFinite(_)) = made {
            // The log gets the count of skipped steps before the run ends, whether or not a record is due.
            let _ = self.log_step(trainer, journal, &course.clock);
        }
        let skipped = made?;
        course.clock.seconds += start.elapsed().as_secs_f64();
        course.clock.images += (train.batch * train.accumulate) as u64;
        let step = trainer.step_number();
        let last = step == train.steps;
        // The progress counts steps and shows no loss, which would have to be waited for.
        let broken = skipped.then(|| trainer.not_finite()).transpose()?;
        journal.moved(step, broken.as_deref());
        if step.is_multiple_of(train.log_every) || last {
            self.log_step(trainer, journal, &course.clock)?;
        }
        let evaluated = !self.is_evaluated(step) || self.evaluate(trainer, journal, course)?;
        // An evaluation that was stopped is made up for when the run is taken up again.
        let asked = self.interrupt.is_asked() && !(last && evaluated);
        // Not while steps are skipped: the checkpoints before are the ones to go back to.
        let save = journal.save_is_due(train, step) && !skipped;
        if save || asked || last {
            self.save(trainer, journal, course)?;
        }
        // After the step is saved: a picture is not worth losing one.
        self.paint_due(trainer, journal)?;
        if asked { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    fn log_step(
        &self,
        trainer: &Trainer<'_, B>,
        journal: &mut Journal,
        clock: &Clock,
    ) -> Result<(), TrainError> {
        let (step, skipped) = (trainer.step_number(), trainer.state().non_finite.skipped);
        let Some(report) = trainer.report()? else { return Ok(()) };
        let images_per_s = clock.rate();
        // Other ways of training feed the first pass what was drawn before.
        let teacher = matches!(self.config.train.mode, Mode::Teacher | Mode::Ssr);
        let (loss_tf, loss_first_pass) = match teacher {
            true => (Some(report.loss_tf), None),
            false => (None, Some(report.loss_tf)),
        };
        let tflop_per_s = self.tflop_per_s(images_per_s);
        let record = TrainRecord {
            report: &report,
            loss_tf,
            loss_first_pass,
            images_per_s,
            tflop_per_s,
            skipped,
        };
        journal.log.record(step, "train", &record)?;
        let first = if teacher { "AR_loss/teacher" } else { "AR_loss/first_pass" };
        let scalars = [
            ("AR_loss/total", Some(report.loss)),
            (first, Some(report.loss_tf)),
            ("AR_csfl/student_loss", report.loss_csf),
            ("AR_lr/lr", Some(report.lr)),
            ("AR_grad/norm", Some(report.grad_norm)),
            ("speed/images_per_s", Some(images_per_s)),
            ("speed/tflop_per_s", tflop_per_s),
            ("speed/skipped_steps", Some(skipped as f64)),
        ];
        for (name, value) in scalars {
            if let Some(value) = value {
                journal.board.scalar(name, step, value)?;
            }
        }
        let (schedule, some) = (&report.schedule, |values: &[f64]| -> Vec<_> {
            values.iter().copied().map(Some).collect()
        });
        for (prefix, what, values) in [
            ("AR_scale_loss", "loss", some(&report.scale_loss)),
            ("AR_scale_acc", "acc", some(&report.scale_acc)),
            ("AR_csfl_scale_loss", "loss", report.student_scale_loss.clone()),
            ("AR_csfl_scale_acc", "acc", report.student_scale_acc.clone()),
        ] {
            journal.board_scales(prefix, what, step, schedule, values)?;
        }
        let message = format!("loss {:.3}  {}", report.loss, rate(images_per_s));
        journal.progress.update(step, &message);
        Ok(())
    }

    /// What the model computes at so many images per second, in TFLOP/s; `None` where schedules are drawn, of which each
    /// step computes another amount.
    fn tflop_per_s(&self, images_per_s: f64) -> Option<f64> {
        let train = &self.config.train;
        let cost = StepCost::of(self.config).ok().filter(|_| !train.random_schedules)?;
        let image = cost.flops_step as f64 / (train.batch * train.accumulate) as f64;
        Some(images_per_s * image / 1e12)
    }

    /// Measures the loss on held-out images, where there are some; `false` where the user stops it.
    fn evaluate(
        &self,
        trainer: &mut Trainer<'_, B>,
        journal: &mut Journal,
        course: &mut Course,
    ) -> Result<bool, TrainError> {
        let Some(images) = self.held_out else { return Ok(true) };
        let step = trainer.step_number();
        let Some(report) = trainer.held_out_until(images, self.interrupt)? else {
            return Ok(false);
        };
        if !report.heldout_loss.is_finite() {
            // Before this step is saved: the checkpoints before may be whole.
            return Err(TrainError::Diverged { step });
        }
        journal.log.record(step, "eval", &report)?;
        journal.board.scalar("AR_loss/heldout", step, report.heldout_loss)?;
        let schedule = self.config.generator.schedule.to_string();
        for (prefix, what, values) in [
            ("heldout_scale_loss", "loss", &report.heldout_scale_loss),
            ("heldout_scale_acc", "acc", &report.heldout_scale_acc),
        ] {
            let values = values.iter().copied().map(Some);
            journal.board_scales(prefix, what, step, &schedule, values)?;
        }
        course.measured = Some((step, report.heldout_loss));
        course.outcome.curve.push((step, report.heldout_loss));
        course.outcome.held_out = Some(report);
        Ok(true)
    }

    /// Paints samples, where the configuration wants them of this step.
    fn paint_due(
        &mut self,
        trainer: &Trainer<'_, B>,
        journal: &mut Journal,
    ) -> Result<(), TrainError> {
        let (every, step) = (self.config.train.sample_every, trainer.step_number());
        let due = every > 0 && (step.is_multiple_of(every) || step == self.config.train.steps);
        let Some(paint) = self.paint.as_mut().filter(|_| due) else { return Ok(()) };
        let picture = paint(trainer)?;
        self.run.write_png(&samples_of(step), &picture)?;
        journal.board.image("samples", step, &picture)?;
        Ok(())
    }

    fn save(
        &self,
        trainer: &Trainer<'_, B>,
        journal: &mut Journal,
        course: &mut Course,
    ) -> Result<(), TrainError> {
        let flat = trainer.export()?;
        let step = trainer.step_number();
        // A checkpoint that is copied out of its run knows them too.
        let classes = class_names(self.run.path())?.unwrap_or_default();
        let header = Header::new(Kind::Generator, step, &self.config.generator)?;
        let header = Header { classes, ..header };
        let state: &TrainState = trainer.state();
        // Before older checkpoints go: this one may be the lowest of all.
        course.note_saved(step, journal);
        journal.save(&Snapshot {
            header: &header,
            layout: trainer.generator().layout(),
            weights: &flat.weights,
            ema: flat.ema.as_deref(),
            first_moment: &flat.first_moment,
            second_moment: &flat.second_moment,
            state,
        })
    }
}
