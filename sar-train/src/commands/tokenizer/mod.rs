//! `sar tokenizer train|eval|encode`.

mod encode;
mod eval;
mod run;
mod train;

pub(super) use encode::EncodingInterrupted;
pub(crate) use run::{TokenizerWork, Trained};

use super::resuming::run_data;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, ImagesArgs, TokenizerArgs, TokenizerCommand};
use crate::config::Config;
use crate::data::{self, Data, DataConfig, DataError, Dataset};
use crate::model::tokenizer::Tokenizer;
use crate::train::tokenizer::{Reconstructor, TokenizerHeldOut};
use crate::trained::{TrainedTokenizer, config_of};
use sar_math::ScaleSchedule;
use std::path::Path;

/// Images that go through a tokenizer at a time when it is not trained.
const BATCH: usize = 32;

/// Dispatches the subcommands.
///
/// # Errors
/// A configuration, data or a checkpoint cannot be used.
pub fn run<B: Compute>(
    backend: &B,
    args: &TokenizerArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    match &args.command {
        TokenizerCommand::Train(args) => train::run(backend, args, global),
        TokenizerCommand::Eval(args) => eval::run(backend, args),
        TokenizerCommand::Encode(args) => encode::run(backend, args, global),
    }
}

/// Fails if images are not a whole number of latents wide.
fn check_side(tokenizer: &Tokenizer, data: &Data) -> anyhow::Result<()> {
    let (side, factor) = (data.train.side(), tokenizer.downsample_factor());
    anyhow::ensure!(
        side.is_multiple_of(factor),
        "images are {side} px, which the tokenizer's factor of {factor} does not divide; set \
         data.image_side to a multiple"
    );
    Ok(())
}

/// Takes images through the tokenizer and back, `[n, 3, s, s]`; where scales add up, by the scales
/// of a schedule that ends in the images' full grid.
pub(crate) fn reconstruct<B: Compute>(
    backend: &B,
    of: &TrainedTokenizer<B>,
    schedule: &ScaleSchedule,
    images: &[f32],
    side: usize,
) -> Result<Vec<f32>, B::Error> {
    let grid = side / of.tokenizer.downsample_factor();
    let through = Reconstructor::new(backend, &of.tokenizer, BATCH, (side, side))?;
    through.adding(&of.quantizer, schedule)?.reconstruct(&of.params, images, (grid, grid))
}

/// Prepares some of the images to measure a tokenizer on, at every scale of the generator's schedule.
fn held_out<'a, B: Compute>(
    backend: &'a B,
    of: &'a TrainedTokenizer<B>,
    images: &'a Dataset,
    schedule: &ScaleSchedule,
) -> anyhow::Result<TokenizerHeldOut<'a, B>> {
    let side = images.side();
    let through = Reconstructor::new(backend, &of.tokenizer, BATCH, (side, side))?;
    Ok(TokenizerHeldOut::new(through.adding(&of.quantizer, schedule)?, images, schedule))
}

/// Fails if scales add up and do not end in the images' full grid.
fn check_grids<B: Compute>(
    of: &TrainedTokenizer<B>,
    schedule: &ScaleSchedule,
    side: usize,
) -> anyhow::Result<()> {
    let (full, last) = (side / of.tokenizer.downsample_factor(), schedule.last());
    anyhow::ensure!(
        !of.quantizer.adds_up() || (last.height, last.width) == (full, full),
        "the scales of this tokenizer add up to {full}×{full} latents for images of {side} px, and the schedule \
         {schedule} ends in a grid of {last}; take images of another size with --image-side (the released tokenizer's \
         are of 256 px), or name a schedule that ends in {full} with --schedule"
    );
    Ok(())
}

/// Opens images that need no classes: class folders with their classes, and loose images.
fn open_any(config: &mut DataConfig) -> Result<Data, DataError> {
    (config.allow_one_class, config.unlabelled) = (true, false);
    match data::open(config) {
        // Not if only the validation images are loose and the others have classes; but a folder
        // that was named is all there is, whatever it is called.
        Err(DataError::NoClasses { path, .. })
            if !data::is_validation(&path) || config.path.as_ref() == Some(&path) =>
        {
            config.unlabelled = true;
            data::open(config)
        }
        other => other,
    }
}

/// What a tokenizer that was trained elsewhere is used with.
struct Use {
    /// That of its run, or the defaults.
    config: Config,
    data: Data,
}

impl Use {
    /// Opens the images that the flags name, or those of the tokenizer's run; `scheduled` says that
    /// grids are named too.
    fn open(
        path: &Path,
        tokenizer: &Tokenizer,
        images: &ImagesArgs,
        set: &[String],
        scheduled: bool,
    ) -> anyhow::Result<Self> {
        let other = set.iter().find(|setting| !setting.trim_start().starts_with("data."));
        if let Some(other) = other {
            anyhow::bail!("--set {other}: it would change nothing here; only keys of [data] do");
        }
        let names = |key: &str| set.iter().any(|s| s.split('=').next().map(str::trim) == Some(key));
        let named_twice = images.data.is_some() && (names("data.path") || names("data.builtin"));
        anyhow::ensure!(!named_twice, "--data names the images already; leave --set of them out");
        let run = crate::checkpoint::locate(path, false)?.run;
        let mut config = run.as_deref().map(config_of).transpose()?.flatten().unwrap_or_default();
        config.tokenizer = tokenizer.config().clone();
        if let Some(source) = &images.data {
            config.data = config.data.with_source(source);
        }
        config = config.set(set)?;
        config.data.skip_bad_images |= images.skip_bad_images;
        config.data.image_side = images.image_side.unwrap_or(config.data.image_side);
        let data = match &images.data {
            Some(_) if names("data.unlabelled") => {
                config.data.allow_one_class = true;
                data::open(&config.data)?
            }
            Some(_) => open_any(&mut config.data)?,
            None => run_data(&config, run.as_deref())?,
        };
        check_side(tokenizer, &data)?;
        let published = ScaleSchedule::published_256();
        // The grids of the released models at 256 px, which their files do not say.
        if run.is_none()
            && tokenizer.config().residual > 0
            && tokenizer.latent_side(data.train.side()) == published.last().height
            && !scheduled
        {
            eprintln!(
                "note: the file does not say the grids that its scales add up on; {published} is taken, that of the \
                 released models (--schedule names others)"
            );
            config.generator.schedule = published;
        }
        if !data.skipped.is_empty() {
            eprintln!("{} bad images skipped", data.skipped.len());
        }
        Ok(Self { config, data })
    }
}
