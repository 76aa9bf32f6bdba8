//! Models from files, as the commands need them: weights on the host and on the backend.

use super::output;
use crate::backend::Compute;
use crate::checkpoint::{self, CheckpointError, Kind};
use crate::config::{Config, GeneratorSection};
use crate::data::{self, Data, DataError, some_of};
use crate::hash::sha256_of;
use crate::model::generator::{Generator, GeneratorShape, parameters};
use crate::model::tokenizer::{Quantizer, Tokenizer, TokenizerConfig};
use crate::run::{Origin, RUN_TOKENIZER, RunFolder, class_names, held_out_of, images_of, memory};
use crate::sample::Decoder;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::path::{Path, PathBuf};

/// A tokenizer ready to encode and decode.
pub(crate) struct LoadedTokenizer<B: Compute> {
    pub tokenizer: Tokenizer,
    pub weights: Vec<f32>,
    pub params: B::Params,
    pub quantizer: Quantizer<B>,
    /// Optimiser steps it was trained for.
    pub step: u64,
    /// Side of the images that it was trained on, where its run says it.
    pub side: Option<usize>,
}

/// The images that a run was made with.
///
/// # Errors
/// As [`data::open`]; where they have moved, what to change.
pub(crate) fn run_data(config: &Config, run: Option<&Path>) -> anyhow::Result<Data> {
    data::open(&config.data).map_err(|error| match (run, &error) {
        (Some(run), DataError::Missing { .. }) => anyhow::Error::from(error).context(format!(
            "the images that {} was made with have moved: name them with --data, or, to go on, with \
             --resume --set data.path=…",
            run.display()
        )),
        _ => error.into(),
    })
}

fn counted(data: &Data) -> String {
    // What data.limit leaves out changes nothing in what is held out.
    let (training, held_out) = (data.listed, data.validation.len());
    format!("{training} training and {held_out} held-out images of {} classes", data.classes.len())
}

/// Warns where other images are held out now than when a run was trained: it was trained on some of them.
pub(crate) fn compare_with_run(run: Option<&Path>, data: &Data) -> anyhow::Result<()> {
    let Some(run) = run else { return Ok(()) };
    let (before, now) = (images_of(run)?, counted(data));
    if let Some(before) = before.filter(|before| *before != now) {
        output::note(format_args!(
            "warning: the generator was trained where there were {before}, and now there are {now}: held-out \
             images are drawn from all of them, so that it was trained on some of these"
        ));
    } else if held_out_of(run)?.is_some_and(|before| before != data.held_out_fingerprint()) {
        output::note(format_args!(
            "warning: other images are held out now than when the generator was trained, so that it was trained \
             on some of these; keep data.split_seed and data.val_fraction as they were"
        ));
    }
    Ok(())
}

/// Warns where a run goes on with more or fewer images than it began with; whether an image's content has
/// changed is not looked at.
pub(crate) fn compare_images(folder: &RunFolder, data: &Data) -> anyhow::Result<()> {
    let now = counted(data);
    if let Some(before) = folder.other_images(&now)? {
        output::note(format_args!(
            "warning: the run began with {before}, and now there are {now}: it goes on, but not as it \
             would have with the same, and where held-out images are drawn from all of them, some \
             that are held out now may have been trained on"
        ));
    } else if folder.other_held_out(&data.held_out_fingerprint())?.is_some() {
        output::note(format_args!(
            "warning: other images are held out than when the run began; were some renamed? Some that are held \
             out now may have been trained on"
        ));
    }
    Ok(())
}

/// Warns where a run goes on by another backend or type of numbers than it began with.
pub(crate) fn compare_computing(folder: &RunFolder, now: &str) -> anyhow::Result<()> {
    if let Some(before) = folder.other_computing(now)? {
        output::note(format_args!(
            "warning: the run began on {before} and goes on with {now}, not bit for bit; --backend and --dtype \
             are given to --resume, too"
        ));
    }
    Ok(())
}

/// Tells of images that turned out bad while training, and that others were trained on in place of.
pub(crate) fn tell_replaced(data: &Data) {
    let replaced = data.train.skipped();
    if let Some((path, reason)) = replaced.first() {
        output::note(format_args!(
            "warning: {} bad images were left out while training, others in their place; the first, {}: {reason}",
            replaced.len(),
            path.display()
        ));
    }
}

/// Whether a class has a name, and not just the number that list files and classes without images have.
fn is_named(label: usize, name: &str) -> bool {
    name != label.to_string()
}

/// Gives labels without a name the known one, unless another label has that.
fn name_gaps(names: &mut [String], known: &[String]) {
    for (label, known) in known.iter().enumerate().take(names.len()) {
        if !is_named(label, &names[label]) && !names.contains(known) {
            names[label].clone_from(known);
        }
    }
}

/// The first label that means another class in `now` than in `before`, told.
fn other_class(before: &[String], now: &[String]) -> Option<String> {
    let pairs = before.iter().zip(now).enumerate();
    let named = |(label, (a, b)): &(usize, (&String, &String))| {
        is_named(*label, a) && is_named(*label, b) && a != b
    };
    let changed = pairs.into_iter().find(named);
    let without = |all: &[String], others: &[String]| -> Vec<String> {
        let kept = all.iter().enumerate().filter(|(label, name)| is_named(*label, name));
        kept.filter(|(_, name)| !others.contains(name))
            .map(|(_, name)| format!("`{name}`"))
            .collect()
    };
    let told = |names: Vec<String>, what: &str| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| format!("{} {what}", some_of(&names)))
    };
    let mut parts: Vec<String> = changed
        .map(|(label, (was, is))| format!("class {label} was `{was}` and is `{is}` now"))
        .into_iter()
        .collect();
    if changed.is_some() || before.len() != now.len() {
        parts.extend(told(without(before, now), "missing"));
        parts.extend(told(without(now, before), "new"));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Keeps the classes of a new run, and stops one that goes on where its labels would mean others.
pub(crate) fn compare_classes(folder: &RunFolder, data: &Data) -> anyhow::Result<()> {
    let Some(before) = folder.other_classes(&data.classes)? else { return Ok(()) };
    let difference = match other_class(&before, &data.classes) {
        Some(difference) => difference,
        None if before.len() == data.classes.len() => return Ok(()),
        None => format!("there were {} and are {} now", before.len(), data.classes.len()),
    };
    anyhow::bail!(
        "the images have other classes than when the run began: {difference}; give the folders their \
         names back, or begin another run with `sar train --init-from {} --new-classes --data …`",
        folder.path().display()
    )
}

/// Fails where this machine could not even hold a generator's weights.
pub(crate) fn affordable(section: &GeneratorSection) -> anyhow::Result<()> {
    let parameters = parameters(&GeneratorShape::from(section));
    let (bytes, room) = (parameters.saturating_mul(4), memory::total().unwrap_or(u64::MAX));
    anyhow::ensure!(
        bytes <= room,
        "a generator of {parameters} parameters takes {} for its weights alone, and this machine has \
         {}; lower generator.depth or generator.width",
        memory::text(bytes),
        memory::text(room)
    );
    Ok(())
}

impl<B: Compute> LoadedTokenizer<B> {
    /// From weights on the host.
    pub(crate) fn new(
        backend: &B,
        config: &TokenizerConfig,
        weights: Vec<f32>,
        step: u64,
    ) -> anyhow::Result<Self> {
        let tokenizer = Tokenizer::new(config)?;
        let mut params = backend.params(weights.len())?;
        backend.upload_params(&weights, &mut params, 0)?;
        let quantizer = tokenizer.quantizer(backend, &params)?;
        Ok(Self { tokenizer, weights, params, quantizer, step, side: None })
    }

    /// From a run folder, a checkpoint or a file.
    pub(crate) fn open(backend: &B, path: &Path) -> anyhow::Result<Self> {
        let found = checkpoint::locate(path, false)?;
        warn_all(&found.warnings);
        let header = header_of(&found.file, Kind::Tokenizer)?;
        let config: TokenizerConfig = header.config()?;
        let layout = Tokenizer::new(&config)?.layout().clone();
        let weights = checkpoint::load_weights(&found.file, Kind::Tokenizer, &layout)?;
        let mut loaded = Self::new(backend, &config, weights.flat, header.step)
            .with_context(|| format!("tokenizer {}", found.file.display()))?;
        if let Some(run) = found.run.as_deref() {
            loaded.side = config_of(run)?.map(|config| config.data.image_side);
        }
        Ok(loaded)
    }

    /// As the painter takes it.
    pub(crate) fn decoder(&self) -> Decoder<'_, B> {
        Decoder { tokenizer: &self.tokenizer, params: &self.params, quantizer: &self.quantizer }
    }

    /// Whether a generator's tables have the tokenizer's sizes.
    pub(crate) fn fits(&self, generator: &GeneratorSection) -> anyhow::Result<()> {
        let t = self.tokenizer.config();
        anyhow::ensure!(
            t.vocab == generator.vocab && t.latent_channels == generator.channels,
            "the tokenizer has {} codes of {} channels, the generator expects {} of {}; they were \
             not trained together",
            t.vocab,
            t.latent_channels,
            generator.vocab,
            generator.channels
        );
        Ok(())
    }
}

/// A trained generator, and what is known about its run.
pub(crate) struct LoadedGenerator {
    pub generator: Generator,
    pub section: GeneratorSection,
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
}

impl LoadedGenerator {
    /// What a run that starts from it keeps of that.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            weights: absolute(&self.file),
            step: self.step,
            ema: self.ema,
            sha256: sha256_of(&self.weights),
        }
    }

    /// From a run folder, a checkpoint or a file; `ema` takes the running average.
    pub(crate) fn open(path: &Path, ema: bool) -> anyhow::Result<Self> {
        let found = checkpoint::locate(path, ema)?;
        warn_all(&found.warnings);
        let header = header_of(&found.file, Kind::Generator)?;
        let section: GeneratorSection = header.config()?;
        let generator = Generator::new(&GeneratorShape::from(&section))?;
        let layout = generator.layout();
        let weights = checkpoint::load_weights(&found.file, Kind::Generator, layout)?.flat;
        let (file, step, ema) = (found.file, header.step, found.ema);
        let named = found.run.as_deref().map(class_names).transpose()?.flatten();
        // Of a run that was edited by hand, perhaps.
        let of_all = |names: &Vec<String>| names.len() == section.classes;
        let classes = named.filter(of_all).or(Some(header.classes).filter(of_all));
        Ok(Self { generator, section, weights, file, step, run: found.run, ema, classes })
    }

    /// The schedule that is asked for, or the one it was trained on.
    pub(crate) fn schedule(&self, asked: Option<ScaleSchedule>) -> anyhow::Result<ScaleSchedule> {
        let schedule = asked.unwrap_or(self.section.schedule);
        self.section.covers("sample.schedule", &schedule)?;
        Ok(schedule)
    }

    /// Gives classes that these images leave without a name the one that the generator's run has for them.
    pub(crate) fn name_classes(&self, data: &mut Data) {
        name_gaps(&mut data.classes, self.classes.as_deref().unwrap_or_default());
    }

    /// Warns where a label means another class to these images than to those it was trained on.
    pub(crate) fn compare_classes(&self, data: &Data) {
        let Some(before) = self.classes.as_deref() else {
            output::note(format_args!(
                "note: the names of the generator's classes were not kept; its classes are taken for those of the \
                 images, in their order"
            ));
            return;
        };
        if let Some(difference) = other_class(before, &data.classes) {
            output::note(format_args!(
                "warning: the images have other classes than those that the generator was trained on: \
                 {difference}"
            ));
        }
    }

    /// Lets it have the classes `names`, those of the same name as they are, the others anew.
    pub(crate) fn adopt_classes(&mut self, names: &[String], seed: u64) -> anyhow::Result<()> {
        let known = self.classes.take().unwrap_or_default();
        let row = |(label, name): (usize, &String)| {
            let known = || known.iter().position(|k| k == name);
            is_named(label, name).then(known).flatten()
        };
        let rows: Vec<Option<usize>> = names.iter().enumerate().map(row).collect();
        (self.generator, self.weights) = self.generator.with_classes(&self.weights, &rows, seed)?;
        self.section.classes = names.len();
        let (kept, all) = (rows.iter().flatten().count(), names.len());
        match known.as_slice() {
            [] => output::note(format_args!(
                "note: no names of the weights' classes were kept, so all {all} begin anew"
            )),
            _ => output::note(format_args!(
                "note: {kept} of {all} classes keep what the weights know of them by name, the others \
                 begin anew"
            )),
        }
        self.classes = Some(names.to_vec());
        Ok(())
    }

    /// Its weights on the backend.
    pub(crate) fn params<B: Compute>(&self, backend: &B) -> Result<B::Params, B::Error> {
        let mut params = backend.params(self.weights.len())?;
        backend.upload_params(&self.weights, &mut params, 0)?;
        Ok(params)
    }

    /// Its weights on the backend, and no longer here: those of gigabytes are held once.
    pub(crate) fn hand_over<B: Compute>(&mut self, backend: &B) -> Result<B::Params, B::Error> {
        let params = self.params(backend)?;
        self.weights = Vec::new();
        Ok(params)
    }

    /// The configuration of its run, where it came from one.
    pub(crate) fn run_config(&self) -> anyhow::Result<Option<Config>> {
        Ok(self.run.as_deref().map(config_of).transpose()?.flatten())
    }

    /// Where the tokenizer named lies, or the one its run keeps.
    pub(crate) fn tokenizer_path(&self, named: Option<&Path>) -> anyhow::Result<PathBuf> {
        Ok(match (named, &self.run) {
            (Some(path), _) => path.to_owned(),
            (None, Some(run)) => run.join(RUN_TOKENIZER),
            (None, None) => anyhow::bail!(
                "the generator is a file of its own, so its tokenizer is not known; name it with \
                 --tokenizer"
            ),
        })
    }

    /// The tokenizer named, or the one its run keeps.
    pub(crate) fn tokenizer<B: Compute>(
        &self,
        backend: &B,
        named: Option<&Path>,
    ) -> anyhow::Result<LoadedTokenizer<B>> {
        let path = self.tokenizer_path(named)?;
        let tokenizer = LoadedTokenizer::open(backend, &path).map_err(|error| match named {
            None => error.context("the run's tokenizer cannot be used; name one with --tokenizer"),
            Some(_) => error,
        })?;
        tokenizer.fits(&self.section)?;
        let own = self.run.as_ref().map(|run| run.join(RUN_TOKENIZER)).filter(|own| own.is_file());
        // One that cannot be read is no reason against the one that is named.
        let other = |own: &PathBuf| {
            let layout = tokenizer.tokenizer.layout();
            checkpoint::load_weights(own, Kind::Tokenizer, layout)
                .is_ok_and(|weights| weights.flat != tokenizer.weights)
        };
        if let Some(own) = own.filter(|own| named.is_some() && other(own)) {
            output::note(format_args!(
                "warning: {} is not the tokenizer that the generator was trained with, which is {}",
                path.display(),
                own.display()
            ));
        }
        Ok(tokenizer)
    }
}

/// The configuration of a run, where it has one.
pub(crate) fn config_of(run: &Path) -> anyhow::Result<Option<Config>> {
    let path = run.join("config.toml");
    Ok(path.is_file().then(|| Config::load(&path)).transpose()?)
}

fn header_of(file: &Path, kind: Kind) -> anyhow::Result<checkpoint::Header> {
    let header = checkpoint::read_header(file)?;
    let header = header.with_context(|| {
        format!(
            "{}: holds tensors but not the configuration of their {kind}; `sar convert` makes a file \
             that does of a published {kind}'s weights",
            file.display()
        )
    })?;
    if header.kind != kind {
        return Err(CheckpointError::WrongKind {
            path: file.to_owned(),
            expected: kind,
            found: header.kind,
        }
        .into());
    }
    Ok(header)
}

/// A path that a record keeps: it holds from whatever folder it is read.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_to_two_classes() {
        let named = |names: &[&str], known: &[&str]| {
            let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
            let mut names = own(names);
            name_gaps(&mut names, &own(known));
            names
        };
        assert_eq!(named(&["a", "1", "2"], &["x", "b", "c"]), ["a", "b", "c"]);
        // `a` is label 0 to these images, and stays so alone.
        assert_eq!(named(&["a", "1", "2"], &["b", "a", "c", "d"]), ["a", "1", "c"]);
    }
}
