//! The loop around a tokenizer's trainer: log, checkpoints, interruption.

use super::{TokenizerHeldOut, TokenizerLosses, TokenizerTrainer, keep_quality};
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::config::Config;
use crate::data::Loader;
use crate::run::{Interrupt, Interrupted, Log, NonFiniteError, Progress, RunFolder, TensorBoard};
use crate::train::TrainError;
use sar_math::backend::Backend;
use serde::Serialize;
use std::time::Instant;

/// A tokenizer's training run in its folder.
pub struct TokenizerSession<'s> {
    /// The folder; this process holds its lock.
    pub run: &'s RunFolder,
    /// The run's resolved configuration.
    pub config: &'s Config,
    /// Ctrl-C.
    pub interrupt: &'s Interrupt,
    /// No progress.
    pub quiet: bool,
}

/// A record of the log.
#[derive(Serialize)]
struct Record {
    loss: f64,
    quantization: f64,
    grad_norm: f64,
    lr: f64,
    grid: String,
    revived: usize,
    skipped: u64,
}

impl Record {
    fn of(losses: &TokenizerLosses, skipped: u64) -> Self {
        Self {
            loss: losses.reconstruction,
            quantization: losses.quantization,
            grad_norm: losses.grad_norm,
            lr: losses.lr,
            grid: format!("{}x{}", losses.grid.0, losses.grid.1),
            revived: losses.revived,
            skipped,
        }
    }
}

/// What a run writes to.
struct Files {
    checkpoints: Checkpoints,
    /// The step of the last checkpoint.
    saved: u64,
    saved_at: Instant,
    log: Log,
    board: TensorBoard,
    progress: Progress,
}

impl TokenizerSession<'_> {
    /// Trains to the last step of the configuration, from wherever the trainer is, and measures it at its start and every
    /// so many steps where there is something `held_out`, but not at its end; the progress, which the caller finishes.
    ///
    /// # Errors
    /// The images', the backend's, the disk's; too many non-finite steps in a row; [`Interrupted`] after
    /// the state has been saved, and [`TrainError::Stopped`] after it has been because of an error that leaves
    /// it whole.
    pub fn train<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
    ) -> Result<Progress, TrainError> {
        let first = trainer.steps();
        let steps = self.config.tokenizer_train.steps;
        let mut files = Files {
            checkpoints: self.run.checkpoints(self.config.train.keep)?,
            saved: first,
            saved_at: Instant::now(),
            log: self.run.log(first)?,
            board: self.run.tensorboard(first)?,
            progress: Progress::new("tokenizer", steps, first, self.quiet),
        };
        if !files.checkpoints.has(first) {
            // From here on there is something to resume, and a disk without room is found out early.
            save(trainer, &mut files)?;
        }
        if first < steps {
            self.begin(trainer, held_out.as_deref_mut(), &mut files)?;
        }
        while trainer.steps() < steps {
            match self.step(trainer, loader, held_out.as_deref_mut(), &mut files) {
                Err(error) if error.leaves_the_model() => {
                    return Err(rescue(trainer, &mut files, error));
                }
                made => made?,
            }
        }
        Ok(files.progress)
    }

    /// What is due before the first step: of a run that goes on, what it was stopped at.
    fn begin<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        files: &mut Files,
    ) -> Result<(), TrainError> {
        let step = trainer.steps();
        // What was measured may have been stopped before it was painted.
        let missing = match files.log.has(step, "eval")? {
            true => self.is_measured(step) && !self.run.path().join(picture_of(step)).exists(),
            false => self.measure(trainer, held_out.as_deref_mut(), files)?,
        };
        if missing {
            self.paint(trainer, held_out, files)?;
        }
        if self.interrupt.is_asked() { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    /// One step, and what is due after it.
    fn step<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        files: &mut Files,
    ) -> Result<(), TrainError> {
        let skipped = self.update(trainer, loader, files)?;
        let (train, step) = (&self.config.train, trainer.steps());
        let last = step == self.config.tokenizer_train.steps;
        let by_steps = train.save_every > 0 && step.is_multiple_of(train.save_every);
        let due = by_steps || train.overdue(files.saved_at);
        // Not while steps are skipped: the checkpoints before are the ones to go back to.
        if (due && !skipped) || last {
            save(trainer, files)?;
        }
        // After it is saved: neither numbers nor a picture are worth a step, and both are made up for.
        if !last && self.measure(trainer, held_out.as_deref_mut(), files)? {
            self.paint(trainer, held_out, files)?;
        }
        let asked = self.interrupt.is_asked() && !last;
        if asked && files.saved != step {
            save(trainer, files)?;
        }
        if asked { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    /// Whether a step is one that the tokenizer is measured at.
    fn is_measured(&self, step: u64) -> bool {
        let every = self.config.tokenizer_train.eval_every;
        every > 0 && step.is_multiple_of(every)
    }

    /// Measures the tokenizer where that is due; whether it was, which it is not where the user stops it.
    fn measure<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        files: &mut Files,
    ) -> Result<bool, TrainError> {
        let step = trainer.steps();
        let Some(held_out) = held_out.filter(|_| self.is_measured(step)) else { return Ok(false) };
        let Some(quality) = held_out.quality(trainer.params(), self.interrupt)? else {
            return Ok(false);
        };
        keep_quality(&mut files.log, &mut files.board, step, &quality)?;
        Ok(true)
    }

    /// Shows what comes back of images.
    fn paint<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        files: &mut Files,
    ) -> Result<(), TrainError> {
        let Some(held_out) = held_out else { return Ok(()) };
        let (step, picture) = (trainer.steps(), held_out.picture(trainer.params())?);
        self.run.write_png(&picture_of(step), &picture)?;
        files.board.image("reconstructions", step, &picture)?;
        Ok(())
    }

    /// The step itself, in the log where that is due; whether it was skipped.
    fn update<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        files: &mut Files,
    ) -> Result<bool, TrainError> {
        let batch = loader.next_batch()?;
        let losses = trainer.step(&batch.values_b).map_err(TrainError::backend)?;
        let (step, known) = (trainer.steps(), trainer.progress());
        let (in_a_row, record) = (known.skipped_in_a_row, Record::of(&losses, known.skipped));
        if in_a_row >= self.config.train.non_finite_limit {
            // How many were skipped before it ended is in the log, whenever that is due.
            let _ = log_step(step, &record, files);
            return Err(NonFiniteError { step, in_a_row }.into());
        }
        if losses.skipped {
            files.progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
        }
        let last = step == self.config.tokenizer_train.steps;
        files.progress.moved(step);
        if step.is_multiple_of(self.config.train.log_every) || last {
            log_step(step, &record, files)?;
        }
        Ok(losses.skipped)
    }
}

/// The picture of a step in a run's folder.
fn picture_of(step: u64) -> String {
    format!("samples/reconstructions-{step:06}.png")
}

fn log_step(step: u64, record: &Record, files: &mut Files) -> Result<(), TrainError> {
    let Files { log, board, progress, .. } = files;
    log.record(step, "train", record)?;
    // Coarse grids are compared with smaller images, so errors of different grids are no curve.
    let grid = &record.grid;
    board.scalar(&format!("tokenizer_reconstruction/{grid}"), step, record.loss)?;
    board.scalar(&format!("tokenizer_quantization/{grid}"), step, record.quantization)?;
    board.scalar("tokenizer/lr", step, record.lr)?;
    board.scalar("tokenizer/grad_norm", step, record.grad_norm)?;
    board.scalar("tokenizer/revived_codes", step, record.revived as f64)?;
    progress.update(step, &format!("mse {:.4} at {}", record.loss, record.grid));
    Ok(())
}

/// Saves the last whole step before an error ends the run.
fn rescue<B: Backend<Host = f32>>(
    trainer: &TokenizerTrainer<'_, B>,
    files: &mut Files,
    error: TrainError,
) -> TrainError {
    let step = trainer.steps();
    // Where that fails too, what came first says more.
    if files.saved != step && save(trainer, files).is_err() {
        return error;
    }
    TrainError::Stopped { step, source: Box::new(error) }
}

fn save<B: Backend<Host = f32>>(
    trainer: &TokenizerTrainer<'_, B>,
    files: &mut Files,
) -> Result<(), TrainError> {
    let (tokenizer, step) = (trainer.tokenizer, trainer.steps());
    let header = Header::new(Kind::Tokenizer, step, tokenizer.config())?;
    let [first_moment, second_moment] = trainer.moments().map_err(TrainError::backend)?;
    let saved = files.checkpoints.save(&Snapshot {
        header: &header,
        layout: tokenizer.layout(),
        weights: &trainer.weights().map_err(TrainError::backend)?,
        ema: None,
        first_moment: &first_moment,
        second_moment: &second_moment,
        state: trainer.progress(),
    })?;
    (files.saved, files.saved_at) = (step, Instant::now());
    saved.warning.iter().for_each(|warning| files.progress.warn(warning));
    Ok(())
}
