//! Models opened from files for the commands, with warnings about how they were found.

use crate::backend::Compute;
use crate::checkpoint::{Kind, load_weights};
use crate::hash::sha256_of;
use crate::run::{Origin, Recorded, recorded};
use crate::trained::{TrainedError, TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The generator of a run folder, a checkpoint or a file; `ema` takes the running average.
pub(crate) fn open_generator(path: &Path, ema: bool) -> Result<TrainedGenerator, TrainedError> {
    let generator = TrainedGenerator::open(path, ema)?;
    warn_all(&generator.warnings);
    Ok(generator)
}

/// As [`open_generator`], for a generator that is to draw images: reports the step of its weights,
/// and warns if nothing was learnt.
pub(crate) fn open_to_draw(
    path: &Path,
    ema: bool,
    quiet: bool,
) -> Result<TrainedGenerator, TrainedError> {
    let generator = open_generator(path, ema)?;
    if !warn_untrained(&generator) && generator.run.is_some() && !quiet {
        let average = if generator.ema { " (running average)" } else { "" };
        eprintln!("{}: weights of step {}{average}", path.display(), generator.step);
    }
    Ok(generator)
}

/// Warns of weights that their run has not trained; returns whether they are such. A file from elsewhere does not say
/// how long its weights were trained.
pub(crate) fn warn_untrained(generator: &TrainedGenerator) -> bool {
    let Some(run) = generator.run.as_ref().filter(|_| generator.step == 0) else { return false };
    let what = match Origin::of(run) {
        Some(_) => "those that its run started from",
        None => "untrained",
    };
    eprintln!(
        "warning: the weights are of step 0, {what}; a run that still trains has later ones once it saves \
         (train.save_every, train.save_minutes)"
    );
    true
}

/// The tokenizer of a run folder, a checkpoint or a file.
pub(crate) fn open_tokenizer<B: Compute>(
    backend: &B,
    path: &Path,
) -> Result<TrainedTokenizer<B>, TrainedError> {
    let tokenizer = TrainedTokenizer::open(backend, path)?;
    warn_all(&tokenizer.warnings);
    Ok(tokenizer)
}

/// Returns the path named by --tokenizer, or that of the tokenizer that the generator's run keeps.
pub(crate) fn tokenizer_path(
    generator: &TrainedGenerator,
    named: Option<&Path>,
) -> anyhow::Result<PathBuf> {
    match named {
        Some(path) => Ok(path.to_owned()),
        None => generator
            .tokenizer_file()
            .map_err(|error| anyhow::anyhow!("{error}; name it with --tokenizer")),
    }
}

/// Opens the tokenizer named by --tokenizer, or the one that the generator's run keeps.
pub(crate) fn tokenizer_of<B: Compute>(
    generator: &TrainedGenerator,
    backend: &B,
    named: Option<&Path>,
) -> anyhow::Result<TrainedTokenizer<B>> {
    let path = tokenizer_path(generator, named)?;
    let tokenizer = open_tokenizer(backend, &path);
    let tokenizer = match named {
        None => tokenizer.context("the run's tokenizer cannot be used; name one with --tokenizer"),
        Some(_) => tokenizer.map_err(Into::into),
    }?;
    tokenizer.fits(&generator.section)?;
    compare_with_own(generator, &path, &tokenizer, named.is_some())?;
    Ok(tokenizer)
}

/// Warns if a tokenizer is not the one that a generator was trained with: by the checksum that its run recorded or,
/// without one, by the file that the run keeps.
fn compare_with_own<B: Compute>(
    generator: &TrainedGenerator,
    path: &Path,
    tokenizer: &TrainedTokenizer<B>,
    named: bool,
) -> anyhow::Result<()> {
    let Some(run) = &generator.run else { return Ok(()) };
    let own = generator.tokenizer_file().ok().filter(|own| own.is_file());
    // If the run's own tokenizer cannot be read, that is no reason against the one that is named.
    let sum_of = |own: &PathBuf| {
        let weights = load_weights(own, Kind::Tokenizer, tokenizer.tokenizer.layout()).ok()?;
        Some(sha256_of(&weights.flat))
    };
    let recorded = recorded(run, Recorded::Tokenizer)?;
    let kept = || own.as_ref().filter(|_| named).and_then(sum_of);
    let Some(trained_with) = recorded.or_else(kept) else { return Ok(()) };
    if trained_with == sha256_of(&tokenizer.weights) {
        return Ok(());
    }
    let why = match &own {
        _ if !named => ": it has been replaced since".to_owned(),
        Some(own) if sum_of(own).as_ref() == Some(&trained_with) => {
            format!(", which is {}", own.display())
        }
        _ => String::new(),
    };
    eprintln!(
        "warning: {} is not the tokenizer that the generator was trained with{why}",
        path.display()
    );
    Ok(())
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}
