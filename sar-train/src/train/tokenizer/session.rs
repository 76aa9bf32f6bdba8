//! The loop around a tokenizer's trainer: log, checkpoints, interruption.

use super::{TokenizerLosses, TokenizerTrainer};
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::config::Config;
use crate::data::Loader;
use crate::run::{Interrupt, Interrupted, Log, NonFiniteError, Progress, RunFolder, TensorBoard};
use crate::train::TrainError;
use sar_math::backend::{OptimizerOps, TokenizerOps};
use serde::Serialize;

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
}

impl Record {
    fn of(losses: &TokenizerLosses) -> Self {
        Self {
            loss: losses.reconstruction,
            quantization: losses.quantization,
            grad_norm: losses.grad_norm,
            lr: losses.lr,
            grid: format!("{}x{}", losses.grid.0, losses.grid.1),
            revived: losses.revived,
        }
    }
}

impl TokenizerSession<'_> {
    /// Trains to the last step of the configuration, from wherever the trainer is; the progress, which the
    /// caller finishes.
    ///
    /// # Errors
    /// The images', the backend's, the disk's; too many non-finite steps in a row; [`Interrupted`] after
    /// the state has been saved, and [`TrainError::Stopped`] after it has been because of an error that leaves
    /// it whole.
    pub fn train<B>(
        &self,
        trainer: &mut TokenizerTrainer<'_, B>,
        loader: &mut Loader,
    ) -> Result<Progress, TrainError>
    where
        B: TokenizerOps<Host = f32> + OptimizerOps,
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
        let mut saved = first;
        while trainer.steps() < steps {
            let made = self.step(trainer, loader, &mut log, &mut progress);
            let step = trainer.steps();
            let (asked, last) = (self.interrupt.is_asked() && step < steps, step == steps);
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
            let every = self.config.train.save_every;
            let due = every > 0 && step.is_multiple_of(every);
            // Not while steps are skipped: the checkpoints before are the ones to go back to.
            if (due && !skipped) || asked || last {
                save(trainer, &checkpoints, &progress)?;
                saved = step;
            }
            if asked {
                return Err(Interrupted { step }.into());
            }
        }
        Ok(progress)
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
        if in_a_row >= self.config.train.non_finite_limit {
            return Err(NonFiniteError { step, in_a_row }.into());
        }
        if losses.skipped {
            progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
        }
        let last = step == self.config.tokenizer_train.steps;
        if step.is_multiple_of(self.config.train.log_every) || last {
            log_step(step, &losses, log, board, progress)?;
        }
        Ok(losses.skipped)
    }
}

fn log_step(
    step: u64,
    losses: &TokenizerLosses,
    log: &mut Log,
    board: &mut TensorBoard,
    progress: &mut Progress,
) -> Result<(), TrainError> {
    let record = Record::of(losses);
    log.record(step, "train", &record)?;
    // Coarse grids are compared with smaller images, so errors of different grids are no curve.
    let grid = &record.grid;
    board.scalar(&format!("tokenizer_reconstruction/{grid}"), step, losses.reconstruction)?;
    board.scalar(&format!("tokenizer_quantization/{grid}"), step, losses.quantization)?;
    board.scalar("tokenizer/lr", step, losses.lr)?;
    board.scalar("tokenizer/grad_norm", step, losses.grad_norm)?;
    board.scalar("tokenizer/revived_codes", step, losses.revived as f64)?;
    progress.update(step, &format!("mse {:.4} at {}", losses.reconstruction, record.grid));
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
