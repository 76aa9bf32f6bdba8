//! The loop around a tokenizer's trainer: log, checkpoints, interruption.

use super::{TokenizerHeldOut, TokenizerLosses, TokenizerTrainer, keep_quality};
use crate::checkpoint::{Header, Kind, Snapshot};
use crate::config::Config;
use crate::data::Loader;
use crate::run::{Interrupt, Interrupted, NonFiniteError, Progress, RunFolder};
use crate::train::TrainError;
use crate::train::journal::Journal;
use sar_math::backend::Backend;
use serde::Serialize;

/// A tokenizer's training run in its folder.
pub struct TokenizerSession<'s> {
    /// The folder; this process holds its lock.
    pub run: &'s RunFolder,
    /// The run's resolved configuration.
    pub config: &'s Config,
    /// Ctrl-C.
    pub interrupt: &'s Interrupt,
    /// Whether progress is hidden.
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

impl TokenizerSession<'_> {
    /// Trains from wherever the trainer is to the last step of the configuration. If there is
    /// something `held_out`, it is measured at the start and at regular steps, but not at the end.
    /// Returns the progress, which the caller finishes.
    ///
    /// # Errors
    /// An error of the images, the backend or the disk; too many non-finite steps in a row;
    /// [`Interrupted`] after the state has been saved; [`TrainError::Stopped`] after it has been
    /// saved because of an error that leaves it whole.
    pub fn train<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
    ) -> Result<Progress, TrainError> {
        let first = trainer.steps();
        let steps = self.config.tokenizer_train.steps;
        let (keep, run) = (self.config.train.keep, self.run);
        let mut journal = Journal::open(run, keep, (first, steps), "tokenizer", self.quiet)?;
        if !journal.checkpoints.has(first) {
            // From here on there is something to resume, and a full disk is found out early.
            save(trainer, &mut journal)?;
        }
        if first < steps {
            self.begin(trainer, held_out.as_deref_mut(), &mut journal)?;
        }
        while trainer.steps() < steps {
            match self.step(trainer, loader, held_out.as_deref_mut(), &mut journal) {
                Err(error) if error.leaves_the_model() => {
                    let step = trainer.steps();
                    return Err(journal.rescue(step, error, |journal| save(trainer, journal)));
                }
                made => made?,
            }
        }
        Ok(journal.progress)
    }

    /// Does what is due before the first step; in a resumed run, what was due when it was stopped.
    fn begin<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        journal: &mut Journal,
    ) -> Result<(), TrainError> {
        let step = trainer.steps();
        // The run may have been stopped after measuring and before painting.
        let missing = match journal.log.has(step, "eval")? {
            true => self.is_measured(step) && !self.run.path().join(picture_of(step)).exists(),
            false => self.measure(trainer, held_out.as_deref_mut(), journal)?,
        };
        if missing {
            self.paint(trainer, held_out, journal)?;
        }
        if self.interrupt.is_asked() { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    /// Makes one step, and does what is due after it.
    fn step<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        journal: &mut Journal,
    ) -> Result<(), TrainError> {
        let skipped = self.update(trainer, loader, journal)?;
        let (train, step) = (&self.config.train, trainer.steps());
        let last = step == self.config.tokenizer_train.steps;
        let due = journal.save_is_due(train, step);
        // Not while steps are skipped: the checkpoints before them are the ones to go back to.
        if (due && !skipped) || last {
            save(trainer, journal)?;
        }
        // After saving: numbers and a picture are not worth losing a step, and a resumed run makes up for both.
        if !last && self.measure(trainer, held_out.as_deref_mut(), journal)? {
            self.paint(trainer, held_out, journal)?;
        }
        let asked = self.interrupt.is_asked() && !last;
        if asked && !journal.is_saved(step) {
            save(trainer, journal)?;
        }
        if asked { Err(Interrupted { step }.into()) } else { Ok(()) }
    }

    /// Whether the tokenizer is measured at a step.
    fn is_measured(&self, step: u64) -> bool {
        let every = self.config.tokenizer_train.eval_every;
        every > 0 && step.is_multiple_of(every)
    }

    /// Measures the tokenizer if that is due; returns false if it was not due or the user stopped it.
    fn measure<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        journal: &mut Journal,
    ) -> Result<bool, TrainError> {
        let step = trainer.steps();
        let Some(held_out) = held_out.filter(|_| self.is_measured(step)) else { return Ok(false) };
        let Some(quality) = held_out.quality(trainer.params(), self.interrupt)? else {
            return Ok(false);
        };
        keep_quality(&mut journal.log, &mut journal.board, step, &quality)?;
        Ok(true)
    }

    /// Writes a picture of images and their reconstructions.
    fn paint<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        journal: &mut Journal,
    ) -> Result<(), TrainError> {
        let Some(held_out) = held_out else { return Ok(()) };
        let (step, picture) = (trainer.steps(), held_out.picture(trainer.params())?);
        self.run.write_png(&picture_of(step), &picture)?;
        journal.board.image("reconstructions", step, &picture)?;
        Ok(())
    }

    /// Makes the step itself and logs it if that is due; returns whether it was skipped.
    fn update<B: Backend<Host = f32>>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        journal: &mut Journal,
    ) -> Result<bool, TrainError> {
        let losses = trainer.step(&mut || Ok(loader.next_batch()?.values_b))?;
        let (step, known) = (trainer.steps(), trainer.progress());
        let (in_a_row, record) = (known.skipped_in_a_row, Record::of(&losses, known.skipped));
        if in_a_row >= self.config.train.non_finite_limit {
            // The log says how many steps were skipped before the end, even if no record is due.
            let _ = log_step(step, &record, journal);
            return Err(NonFiniteError { step, in_a_row }.into());
        }
        let last = step == self.config.tokenizer_train.steps;
        let broken = losses.skipped.then(|| trainer.not_finite()).transpose()?;
        journal.moved(step, broken.as_deref());
        if step.is_multiple_of(self.config.train.log_every) || last {
            log_step(step, &record, journal)?;
        }
        Ok(losses.skipped)
    }
}

/// Name of a step's picture in a run's folder.
fn picture_of(step: u64) -> String {
    format!("samples/reconstructions-{step:06}.png")
}

fn log_step(step: u64, record: &Record, journal: &mut Journal) -> Result<(), TrainError> {
    let Journal { log, board, progress, .. } = journal;
    log.record(step, "train", record)?;
    // Coarse grids are compared with smaller images, so errors of different grids make no common curve.
    let grid = &record.grid;
    board.scalar(&format!("tokenizer_reconstruction/{grid}"), step, record.loss)?;
    board.scalar(&format!("tokenizer_quantization/{grid}"), step, record.quantization)?;
    board.scalar("tokenizer/lr", step, record.lr)?;
    board.scalar("tokenizer/grad_norm", step, record.grad_norm)?;
    board.scalar("tokenizer/revived_codes", step, record.revived as f64)?;
    progress.update(step, &format!("mse {:.4} at {}", record.loss, record.grid));
    Ok(())
}

fn save<B: Backend<Host = f32>>(
    trainer: &TokenizerTrainer<'_, B>,
    journal: &mut Journal,
) -> Result<(), TrainError> {
    let (tokenizer, step) = (trainer.replica.tokenizer, trainer.steps());
    let header = Header::new(Kind::Tokenizer, step, tokenizer.config())?;
    let [first_moment, second_moment] = trainer.moments()?;
    journal.save(&Snapshot {
        header: &header,
        layout: tokenizer.layout(),
        weights: &trainer.weights()?,
        ema: None,
        first_moment: &first_moment,
        second_moment: &second_moment,
        state: trainer.progress(),
    })
}
