//! Errors of trained models.

use crate::checkpoint::{CheckpointError, Kind};
use crate::config::ConfigError;
use crate::model::generator::GeneratorError;
use crate::model::tokenizer::TokenizerConfigError;
use crate::run::RunError;
use sar_math::backend::BackendError;
use std::path::PathBuf;

/// Why a trained model cannot be opened, kept or used with another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainedError {
    /// The weights cannot be found, read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run that the weights belong to cannot be read.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The configuration of that run is invalid, or the generator has no positions for a schedule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The generator has an invalid shape.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
    /// The tokenizer has an invalid shape.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerConfigError),
    /// The file holds weights without a configuration.
    #[error(
        "{}: holds tensors but not the configuration of their {kind}; `sar convert` makes a file \
         that does of a published {kind}'s weights", path.display()
    )]
    NoConfiguration {
        /// The file.
        path: PathBuf,
        /// The expected kind of model.
        kind: Kind,
    },
    /// The generator is not in a run folder, which would contain its tokenizer.
    #[error("{} is a file of its own, so its tokenizer is not known", path.display())]
    NoTokenizer {
        /// The generator's file.
        path: PathBuf,
    },
    /// The tokenizer and the generator do not belong together.
    #[error(
        "the tokenizer has {codes} codes of {channels} channels, the generator expects {vocab} of \
         {latent}; they were not trained together"
    )]
    NotTogether {
        /// Number of the tokenizer's codes.
        codes: usize,
        /// Number of their channels.
        channels: usize,
        /// Number of codes that the generator expects.
        vocab: usize,
        /// Number of channels that the generator expects.
        latent: usize,
    },
    /// The backend cannot hold the model.
    #[error("the weights of the {kind} cannot be brought to the backend")]
    Backend {
        /// Kind of the model.
        kind: Kind,
        /// The cause, from which the [kind](BackendError::kind) can be obtained.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TrainedError {
    /// Wraps an error of a backend.
    pub(super) fn backend(kind: Kind, error: impl BackendError) -> Self {
        Self::Backend { kind, source: Box::new(error) }
    }
}
