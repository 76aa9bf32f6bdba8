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
    /// Its shape, and the schedule that it was trained on.
    pub section: GeneratorSection,
    /// Its weights on the host, in the order of its layout.
    pub weights: Vec<f32>,
    /// The file they were in.
    pub file: PathBuf,
    /// Optimiser steps they were trained for.
    pub step: u64,
    /// The run folder it came from.
    pub run: Option<PathBuf>,
    /// Whether its weights are a running average.
    pub ema: bool,
    /// Names of its classes, where its run or its file kept them.
    pub classes: Option<Vec<String>>,
    /// What there is to know of how it was found: damaged checkpoints that were passed over.
    pub warnings: Vec<String>,
}

impl TrainedGenerator {
    /// From a run folder, a checkpoint of one, or a file; `ema` takes the running average of a folder.
    ///
    /// # Errors
    /// There are no such weights of a generator, or they or its run's records are damaged.
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
        let mut warnings = found.warnings;
        // Good weights are not worth less for what lies beside them, and the file has the names, too.
        let named = found.run.as_deref().map(class_names).transpose().unwrap_or_else(|error| {
            warnings.push(error.to_string());
            None
        });
        let named = named.flatten();
        // Of a run that was edited by hand, perhaps.
        let of_all = |names: &Vec<String>| names.len() == section.classes;
        let classes = named.filter(of_all).or(Some(header.classes).filter(of_all));
        let run = found.run;
        Ok(Self { generator, section, weights, file, step, run, ema, classes, warnings })
    }

    /// Weights as [`Trainer::export`](crate::train::Trainer::export) gives them after `step` steps, written to a file
    /// that [`TrainedGenerator::open`] takes; the names of its classes are in it, where there are some.
    ///
    /// # Errors
    /// A shape that there is not, weights that are not as many as the layout's; a file that cannot be written:
    /// what was there is there still.
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

    /// The schedule that is asked for, or the one it was trained on.
    ///
    /// # Errors
    /// [`TrainedError::Config`] for a grid that it has no positions for.
    pub fn schedule(&self, asked: Option<ScaleSchedule>) -> Result<ScaleSchedule, TrainedError> {
        let schedule = asked.unwrap_or(self.section.schedule);
        self.section.covers("sample.schedule", &schedule)?;
        Ok(schedule)
    }

    /// Its weights on the backend, to sample with ([`Generator::frozen`]).
    ///
    /// # Errors
    /// [`TrainedError::Backend`]: out of memory. [`CheckpointError::Length`](checkpoint::CheckpointError::Length)
    /// after [`TrainedGenerator::hand_over`].
    pub fn params<B: Backend<Host = f32>>(&self, backend: &B) -> Result<B::Params, TrainedError> {
        check_length("weights", self.generator.layout(), &self.weights)?;
        let frozen = self.generator.frozen(backend, &self.weights);
        frozen.map_err(|error: B::Error| TrainedError::backend(Kind::Generator, error))
    }

    /// Its weights on the backend, and no longer here: those of gigabytes are held once.
    ///
    /// # Errors
    /// As [`TrainedGenerator::params`].
    pub fn hand_over<B: Backend<Host = f32>>(
        &mut self,
        backend: &B,
    ) -> Result<B::Params, TrainedError> {
        let params = self.params(backend)?;
        self.weights = Vec::new();
        Ok(params)
    }

    /// The configuration of its run, where it came from one.
    ///
    /// # Errors
    /// As [`config_of`].
    pub fn run_config(&self) -> Result<Option<Config>, TrainedError> {
        Ok(self.run.as_deref().map(config_of).transpose()?.flatten())
    }

    /// The tokenizer that its run keeps.
    ///
    /// # Errors
    /// [`TrainedError::NoTokenizer`] where it is in no run; as [`TrainedTokenizer::open`]; one of other codes.
    pub fn tokenizer<B: Backend<Host = f32>>(
        &self,
        backend: &B,
    ) -> Result<TrainedTokenizer<B>, TrainedError> {
        let tokenizer = TrainedTokenizer::open(backend, &self.tokenizer_file()?)?;
        tokenizer.fits(&self.section)?;
        Ok(tokenizer)
    }

    /// Where its run keeps its tokenizer.
    ///
    /// # Errors
    /// [`TrainedError::NoTokenizer`] where it is in no run.
    pub fn tokenizer_file(&self) -> Result<PathBuf, TrainedError> {
        match &self.run {
            Some(run) => Ok(run.join(RUN_TOKENIZER)),
            None => Err(TrainedError::NoTokenizer { path: self.file.clone() }),
        }
    }

    /// What a run that starts from it keeps of that.
    ///
    /// # Errors
    /// [`CheckpointError::Length`](checkpoint::CheckpointError::Length) after [`TrainedGenerator::hand_over`].
    pub fn origin(&self) -> Result<Origin, TrainedError> {
        check_length("weights", self.generator.layout(), &self.weights)?;
        let (weights, sha256) = (absolute(&self.file), sha256_of(&self.weights));
        Ok(Origin { weights, step: self.step, ema: self.ema, sha256 })
    }
}
