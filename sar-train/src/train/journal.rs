//! What a training run writes: checkpoints, log, TensorBoard events and progress.

use super::TrainError;
use crate::checkpoint::{Checkpoints, Snapshot};
use crate::config::TrainConfig;
use crate::run::{Log, Progress, RunFolder, TensorBoard};
use serde::Serialize;
use std::time::Instant;

/// The files of a run while it trains.
pub(super) struct Journal {
    pub(super) checkpoints: Checkpoints,
    /// The step of the last checkpoint.
    saved: u64,
    saved_at: Instant,
    pub(super) log: Log,
    pub(super) board: TensorBoard,
    pub(super) progress: Progress,
}

impl Journal {
    /// Opens the files of a run that has reached step `first` of `steps`; `progress` names the work in its progress bar.
    pub(super) fn open(
        run: &RunFolder,
        keep: usize,
        (first, steps): (u64, u64),
        progress: &str,
        quiet: bool,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            checkpoints: run.checkpoints(keep)?,
            saved: first,
            saved_at: Instant::now(),
            log: run.log(first)?,
            board: run.tensorboard(first)?,
            progress: Progress::new(progress, steps, first, quiet),
        })
    }

    /// Returns whether `step` is the last one that was saved, or the one that the run started from.
    pub(super) fn is_saved(&self, step: u64) -> bool {
        self.saved == step
    }

    /// Returns whether a checkpoint is due at `step`, by the count of steps or by the clock.
    pub(super) fn save_is_due(&self, train: &TrainConfig, step: u64) -> bool {
        let by_steps = train.save_every > 0 && step.is_multiple_of(train.save_every);
        by_steps || train.overdue(self.saved_at)
    }

    /// Writes a checkpoint.
    pub(super) fn save<S: Serialize>(
        &mut self,
        snapshot: &Snapshot<'_, S>,
    ) -> Result<(), TrainError> {
        let saved = self.checkpoints.save(snapshot)?;
        (self.saved, self.saved_at) = (snapshot.header.step, Instant::now());
        saved.warning.iter().for_each(|warning| self.progress.warn(warning));
        Ok(())
    }

    /// Has the last whole step saved before an error ends the run; returns the error to end with.
    pub(super) fn rescue(
        &mut self,
        step: u64,
        error: TrainError,
        save: impl FnOnce(&mut Self) -> Result<(), TrainError>,
    ) -> TrainError {
        // If saving fails too, the first error says more.
        if !self.is_saved(step) && save(self).is_err() {
            return error;
        }
        TrainError::Stopped { step, source: Box::new(error) }
    }

    /// Moves the progress to `step`, and warns where that was skipped: `broken` names what was not finite.
    pub(super) fn moved(&mut self, step: u64, broken: Option<&str>) {
        if let Some(broken) = broken {
            self.progress
                .warn(&format!("step {step}: the gradient {broken} is not finite; step skipped"));
        }
        self.progress.moved(step);
    }

    /// Writes a value of each scale under `prefix/scale_<grid>_<what>`. Grids name them: drawn schedules have others at
    /// the same place.
    pub(super) fn board_scales(
        &mut self,
        prefix: &str,
        what: &str,
        step: u64,
        schedule: &str,
        values: impl IntoIterator<Item = Option<f64>>,
    ) -> Result<(), TrainError> {
        for (grid, value) in schedule.split('_').zip(values) {
            if let Some(value) = value {
                self.board.scalar(&format!("{prefix}/scale_{grid}_{what}"), step, value)?;
            }
        }
        Ok(())
    }
}
