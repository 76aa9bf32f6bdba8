//! Models from files, as the commands are told of them: what there is to say of how they were found is said.

use super::output;
use crate::backend::Compute;
use crate::checkpoint::{Kind, load_weights};
use crate::cli::{BackendName, GlobalArgs};
use crate::config::{Config, GeneratorSection};
use crate::model::generator::{GeneratorShape, parameters};
use crate::run::memory;
use crate::train::MemoryPlan;
use crate::trained::{TrainedError, TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// The generator of a run folder, a checkpoint or a file; `ema` takes the running average.
pub(crate) fn open_generator(path: &Path, ema: bool) -> Result<TrainedGenerator, TrainedError> {
    let generator = TrainedGenerator::open(path, ema)?;
    warn_all(&generator.warnings);
    Ok(generator)
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

/// Where the tokenizer named by --tokenizer lies, or the one that the generator's run keeps.
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

/// The tokenizer named by --tokenizer, or the one that the generator's run keeps.
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
    let own = generator.tokenizer_file().ok().filter(|own| own.is_file());
    // One that cannot be read is no reason against the one that is named.
    let other = |own: &PathBuf| {
        let layout = tokenizer.tokenizer.layout();
        load_weights(own, Kind::Tokenizer, layout)
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

/// Fails where this machine could not even hold a generator's weights.
pub(crate) fn affordable(section: &GeneratorSection) -> anyhow::Result<()> {
    let parameters = parameters(&GeneratorShape::from(section));
    let (bytes, room) = (parameters.saturating_mul(4), memory::total().unwrap_or(u64::MAX));
    anyhow::ensure!(
        bytes <= room,
        "a generator of {parameters} parameters takes {} for its weights alone, and {} {}; lower generator.depth \
         or generator.width",
        memory::text(bytes),
        holder(),
        memory::text(room)
    );
    Ok(())
}

/// Fails where a run cannot fit into the memory that there is, which the system would end without a word; warns where
/// it needs more than is free.
pub(crate) fn fits_in_memory(config: &Config, global: &GlobalArgs) -> anyhow::Result<()> {
    affordable(&config.generator)?;
    let (Some(total), Some(available)) = (memory::total(), memory::available()) else {
        return Ok(());
    };
    if global.backend != BackendName::Cpu {
        // A device says itself when it is full, and before anything is lost.
        return Ok(());
    }
    let plan = MemoryPlan::of(config, 4, 0).saved_from_here(config);
    let needed = plan.total();
    let told =
        |room| format!("training takes about {}, and {} {room}", memory::text(needed), holder());
    const LESS: &str = "a smaller train.batch with a larger train.accumulate takes less for the same step, train.recompute=blocks less for its activations; `sar plan --config` shows what takes what";
    anyhow::ensure!(
        needed as f64 <= NEARLY * total as f64,
        "{}; {LESS}",
        told(memory::text(total))
    );
    if needed > available {
        let free = told(format!("{} free of {}", memory::text(available), memory::text(total)));
        output::note(format_args!("warning: {free}; {LESS}"));
    }
    Ok(())
}

/// How far an estimate may lie over what there is before it is believed: `sar plan` is held to a tenth.
const NEARLY: f64 = 1.1;

/// Whose memory it is.
fn holder() -> &'static str {
    match memory::limit() {
        Some(_) => "this job or container may have",
        None => "this machine has",
    }
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}
