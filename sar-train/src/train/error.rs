//! Why training stops.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::model::generator::GeneratorError;
use crate::model::tokenizer::TokenizerConfigError;
use crate::ranks::RanksError;
use crate::run::{Interrupted, NonFiniteError, RunError};
use sar_math::backend::BackendError;
use sar_math::rollout::PlanError;

/// Why training stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// An op of the backend failed.
    #[error("training: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configuration has values out of their range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A generator's dimensions are impossible.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
    /// A tokenizer's configuration is impossible.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerConfigError),
    /// The way of training does not fit the schedule.
    #[error("training: {0}")]
    Plan(#[source] PlanError),
    /// An error of the images.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An error of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An error of the run folder.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Gradients were not finite several times in a row.
    #[error(transparent)]
    NonFinite(#[from] NonFiniteError),
    /// The weights give no finite loss.
    #[error("training: the loss on held-out images is not finite at step {step}; {}", advice(*.step))]
    Diverged {
        /// The step at which it was found.
        step: u64,
    },
    /// The user stopped it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The user stopped it before its first step was made.
    #[error("interrupted before a step was made")]
    NotBegun,
    /// Training stopped after its last step was saved, and can go on from it.
    #[error("training stopped; step {step} is saved, and --resume goes on from it")]
    Stopped {
        /// The step that is saved.
        step: u64,
        /// Why training stopped.
        source: Box<TrainError>,
    },
    /// Another rank of the run has failed, or cannot be reached.
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// A rank has no micro-batch of a step.
    #[error("training: this rank has no micro-batch of the step")]
    NoShare,
    /// A buffer of another length than the model or the images have.
    #[error("training: {what}: expected {expected} values, found {found}")]
    Length {
        /// Which values.
        what: &'static str,
        /// Number expected by the model.
        expected: usize,
        /// Number given.
        found: usize,
    },
}

/// Advice for weights that give no finite loss.
fn advice(step: u64) -> &'static str {
    match step {
        0 => "the weights that it starts from are not usable",
        _ => {
            "begin anew with a lower train.lr, or from an earlier checkpoint with `sar train --init-from`"
        }
    }
}

/// An error of a backend stays this error's source, so that its [`kind`](BackendError::kind) can be asked for.
impl<E: BackendError> From<E> for TrainError {
    fn from(error: E) -> Self {
        Self::Backend(Box::new(error))
    }
}

impl TrainError {
    /// Whether the trainer is still as it was after its last step, as when images cannot be read, a log or picture cannot
    /// be written, or another rank has failed.
    pub(crate) fn leaves_the_model(&self) -> bool {
        matches!(self, Self::Data(_) | Self::Run(_) | Self::Ranks(_))
    }
}
