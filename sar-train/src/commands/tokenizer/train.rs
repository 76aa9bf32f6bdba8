//! `sar tokenizer train`, and the tokenizer of `sar demo`.

use super::{check_side, held_out};
use crate::backend::Compute;
use crate::checkpoint::{Checkpoints, Kind};
use crate::cli::{GlobalArgs, RunArgs, TokenizerTrainArgs, check_tokenizer_train};
use crate::commands::advice::few_held_out;
use crate::commands::models::open_tokenizer;
use crate::commands::next;
use crate::commands::resuming::{
    NOTHING_TO_RESUME, compare_computing, compare_images, from_step, longer, run_data, tell_empty,
    tell_replaced, with_command,
};
use crate::commands::room::tokenizer_fits;
use crate::config::Config;
use crate::data::{self, Data, Dataset};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::run::{Interrupt, Interrupted, RUN_TOKENIZER, RunFolder};
use crate::train::tokenizer::{
    Reconstructor, TokenizerHeldOut, TokenizerProgress, TokenizerQuality, TokenizerSession,
    TokenizerTrainer, keep_quality,
};
use crate::trained::TrainedTokenizer;
use sar_math::ScaleSchedule;

/// Images that a tokenizer is measured on at a time while it trains: their memory comes on top of a step's.
const BATCH_BESIDE: usize = 8;
/// Sections and keys that training a tokenizer uses.
const USED: [&str; 9] = [
    "data",
    "tokenizer",
    "tokenizer_train",
    "generator.schedule",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.save_minutes",
    "train.non_finite_limit",
];
/// Those of them that may change when a run goes on.
const FREE: [&str; 10] = [
    "tokenizer_train.steps",
    "tokenizer_train.eval_every",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.save_minutes",
    "train.non_finite_limit",
    "data.path",
    "data.workers",
    "data.skip_bad_images",
];

pub(super) fn run<B: Compute>(
    backend: &B,
    args: &TokenizerTrainArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    check_tokenizer_train(args, global).map_err(anyhow::Error::msg)?;
    let fresh = !args.run.goes_on()?;
    let Begun { folder, config, data, start } = match fresh {
        true => Begun::new(backend, args, global)?,
        false => Begun::again(args, global)?,
    };
    let trained = || -> anyhow::Result<()> {
        compare_computing(&folder, &global.computed())?;
        let interrupt = Interrupt::listen()?;
        let (start, quiet) = (start.as_deref(), global.quiet);
        train_in(backend, &folder, &config, &data, start, &interrupt, quiet).map(drop)
    };
    note_left_out(&config, &data)?;
    if data.validation.is_empty() {
        eprintln!(
            "warning: no image is held out (data.val_fraction); quality is that of training images"
        );
    }
    if !global.quiet {
        eprintln!("{}", data.summary);
        eprintln!("{}", data.augment.described());
        if let Some(note) = few_held_out(&data) {
            eprintln!("note: {note}");
        }
    }
    if let Err(error) = trained() {
        let error = with_command(error, "tokenizer train", &folder, "", global);
        if fresh {
            // Without a checkpoint there is nothing to go on with, and the next try finds the place free.
            folder.discard();
        }
        return Err(error);
    }
    println!("{}", folder.path().display());
    if !global.quiet {
        eprintln!("next: {}", next::train(&config, folder.path(), global));
    }
    Ok(())
}

/// A run in its folder, before it trains.
struct Begun {
    folder: RunFolder,
    config: Config,
    data: Data,
    /// Weights to start from.
    start: Option<Vec<f32>>,
}

impl Begun {
    /// Opens a run that goes on.
    fn again(args: &TokenizerTrainArgs, global: &GlobalArgs) -> anyhow::Result<Self> {
        let (folder, had) = RunFolder::open_for_resume(&args.run.out)?;
        let config = args.run.continued(&had, &FREE, |_, _| ())?;
        anyhow::ensure!(
            !folder.path().join(RUN_TOKENIZER).exists(),
            "{} is the run of a generator, which goes on with `sar train --resume`",
            folder.path().display()
        );
        anyhow::ensure!(
            folder.checkpoints(config.train.keep)?.latest()?.is_some(),
            "{}: {NOTHING_TO_RESUME}",
            folder.path().display()
        );
        let data = run_data(&config, Some(folder.path()))?;
        let (now, before) = (config.tokenizer_train.steps, had.tokenizer_train.steps);
        longer(&folder, "tokenizer_train.steps", now, before)?;
        tokenizer_fits(&config, data.train.side(), global)?;
        if config != had {
            folder.reconfigure(&config)?;
        }
        Ok(Self { folder, config, data, start: None })
    }

    /// Makes a new run.
    fn new<B: Compute>(
        backend: &B,
        args: &TokenizerTrainArgs,
        global: &GlobalArgs,
    ) -> anyhow::Result<Self> {
        let mut config = args.run.config(Config::default())?;
        args.run.sets_only(&USED, "a tokenizer's training is set in tokenizer_train")?;
        let start = match &args.run.init_from {
            Some(path) => {
                let from = open_tokenizer(backend, path)?;
                adopt(&mut config, from.tokenizer.config(), &args.run)?;
                Some(from.weights)
            }
            None => None,
        };
        // Before the folder is made: a run that cannot start leaves none behind.
        anyhow::ensure!(
            config.tokenizer.residual == 0,
            "a tokenizer whose scales add up (tokenizer.residual={}), as VAR's, is read and not trained here; train \
             one with tokenizer.residual=0, or take VAR's own with `sar convert`",
            config.tokenizer.residual
        );
        let data = data::open(&config.data)?;
        check_side(&Tokenizer::new(&config.tokenizer)?, &data)?;
        tokenizer_fits(&config, data.train.side(), global)?;
        let folder = RunFolder::create(&args.run.out, &config)?;
        Ok(Self { folder, config, data, start })
    }
}

/// Notes which grids of the schedule these images do not have; the tokenizer is not measured on them.
fn note_left_out(config: &Config, data: &Data) -> anyhow::Result<()> {
    let full = data.train.side() / Tokenizer::new(&config.tokenizer)?.downsample_factor();
    let scales = config.generator.schedule;
    let larger = scales.scales().iter().filter(|scale| scale.height.max(scale.width) > full);
    let larger: Vec<String> = larger.map(ToString::to_string).collect();
    if !larger.is_empty() {
        eprintln!(
            "note: generator.schedule has {}, and images of {} px have latents of {full}×{full}: larger grids are \
             left out here, and `sar train` refuses them",
            larger.join(", "),
            data.train.side()
        );
    }
    Ok(())
}

/// Gives a run that starts from weights their shape; fails if its user asked for another.
fn adopt(config: &mut Config, weights: &TokenizerConfig, args: &RunArgs) -> anyhow::Result<()> {
    let (asked, found) =
        (toml::Table::try_from(&config.tokenizer)?, toml::Table::try_from(weights)?);
    for (key, asked) in asked {
        let found = found.get(&key).map(toml::Value::to_string).unwrap_or_default();
        anyhow::ensure!(
            asked.to_string() == found || !args.names("tokenizer", &key),
            "tokenizer.{key} is {asked}, but the weights of --init-from have {found}; leave the key out"
        );
    }
    config.tokenizer = weights.clone();
    Ok(())
}

/// A tokenizer that has been trained in a run folder.
pub(crate) struct Trained<B: Compute> {
    pub loaded: TrainedTokenizer<B>,
    pub quality: TokenizerQuality,
}

/// Trains (or goes on training) the tokenizer of a run folder to its last step, from the weights
/// `start` if there are any, and measures it.
pub(crate) fn train_in<B: Compute>(
    backend: &B,
    folder: &RunFolder,
    config: &Config,
    data: &Data,
    start: Option<&[f32]>,
    interrupt: &Interrupt,
    quiet: bool,
) -> anyhow::Result<Trained<B>> {
    compare_images(folder, data)?;
    tell_empty(data);
    let settings = &config.tokenizer_train;
    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    let side = data.train.side();
    let mut trainer = TokenizerTrainer::new(backend, &tokenizer, settings, (side, side))?;
    let resumed = resume(&mut trainer, &folder.checkpoints(config.train.keep)?, &tokenizer)?;
    if resumed && !quiet {
        eprintln!("{}", from_step(trainer.steps()));
    }
    if let Some(weights) = start.filter(|_| !resumed) {
        trainer.start_from(weights)?;
    }
    let done = trainer.steps() * settings.accumulate as u64;
    let mut loader = data.loader(settings.batch, settings.seed, done)?;
    let held = if data.validation.is_empty() { &data.train } else { &data.validation };
    let schedule = &config.generator.schedule;
    let measured = settings.eval_every > 0 && trainer.steps() < settings.steps;
    let while_it_trains = || -> anyhow::Result<_> {
        let batch = BATCH_BESIDE.min(settings.batch);
        let through = Reconstructor::new(backend, &tokenizer, batch, (side, side))?;
        Ok(TokenizerHeldOut::new(through, held, schedule))
    };
    let mut beside = measured.then(while_it_trains).transpose()?;
    let session = TokenizerSession { run: folder, config, interrupt, quiet };
    let trained = session.train(&mut trainer, &mut loader, beside.as_mut());
    drop(beside);
    tell_replaced(data);
    let progress = trained?;
    let (weights, steps) = (trainer.weights()?, trainer.steps());
    // The trainer's memory is freed before that for measuring is allocated.
    drop(trainer);
    let loaded = TrainedTokenizer::new(backend, tokenizer, weights, steps)?;
    let quality = measure(backend, folder, &loaded, held, schedule, interrupt)?;
    let full = quality.scales.last().map_or(f64::NAN, |s| s.psnr);
    progress.finish(&format!(
        "PSNR {full:.2} dB, {:.0} % of the codebook used",
        100.0 * quality.codebook_used
    ));
    Ok(Trained { loaded, quality })
}

/// Measures the quality at the end of a run, and keeps it and a picture in the run's folder.
fn measure<B: Compute>(
    backend: &B,
    folder: &RunFolder,
    of: &TrainedTokenizer<B>,
    held: &Dataset,
    schedule: &ScaleSchedule,
    interrupt: &Interrupt,
) -> anyhow::Result<TokenizerQuality> {
    let step = of.step;
    let mut held_out = held_out(backend, of, held, schedule)?;
    let quality = held_out.quality(&of.params, interrupt)?.ok_or(Interrupted { step })?;
    let mut log = folder.log(step)?;
    // A run that was already finished is measured again, but recorded only once.
    if !log.has(step, "eval")? {
        keep_quality(&mut log, &mut folder.tensorboard(step)?, step, &quality)?;
    }
    folder.write_png("samples/reconstructions.png", &held_out.picture(&of.params)?)?;
    Ok(quality)
}

/// Restores the checkpoint to go on from; returns whether there was one.
fn resume<B: Compute>(
    trainer: &mut TokenizerTrainer<'_, B>,
    checkpoints: &Checkpoints,
    tokenizer: &Tokenizer,
) -> anyhow::Result<bool> {
    let Some(found) = checkpoints.take_up()? else { return Ok(false) };
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    let saved =
        Checkpoints::load::<TokenizerProgress>(&found, Kind::Tokenizer, tokenizer.layout())?;
    let moments = [&saved.first_moment[..], &saved.second_moment[..]];
    trainer.restore(&saved.weights, moments, &saved.state)?;
    Ok(true)
}
