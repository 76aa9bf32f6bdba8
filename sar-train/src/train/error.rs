//! Why training stops.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::run::{Interrupted, NonFiniteError, RunError};
use sar_math::backend::BackendError;
use sar_math::rollout::PlanError;

/// Why training stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An op of the backend.
    #[error("training: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A configuration with values out of their range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The way of training does not fit the schedule.
    #[error("training: {0}")]
    Plan(#[from] PlanError),
    /// The images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Gradients that are not finite, several times in a row.
    #[error(transparent)]
    NonFinite(#[from] NonFiniteError),
    /// Weights that give no loss.
    #[error("training: the loss on held-out images is not finite at step {step}; {}", advice(*.step))]
    Diverged {
        /// When it was seen.
        step: u64,
    },
    /// The user stopped it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The user stopped it before a step of it was made.
    #[error("interrupted before a step was made")]
    NotBegun,
    /// What goes on from the last step that was made, which is saved.
    #[error("training stopped; step {step} is saved, and --resume goes on from it")]
    Stopped {
        /// The step.
        step: u64,
        /// Why.
        source: Box<TrainError>,
    },
    /// Weights that do not belong to the model.
    #[error("training: {what}: expected {expected} values, found {found}")]
    Length {
        /// Which.
        what: &'static str,
        /// As the model has.
        expected: usize,
        /// As given.
        found: usize,
    },
}

/// What to do where weights give no loss.
fn advice(step: u64) -> &'static str {
    match step {
        0 => "the weights that it starts from are not usable",
        _ => {
            "begin anew with a lower train.lr, or from an earlier checkpoint with `sar train --init-from`"
        }
    }
}

impl TrainError {
    /// Wraps an error of a backend. It stays this error's source, so that its
    /// [`kind`](BackendError::kind) can be asked for.
    pub fn backend(error: impl BackendError) -> Self {
        Self::Backend(Box::new(error))
    }

    /// Whether the trainer is as after its last step all the same: images that cannot be read, a log or picture
    /// that cannot be written.
    pub(crate) fn leaves_the_model(&self) -> bool {
        matches!(self, Self::Data(_) | Self::Run(_))
    }
}
