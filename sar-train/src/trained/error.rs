//! Why a trained model cannot be opened.

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
    /// The run that they belong to cannot be read.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The configuration of that run, or a schedule that the generator has no positions for.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A generator of a shape that there is not.
    #[error(transparent)]
    Generator(#[from] GeneratorError),
    /// A tokenizer of a shape that there is not.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerConfigError),
    /// A file of weights alone.
    #[error(
        "{}: holds tensors but not the configuration of their {kind}; `sar convert` makes a file \
         that does of a published {kind}'s weights", path.display()
    )]
    NoConfiguration {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        kind: Kind,
    },
    /// A generator that does not lie in a run, which would keep its tokenizer.
    #[error("{} is a file of its own, so its tokenizer is not known", path.display())]
    NoTokenizer {
        /// The generator's file.
        path: PathBuf,
    },
    /// A tokenizer and a generator that do not belong together.
    #[error(
        "the tokenizer has {codes} codes of {channels} channels, the generator expects {vocab} of \
         {latent}; they were not trained together"
    )]
    NotTogether {
        /// The tokenizer's codes.
        codes: usize,
        /// Their channels.
        channels: usize,
        /// The codes that the generator tells apart.
        vocab: usize,
        /// The channels that it reads.
        latent: usize,
    },
    /// A model that the backend cannot hold.
    #[error("the weights of the {kind} cannot be brought to the backend")]
    Backend {
        /// What it is.
        kind: Kind,
        /// Why; its [kind](BackendError::kind) can be asked for.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TrainedError {
    /// Wraps an error of a backend.
    pub(super) fn backend(kind: Kind, error: impl BackendError) -> Self {
        Self::Backend { kind, source: Box::new(error) }
    }
}
