//! The loop around a trainer: log, held-out loss, sample grids, checkpoints, interruption.

use super::trainer::{Batches, TrainState, Trainer};
use super::{HeldOut, HeldOutReport, StepReport, TrainError};
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::config::Config;
use crate::run::{Interrupt, Interrupted, Log, Progress, RunFolder, TensorBoard, rate};
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
    images_per_s: f64,
    skipped: u64,
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
    /// [`Interrupted`] after the state has been saved.
    pub fn train(
        &mut self,
        trainer: &mut Trainer<'_, B>,
        batches: &mut dyn Batches<B>,
    ) -> Result<Outcome, TrainError> {
        let train = &self.config.train;
        let checkpoints = self.run.checkpoints(train.keep)?;
        let mut log = self.run.log(trainer.step_number())?;
        let mut board = self.run.tensorboard(trainer.step_number())?;
        let mut progress = Progress::new(self.what, train.steps, trainer.step_number(), self.quiet);
        let mut outcome = Outcome::default();
        let mut clock = Clock::default();
        let images = train.batch * train.accumulate;
        if trainer.step_number() == 0 && checkpoints.latest()?.is_none() {
            self.evaluate(trainer, &mut log, &mut board, &mut outcome)?;
            // From here on there is something to resume, and a disk without room is found out early.
            self.save(trainer, &checkpoints)?;
        }
        if trainer.step_number() >= train.steps {
            progress.finish("nothing left to do, the last step is done");
            return Ok(outcome);
        }
        while trainer.step_number() < train.steps {
            let start = Instant::now();
            let skipped = trainer.step(batches)?;
            clock.seconds += start.elapsed().as_secs_f64();
            clock.images += images as u64;
            let step = trainer.step_number();
            if skipped {
                progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
            }
            if step.is_multiple_of(train.log_every) || step == train.steps {
                self.log_step(trainer, &mut log, &mut board, &mut progress, &clock)?;
            }
            let due = |every: u64| (every > 0 && step.is_multiple_of(every)) || step == train.steps;
            if due(train.eval_every) {
                self.evaluate(trainer, &mut log, &mut board, &mut outcome)?;
            }
            if due(train.sample_every) {
                self.paint_samples(trainer, &mut board)?;
            }
            let asked = self.interrupt.is_asked() && step < train.steps;
            // Not while steps are skipped: the checkpoints before are the ones to go back to.
            let worth = !skipped || step == train.steps;
            if (due(train.save_every) && worth) || asked {
                self.save(trainer, &checkpoints)?;
            }
            if asked {
                return Err(Interrupted { step }.into());
            }
        }
        outcome.images_per_second = clock.rate();
        outcome.skipped = trainer.state().non_finite.skipped;
        let loss = outcome.held_out.as_ref().map(|h| h.heldout_loss);
        let loss = loss.map_or(String::new(), |l| format!("held-out loss {l:.4}, "));
        progress.finish(&format!("{loss}{}", rate(clock.rate())));
        Ok(outcome)
    }

    fn log_step(
        &self,
        trainer: &mut Trainer<'_, B>,
        log: &mut Log,
        board: &mut TensorBoard,
        progress: &mut Progress,
        clock: &Clock,
    ) -> Result<(), TrainError> {
        let (step, skipped) = (trainer.step_number(), trainer.state().non_finite.skipped);
        let Some(report) = trainer.report()? else { return Ok(()) };
        let images_per_s = clock.rate();
        log.record(step, "train", &TrainRecord { report: &report, images_per_s, skipped })?;
        board.scalar("AR_loss/total", step, report.loss)?;
        board.scalar("AR_loss/teacher", step, report.loss_tf)?;
        if let Some(student) = report.loss_csf {
            board.scalar("AR_csfl/student_loss", step, student)?;
        }
        board.scalar("AR_lr/lr", step, report.lr)?;
        board.scalar("AR_grad/norm", step, report.grad_norm)?;
        for (i, (loss, acc)) in report.scale_loss.iter().zip(&report.scale_acc).enumerate() {
            board.scalar(&format!("AR_scale_loss/scale_{}_loss", i + 1), step, *loss)?;
            board.scalar(&format!("AR_scale_acc/scale_{}_acc", i + 1), step, *acc)?;
        }
        progress.update(step, &format!("loss {:.3}  {}", report.loss, rate(images_per_s)));
        Ok(())
    }

    fn evaluate(
        &self,
        trainer: &mut Trainer<'_, B>,
        log: &mut Log,
        board: &mut TensorBoard,
        outcome: &mut Outcome,
    ) -> Result<(), TrainError> {
        let Some(images) = self.held_out else { return Ok(()) };
        let report = trainer.held_out(images)?;
        let step = trainer.step_number();
        if !report.heldout_loss.is_finite() {
            // Before this step is saved: the checkpoints before may be whole.
            return Err(TrainError::Diverged { step });
        }
        log.record(step, "eval", &report)?;
        board.scalar("AR_loss/heldout", step, report.heldout_loss)?;
        outcome.curve.push((step, report.heldout_loss));
        outcome.held_out = Some(report);
        Ok(())
    }

    fn paint_samples(
        &mut self,
        trainer: &Trainer<'_, B>,
        board: &mut TensorBoard,
    ) -> Result<(), TrainError> {
        let Some(paint) = self.paint.as_mut() else { return Ok(()) };
        let picture = paint(trainer)?;
        let step = trainer.step_number();
        self.run.write_png(&format!("samples/step-{step:06}.png"), &picture)?;
        board.image("samples", step, &picture)?;
        Ok(())
    }

    fn save(&self, trainer: &Trainer<'_, B>, checkpoints: &Checkpoints) -> Result<(), TrainError> {
        let flat = trainer.export()?;
        let step = trainer.step_number();
        let header = Header::new(Kind::Generator, step, &self.config.generator)?;
        let state: &TrainState = trainer.state();
        checkpoints.save(&Snapshot {
            header: &header,
            layout: trainer.generator().layout(),
            weights: &flat.weights,
            ema: flat.ema.as_deref(),
            first_moment: &flat.first_moment,
            second_moment: &flat.second_moment,
            state,
        })?;
        Ok(())
    }
}
