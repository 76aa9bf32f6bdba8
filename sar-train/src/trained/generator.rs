//! A trained generator.

use super::{TrainedError, TrainedTokenizer, config_of, header_of};
use crate::checkpoint::{self, Header, Kind, check_length, save_weights};
use crate::config::{Config, GeneratorSection};
use crate::files::absolute;
use crate::hash::sha256_of;
use crate::model::generator::{Generator, GeneratorShape};
use crate::run::{Origin, RUN_TOKENIZER, class_names};
use sar_math::ScaleSchedule;
use sar_math::backend::Backend;
use std::path::{Path, PathBuf};

/// A trained generator, and what is known about its run.
#[derive(Clone, Debug)]
pub struct TrainedGenerator {
    /// The model.
    pub generator: Generator,
    /// Its shape, and the schedule that it was trained with.
    pub section: GeneratorSection,
    /// Its weights on the host, in the order of its layout.
    pub weights: Vec<f32>,
    /// The file that contained the weights.
    pub file: PathBuf,
    /// Number of optimiser steps that they were trained for.
    pub step: u64,
    /// The run folder that it came from.
    pub run: Option<PathBuf>,
    /// Whether its weights are a running average.
    pub ema: bool,
    /// Names of its classes, if its run or its file recorded them.
    pub classes: Option<Vec<String>>,
    /// Warnings from opening it: records of its run that cannot be read.
    pub warnings: Vec<String>,
}

impl TrainedGenerator {
    /// Opens a run folder, one of its checkpoints, or a file; `ema` selects the running average of
    /// a folder.
    ///
    /// # Errors
    /// There are no such weights of a generator, or they or the run's records are damaged.
    pub fn open(path: &Path, ema: bool) -> Result<Self, TrainedError> {
        let found = checkpoint::locate(path, ema)?;
        let header = header_of(&found.file, Kind::Generator)?;
        let mut section: GeneratorSection = header.config()?;
        section.resolve();
        section.validate().map_err(|error| error.within(&found.file))?;
        let generator = Generator::new(&GeneratorShape::from(&section))?;
        let layout = generator.layout();
        let weights = checkpoint::load_weights(&found.file, Kind::Generator, layout)?.flat;
        let (file, step, ema) = (found.file, header.step, found.ema);
        let mut warnings = Vec::new();
        // Unreadable names in the run folder do not make the weights worse, and the file has the
        // names, too.
        let named = found.run.as_deref().map(class_names).transpose().unwrap_or_else(|error| {
            warnings.push(error.to_string());
            None
        });
        let named = named.flatten();
        // The names may not match if the run was edited by hand.
        let of_all = |names: &Vec<String>| names.len() == section.classes;
        let classes = named.filter(of_all).or(Some(header.classes).filter(of_all));
        let run = found.run;
        Ok(Self { generator, section, weights, file, step, run, ema, classes, warnings })
    }

    /// Writes weights, as [`Trainer::export`](crate::train::Trainer::export) returns them after
    /// `step` steps, to a file that [`TrainedGenerator::open`] accepts, together with the names of
    /// the classes if there are any.
    ///
    /// # Errors
    /// The shape is invalid, the number of weights is not that of the layout, or the file cannot be
    /// written; a previous file is kept then.
    pub fn keep(
        path: &Path,
        section: &GeneratorSection,
        weights: Vec<f32>,
        step: u64,
        classes: Option<Vec<String>>,
    ) -> Result<Self, TrainedError> {
        let generator = Generator::new(&GeneratorShape::from(section))?;
        let header = Header::new(Kind::Generator, step, section)?;
        let header = Header { classes: classes.clone().unwrap_or_default(), ..header };
        save_weights(path, &header, generator.layout(), &weights)?;
        let (section, file, run) = (section.clone(), path.to_owned(), None);
        let (ema, warnings) = (false, Vec::new());
        Ok(Self { generator, section, weights, file, step, run, ema, classes, warnings })
    }

    /// Returns the requested schedule, or the one that it was trained with.
    ///
    /// # Errors
    /// [`TrainedError::Config`] if it has no positions for a grid.
    pub fn schedule(&self, asked: Option<ScaleSchedule>) -> Result<ScaleSchedule, TrainedError> {
        let schedule = asked.unwrap_or(self.section.schedule);
        self.section.covers("sample.schedule", &schedule)?;
        Ok(schedule)
    }

    /// Uploads its weights to the backend for sampling ([`Generator::frozen`]).
    ///
    /// # Errors
    /// [`TrainedError::Backend`]: out of memory. [`CheckpointError::Length`](checkpoint::CheckpointError::Length)
    /// after [`TrainedGenerator::hand_over`].
    pub fn params<B: Backend<Host = f32>>(&self, backend: &B) -> Result<B::Params, TrainedError> {
        check_length("weights", self.generator.layout(), &self.weights)?;
        let frozen = self.generator.frozen(backend, &self.weights);
        frozen.map_err(|error: B::Error| TrainedError::backend(Kind::Generator, error))
    }

    /// Uploads its weights to the backend and frees them here, so that gigabytes are not held
    /// twice.
    ///
    /// # Errors
    /// As for [`TrainedGenerator::params`].
    pub fn hand_over<B: Backend<Host = f32>>(
        &mut self,
        backend: &B,
    ) -> Result<B::Params, TrainedError> {
        let params = self.params(backend)?;
        self.weights = Vec::new();
        Ok(params)
    }

    /// Reads the configuration of its run, if it came from one.
    ///
    /// # Errors
    /// As for [`config_of`].
    pub fn run_config(&self) -> Result<Option<Config>, TrainedError> {
        Ok(self.run.as_deref().map(config_of).transpose()?.flatten())
    }

    /// Opens the tokenizer that its run contains.
    ///
    /// # Errors
    /// [`TrainedError::NoTokenizer`] if it is not in a run; as for [`TrainedTokenizer::open`]; or
    /// if the codes do not fit.
    pub fn tokenizer<B: Backend<Host = f32>>(
        &self,
        backend: &B,
    ) -> Result<TrainedTokenizer<B>, TrainedError> {
        let tokenizer = TrainedTokenizer::open(backend, &self.tokenizer_file()?)?;
        tokenizer.fits(&self.section)?;
        Ok(tokenizer)
    }

    /// Returns the path of the tokenizer in its run.
    ///
    /// # Errors
    /// [`TrainedError::NoTokenizer`] if it is not in a run.
    pub fn tokenizer_file(&self) -> Result<PathBuf, TrainedError> {
        match &self.run {
            Some(run) => Ok(run.join(RUN_TOKENIZER)),
            None => Err(TrainedError::NoTokenizer { path: self.file.clone() }),
        }
    }

    /// Returns the record that a run started from these weights keeps.
    ///
    /// # Errors
    /// [`CheckpointError::Length`](checkpoint::CheckpointError::Length) after [`TrainedGenerator::hand_over`].
    pub fn origin(&self) -> Result<Origin, TrainedError> {
        check_length("weights", self.generator.layout(), &self.weights)?;
        let (weights, sha256) = (absolute(&self.file), sha256_of(&self.weights));
        Ok(Origin { weights, step: self.step, ema: self.ema, sha256 })
    }
}
