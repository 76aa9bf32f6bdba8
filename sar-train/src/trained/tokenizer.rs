//! A trained tokenizer.

use super::{TrainedError, config_of, header_of};
use crate::checkpoint::{self, Header, Kind, check_length, save_weights};
use crate::config::GeneratorSection;
use crate::model::tokenizer::{Quantizer, Tokenizer, TokenizerConfig};
use crate::run::{RUN_TOKENIZER, RunFolder};
use crate::sample::Decoder;
use sar_math::backend::Backend;
use std::path::{Path, PathBuf};

/// A trained tokenizer, ready to encode and decode.
pub struct TrainedTokenizer<B: Backend> {
    /// The model.
    pub tokenizer: Tokenizer,
    /// Its weights on the host, in the order of its layout.
    pub weights: Vec<f32>,
    /// Its weights on the backend.
    pub params: B::Params,
    /// Its codebook, and how scales use it.
    pub quantizer: Quantizer<B>,
    /// Number of optimiser steps that it was trained for.
    pub step: u64,
    /// Side in pixels of the images that it was trained on, if its run records it.
    pub side: Option<usize>,
    /// The file that it was read from, if any.
    pub file: Option<PathBuf>,
    /// Warnings from opening it: records of its run that cannot be read.
    pub warnings: Vec<String>,
}

impl<B: Backend<Host = f32>> TrainedTokenizer<B> {
    /// Creates a tokenizer from weights on the host, as
    /// [`TokenizerTrainer::weights`](crate::train::tokenizer::TokenizerTrainer::weights) returns
    /// them after `step` steps.
    ///
    /// # Errors
    /// [`CheckpointError::Length`](checkpoint::CheckpointError::Length) if the number of weights is
    /// not that of the layout, [`TrainedError::Backend`] if the backend has no room for them.
    pub fn new(
        backend: &B,
        tokenizer: Tokenizer,
        weights: Vec<f32>,
        step: u64,
    ) -> Result<Self, TrainedError> {
        let failed = |error: B::Error| TrainedError::backend(Kind::Tokenizer, error);
        check_length("weights", tokenizer.layout(), &weights)?;
        let mut params = backend.params(weights.len()).map_err(failed)?;
        backend.upload_params(&weights, &mut params, 0).map_err(failed)?;
        let quantizer = tokenizer.quantizer(backend, &params).map_err(failed)?;
        let (side, file, warnings) = (None, None, Vec::new());
        Ok(Self { tokenizer, weights, params, quantizer, step, side, file, warnings })
    }

    /// Opens the run folder of a tokenizer, or of a generator, which contains one; a checkpoint; or
    /// a file.
    ///
    /// # Errors
    /// There are no weights of a tokenizer, they are damaged, or the backend has no room for them.
    pub fn open(backend: &B, path: &Path) -> Result<Self, TrainedError> {
        let kept = path.join(RUN_TOKENIZER);
        let found = checkpoint::locate(if kept.is_file() { &kept } else { path }, false)?;
        let header = header_of(&found.file, Kind::Tokenizer)?;
        let tokenizer = Tokenizer::new(&header.config::<TokenizerConfig>()?)?;
        let layout = tokenizer.layout();
        let weights = checkpoint::load_weights(&found.file, Kind::Tokenizer, layout)?.flat;
        let mut warnings = Vec::new();
        // An unreadable configuration in the run folder does not make the weights worse.
        let side = match found.run.as_deref().map(config_of).transpose() {
            Ok(config) => config.flatten().map(|config| config.data.image_side),
            Err(error) => {
                warnings.push(format!("{error}; what images the tokenizer had is not known"));
                None
            }
        };
        let trained = Self::new(backend, tokenizer, weights, header.step)?;
        Ok(Self { side, file: Some(found.file), warnings, ..trained })
    }

    /// Writes it to a file that [`TrainedTokenizer::open`] accepts.
    ///
    /// # Errors
    /// The file cannot be written; a previous file is kept then.
    pub fn save(&self, path: &Path) -> Result<(), TrainedError> {
        let header = Header::new(Kind::Tokenizer, self.step, self.tokenizer.config())?;
        Ok(save_weights(path, &header, self.tokenizer.layout(), &self.weights)?)
    }

    /// Stores it in the run of a generator, to make the run self-contained; one that is already
    /// there is kept.
    ///
    /// # Errors
    /// As for [`TrainedTokenizer::save`].
    pub fn keep_in(&self, run: &RunFolder) -> Result<(), TrainedError> {
        let path = run.path().join(RUN_TOKENIZER);
        if path.is_file() { Ok(()) } else { self.save(&path) }
    }

    /// Returns it as a [`Painter`](crate::sample::Painter) takes it.
    pub fn decoder(&self) -> Decoder<'_, B> {
        Decoder { tokenizer: &self.tokenizer, params: &self.params, quantizer: &self.quantizer }
    }

    /// Checks that a generator's tables have the tokenizer's sizes.
    ///
    /// # Errors
    /// [`TrainedError::NotTogether`].
    pub fn fits(&self, generator: &GeneratorSection) -> Result<(), TrainedError> {
        let (codes, channels) =
            (self.tokenizer.config().vocab, self.tokenizer.config().latent_channels);
        let (vocab, latent) = (generator.vocab, generator.channels);
        match (codes, channels) == (vocab, latent) {
            true => Ok(()),
            false => Err(TrainedError::NotTogether { codes, channels, vocab, latent }),
        }
    }
}
