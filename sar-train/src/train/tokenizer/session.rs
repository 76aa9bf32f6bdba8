//! The loop around a tokenizer's trainer: log, checkpoints, interruption.

use super::{TokenizerHeldOut, TokenizerLosses, TokenizerTrainer, keep_quality};
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::config::Config;
use crate::data::{Loader, grid};
use crate::run::{Interrupt, Interrupted, Log, NonFiniteError, Progress, RunFolder, TensorBoard};
use crate::train::TrainError;
use sar_math::backend::{Backend, OptimizerOps, TokenizerOps};
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

impl TokenizerSession<'_> {
    /// Trains to the last step of the configuration, from wherever the trainer is, and measures it at its start and every
    /// so many steps where there is something `held_out`, but not at its end; the progress, which the caller finishes.
    ///
    /// # Errors
    /// The images', the backend's, the disk's; too many non-finite steps in a row; [`Interrupted`] after
    /// the state has been saved, and [`TrainError::Stopped`] after it has been because of an error that leaves
    /// it whole.
    pub fn train<B>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        mut held_out: Option<&mut TokenizerHeldOut<'_, B>>,
    ) -> Result<Progress, TrainError>
    where
        B: Backend<Host = f32>,
    {
        let first = trainer.steps();
        let checkpoints = self.run.checkpoints(self.config.train.keep)?;
        let steps = self.config.tokenizer_train.steps;
        let mut progress = Progress::new("tokenizer", steps, first, self.quiet);
        if !checkpoints.has(first) {
            // From here on there is something to resume, and a disk without room is found out early.
            save(trainer, &checkpoints, &progress)?;
        }
        let mut log = (self.run.log(first)?, self.run.tensorboard(first)?);
        let (mut saved, mut saved_at) = (first, Instant::now());
        // One that was stopped while it was measured goes on with that.
        if first < steps && !log.0.has(first, "eval")? {
            let held_out = held_out.as_deref_mut();
            if !self.measure(trainer, held_out, &mut log)? {
                return Err(Interrupted { step: first }.into());
            }
        }
        while trainer.steps() < steps {
            let made = self.step(trainer, loader, &mut log, &mut progress);
            let step = trainer.steps();
            let last = step == steps;
            let skipped = match made {
                Err(error) if error.leaves_the_model() => {
                    // Where that fails too, what came first says more.
                    if saved != step && save(trainer, &checkpoints, &progress).is_err() {
                        return Err(error);
                    }
                    return Err(TrainError::Stopped { step, source: Box::new(error) });
                }
                made => made?,
            };
            let (every, by) = (self.config.train.save_every, &self.config.train);
            let due = every > 0 && step.is_multiple_of(every) || by.overdue(saved_at);
            if !last {
                // Where the user stops it, that is asked for once more.
                self.measure(trainer, held_out.as_deref_mut(), &mut log)?;
            }
            let asked = self.interrupt.is_asked() && !last;
            // Not while steps are skipped: the checkpoints before are the ones to go back to.
            if (due && !skipped) || asked || last {
                save(trainer, &checkpoints, &progress)?;
                (saved, saved_at) = (step, Instant::now());
            }
            if asked {
                return Err(Interrupted { step }.into());
            }
        }
        Ok(progress)
    }

    /// Measures the tokenizer where that is due; `false` where the user stops it.
    fn measure<B: Backend<Host = f32>>(
        &self,
        trainer: &TokenizerTrainer<'_, B>,
        held_out: Option<&mut TokenizerHeldOut<'_, B>>,
        (log, board): &mut (Log, TensorBoard),
    ) -> Result<bool, TrainError> {
        let (every, step) = (self.config.tokenizer_train.eval_every, trainer.steps());
        let due = every > 0 && step.is_multiple_of(every);
        let Some(held_out) = held_out.filter(|_| due) else { return Ok(true) };
        let measured = held_out.quality(trainer.params(), self.interrupt);
        let Some(quality) = measured.map_err(TrainError::backend)? else { return Ok(false) };
        let both = held_out.compared(trainer.params()).map_err(TrainError::backend)?;
        let images = grid::Images::square(&both, trainer.size.0);
        let picture = grid::grid(images, images.count()? / 2)?;
        self.run.write_png(&format!("samples/step-{step:06}.png"), &picture)?;
        board.image("reconstructions", step, &picture)?;
        keep_quality(log, board, step, &quality)?;
        Ok(true)
    }

    /// One step, in the log where that is due; whether it was skipped.
    fn step<B>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
        (log, board): &mut (Log, TensorBoard),
        progress: &mut Progress,
    ) -> Result<bool, TrainError>
    where
        B: TokenizerOps<Host = f32> + OptimizerOps,
    {
        let batch = loader.next_batch()?;
        let losses = trainer.step(&batch.values_b).map_err(TrainError::backend)?;
        let step = trainer.steps();
        let in_a_row = trainer.progress().skipped_in_a_row;
        let skipped = trainer.progress().skipped;
        if in_a_row >= self.config.train.non_finite_limit {
            // How many were skipped before it ended is in the log, whenever that is due.
            log_step(step, &Record::of(&losses, skipped), log, board, progress)?;
            return Err(NonFiniteError { step, in_a_row }.into());
        }
        if losses.skipped {
            progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
        }
        let last = step == self.config.tokenizer_train.steps;
        if step.is_multiple_of(self.config.train.log_every) || last {
            log_step(step, &Record::of(&losses, skipped), log, board, progress)?;
        }
        Ok(losses.skipped)
    }
}

fn log_step(
    step: u64,
    record: &Record,
    log: &mut Log,
    board: &mut TensorBoard,
    progress: &mut Progress,
) -> Result<(), TrainError> {
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

fn save<B>(
    trainer: &TokenizerTrainer<'_, B>,
    checkpoints: &Checkpoints,
    progress: &Progress,
) -> Result<(), TrainError>
where
    B: TokenizerOps<Host = f32> + OptimizerOps,
{
    let tokenizer = trainer.tokenizer;
    let header = Header::new(Kind::Tokenizer, trainer.steps(), tokenizer.config())?;
    let [first_moment, second_moment] = trainer.moments().map_err(TrainError::backend)?;
    let saved = checkpoints.save(&Snapshot {
        header: &header,
        layout: tokenizer.layout(),
        weights: &trainer.weights().map_err(TrainError::backend)?,
        ema: None,
        first_moment: &first_moment,
        second_moment: &second_moment,
        state: trainer.progress(),
    })?;
    saved.warning.iter().for_each(|warning| progress.warn(warning));
    Ok(())
}
