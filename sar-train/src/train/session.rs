//! The loop around a trainer: log, held-out loss, sample grids, checkpoints, interruption.

use super::trainer::{Batches, TrainState, Trainer};
use super::{HeldOut, HeldOutReport, StepReport, TrainError};
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::config::{Config, Mode};
use crate::run::{
    Interrupt, Interrupted, Log, Progress, RunFolder, TensorBoard, class_names, rate,
};
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
    skipped: u64,
}

/// What a run writes to.
struct Files {
    checkpoints: Checkpoints,
    /// The step of the last checkpoint.
    saved: u64,
    saved_at: Instant,
    /// Step and held-out loss of the last evaluation, and of the one with the lowest among those that were saved.
    measured: Option<(u64, f64)>,
    lowest: Option<(u64, f64)>,
    log: Log,
    board: TensorBoard,
    progress: Progress,
}

impl Files {
    /// Finds the saved step of the lowest held-out loss, which a run that goes on keeps too.
    fn find_lowest(&mut self) -> Result<(), TrainError> {
        for measured in self.log.values("eval", "heldout_loss")? {
            if self.checkpoints.has(measured.0) {
                self.measured = Some(measured);
                self.lower(measured.0);
            }
        }
        Ok(())
    }

    /// Lets the checkpoint of a step stay if the evaluation before it has the lowest loss.
    fn lower(&mut self, saved: u64) {
        // What a run starts from is somewhere else, or new.
        let of_it = |(step, _): &(u64, f64)| *step == saved && saved > 0;
        let Some((step, loss)) = self.measured.filter(of_it) else { return };
        if self.lowest.is_none_or(|(_, lowest)| loss < lowest) {
            self.lowest = Some((step, loss));
            self.checkpoints.keep_also(step);
        }
    }
}

/// How far a held-out loss lies above its lowest where that is worth a word.
pub(crate) const RISEN: f64 = 1.01;

/// Where a run has its samples of a step.
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
    /// Trains to the last step of the configuration, from wherever the trainer is.
    ///
    /// # Errors
    /// The images', the backend's, the disk's; too many non-finite steps in a row;
    /// [`Interrupted`] after the state has been saved, and [`TrainError::Stopped`] after it has been because
    /// of an error that leaves it whole.
    pub fn train(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        batches: &mut dyn Batches<B>,
    ) -> Result<Outcome, TrainError> {
        let steps = self.config.train.steps;
        let first = trainer.step_number();
        let mut files = Files {
            checkpoints: self.run.checkpoints(self.config.train.keep)?,
            saved: first,
            saved_at: Instant::now(),
            measured: None,
            lowest: None,
            log: self.run.log(first)?,
            board: self.run.tensorboard(first)?,
            progress: Progress::new(self.what, steps, first, self.quiet),
        };
        files.find_lowest()?;
        let mut outcome = Outcome::default();
        let mut clock = Clock::default();
        if !files.checkpoints.has(first) {
            if self.interrupt.is_asked() {
                return Err(TrainError::NotBegun);
            }
            if !self.evaluate(trainer, &mut files, &mut outcome)? {
                return Err(TrainError::NotBegun);
            }
            // From here on there is something to resume, and a disk without room is found out early.
            self.save(trainer, &mut files)?;
        }
        if first >= steps {
            // What stopped it after its last step may have kept that from being measured.
            let measured = files.log.has(first, "eval")?;
            if !measured && !self.evaluate(trainer, &mut files, &mut outcome)? {
                return Err(Interrupted { step: first }.into());
            }
        }
        if first > 0 && !self.run.path().join(samples_of(first)).exists() {
            // A run that was killed once this step was saved had not painted it.
            self.paint_due(trainer, &mut files)?;
        }
        if first >= steps {
            files.progress.finish("nothing left to do, the last step is done");
            return Ok(outcome);
        }
        while trainer.step_number() < steps {
            let step = trainer.step_number();
            if self.interrupt.is_asked() && files.saved == step {
                return Err(Interrupted { step }.into());
            }
            match self.step(trainer, batches, &mut files, &mut outcome, &mut clock) {
                Err(error) if error.leaves_the_model() => {
                    return Err(self.rescue(trainer, &mut files, error));
                }
                made => made?,
            }
        }
        outcome.images_per_second = clock.rate();
        outcome.skipped = trainer.state().non_finite.skipped;
        self.tell_lowest(&files)?;
        let loss = outcome.held_out.as_ref().map(|h| h.heldout_loss);
        let loss = loss.map_or(String::new(), |l| format!("held-out loss {l:.4}, "));
        files.progress.finish(&format!("{loss}{}", rate(clock.rate())));
        Ok(outcome)
    }

    /// Tells of a held-out loss that has risen since it was lowest, and where the best weights are that were saved.
    fn tell_lowest(&self, files: &Files) -> Result<(), TrainError> {
        let all = files.log.values("eval", "heldout_loss")?;
        let lowest = all.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let (Some((step, loss)), Some((_, last))) = (lowest, all.last()) else { return Ok(()) };
        if *last <= RISEN * loss {
            return Ok(());
        }
        let start = if *step == 0 { ", what the run started from" } else { "" };
        let kept = files.lowest.map_or(String::new(), |(kept, loss)| {
            let folder = self.run.checkpoints_folder().join(format!("step-{kept}"));
            let of = if kept == *step {
                String::new()
            } else {
                format!(", {loss:.4}, the lowest of those saved")
            };
            format!("; the weights of step {kept}{of}, are kept in {}", folder.display())
        });
        files.progress.warn(&format!(
            "the held-out loss was lowest at step {step}, {loss:.4}{start}, and has risen to {last:.4} since{kept}"
        ));
        Ok(())
    }

    /// One step, and what is due after it.
    fn step(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        batches: &mut dyn Batches<B>,
        files: &mut Files,
        outcome: &mut Outcome,
        clock: &mut Clock,
    ) -> Result<(), TrainError> {
        let train = &self.config.train;
        let start = Instant::now();
        let made = trainer.step(batches);
        if let Err(TrainError::NonFinite(_)) = made {
            // How many were skipped before it ended is in the log, whenever that is due.
            let _ = self.log_step(trainer, files, clock);
        }
        let skipped = made?;
        clock.seconds += start.elapsed().as_secs_f64();
        clock.images += (train.batch * train.accumulate) as u64;
        let step = trainer.step_number();
        let last = step == train.steps;
        if skipped {
            files.progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
        }
        // By the count of steps: a loss would have to be waited for.
        files.progress.moved(step);
        if step.is_multiple_of(train.log_every) || last {
            self.log_step(trainer, files, clock)?;
        }
        let due = |every: u64| every > 0 && (step.is_multiple_of(every) || last);
        let evaluated =
            !(due(train.eval_every) || last) || self.evaluate(trainer, files, outcome)?;
        // What is missing of a last step is made up for when the run is taken up again.
        let asked = self.interrupt.is_asked() && !(last && evaluated);
        // Not while steps are skipped: the checkpoints before are the ones to go back to.
        let save = due(train.save_every) || train.overdue(files.saved_at);
        if (save && !skipped) || asked || last {
            self.save(trainer, files)?;
        }
        // After it is saved: a picture is not worth a step.
        self.paint_due(trainer, files)?;
        if asked { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    /// Saves the last whole step before an error ends the run.
    fn rescue(&self, trainer: &Trainer<'_, B>, files: &mut Files, error: TrainError) -> TrainError {
        let step = trainer.step_number();
        // Where that fails too, what came first says more.
        if files.saved != step && self.save(trainer, files).is_err() {
            return error;
        }
        TrainError::Stopped { step, source: Box::new(error) }
    }

    fn log_step(
        &self,
        trainer: &Trainer<'_, B>,
        files: &mut Files,
        clock: &Clock,
    ) -> Result<(), TrainError> {
        let Files { log, board, progress, .. } = files;
        let (step, skipped) = (trainer.step_number(), trainer.state().non_finite.skipped);
        let Some(report) = trainer.report()? else { return Ok(()) };
        let images_per_s = clock.rate();
        // Other ways of training feed the first pass what was drawn before.
        let teacher = matches!(self.config.train.mode, Mode::Teacher | Mode::Ssr);
        let (loss_tf, loss_first_pass) = match teacher {
            true => (Some(report.loss_tf), None),
            false => (None, Some(report.loss_tf)),
        };
        let record =
            TrainRecord { report: &report, loss_tf, loss_first_pass, images_per_s, skipped };
        log.record(step, "train", &record)?;
        board.scalar("AR_loss/total", step, report.loss)?;
        let first = if teacher { "AR_loss/teacher" } else { "AR_loss/first_pass" };
        board.scalar(first, step, report.loss_tf)?;
        if let Some(student) = report.loss_csf {
            board.scalar("AR_csfl/student_loss", step, student)?;
        }
        board.scalar("AR_lr/lr", step, report.lr)?;
        board.scalar("AR_grad/norm", step, report.grad_norm)?;
        // By their grids: drawn schedules have others at the same place.
        let grids = || report.schedule.split('_');
        for (grid, (loss, acc)) in grids().zip(report.scale_loss.iter().zip(&report.scale_acc)) {
            board.scalar(&format!("AR_scale_loss/scale_{grid}_loss"), step, *loss)?;
            board.scalar(&format!("AR_scale_acc/scale_{grid}_acc"), step, *acc)?;
        }
        let student = report.student_scale_loss.iter().zip(&report.student_scale_acc);
        for (grid, (loss, acc)) in grids().zip(student) {
            if let (Some(loss), Some(acc)) = (loss, acc) {
                board.scalar(&format!("AR_csfl_scale_loss/scale_{grid}_loss"), step, *loss)?;
                board.scalar(&format!("AR_csfl_scale_acc/scale_{grid}_acc"), step, *acc)?;
            }
        }
        board.scalar("speed/images_per_s", step, images_per_s)?;
        board.scalar("speed/skipped_steps", step, skipped as f64)?;
        progress.update(step, &format!("loss {:.3}  {}", report.loss, rate(images_per_s)));
        Ok(())
    }

    /// Measures the loss on held-out images, where there are some; `false` where the user stops it.
    fn evaluate(
        &self,
        trainer: &mut Trainer<'_, B>,
        files: &mut Files,
        outcome: &mut Outcome,
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
        files.log.record(step, "eval", &report)?;
        files.board.scalar("AR_loss/heldout", step, report.heldout_loss)?;
        let schedule = self.config.generator.schedule.to_string();
        let scales = report.heldout_scale_loss.iter().zip(&report.heldout_scale_acc);
        for (grid, (loss, acc)) in schedule.split('_').zip(scales) {
            files.board.scalar(&format!("heldout_scale_loss/scale_{grid}_loss"), step, *loss)?;
            files.board.scalar(&format!("heldout_scale_acc/scale_{grid}_acc"), step, *acc)?;
        }
        files.measured = Some((step, report.heldout_loss));
        outcome.curve.push((step, report.heldout_loss));
        outcome.held_out = Some(report);
        Ok(true)
    }

    /// Paints samples, where the configuration wants them of this step.
    fn paint_due(&mut self, trainer: &Trainer<'_, B>, files: &mut Files) -> Result<(), TrainError> {
        let (every, step) = (self.config.train.sample_every, trainer.step_number());
        let due = every > 0 && (step.is_multiple_of(every) || step == self.config.train.steps);
        let Some(paint) = self.paint.as_mut().filter(|_| due) else { return Ok(()) };
        let picture = paint(trainer)?;
        self.run.write_png(&samples_of(step), &picture)?;
        files.board.image("samples", step, &picture)?;
        Ok(())
    }

    fn save(&self, trainer: &Trainer<'_, B>, files: &mut Files) -> Result<(), TrainError> {
        let flat = trainer.export()?;
        let step = trainer.step_number();
        // A checkpoint that is copied out of its run knows them too.
        let classes = class_names(self.run.path())?.unwrap_or_default();
        let header = Header::new(Kind::Generator, step, &self.config.generator)?;
        let header = Header { classes, ..header };
        let state: &TrainState = trainer.state();
        files.lower(step);
        let saved = files.checkpoints.save(&Snapshot {
            header: &header,
            layout: trainer.generator().layout(),
            weights: &flat.weights,
            ema: flat.ema.as_deref(),
            first_moment: &flat.first_moment,
            second_moment: &flat.second_moment,
            state,
        })?;
        (files.saved, files.saved_at) = (step, Instant::now());
        saved.warning.iter().for_each(|warning| files.progress.warn(warning));
        Ok(())
    }
}
