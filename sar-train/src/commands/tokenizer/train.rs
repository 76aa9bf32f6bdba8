//! `sar tokenizer train`.

use super::check_side;
use super::run::TokenizerWork;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, RunArgs, TokenizerTrainArgs, check_tokenizer_train};
use crate::commands::advice::{few_held_out, much_held_out, small};
use crate::commands::models::open_tokenizer;
use crate::commands::next;
use crate::commands::ranks::{self, Steps};
use crate::commands::resuming::{
    NOTHING_TO_RESUME, compare_computing, longer, not_begun, run_data, with_command,
};
use crate::commands::room::tokenizer_fits;
use crate::config::Config;
use crate::data::{self, Data};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::ranks::Meeting;
use crate::run::{Interrupt, RUN_TOKENIZER, RunFolder};

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
    let listening = ranks::listening(&args.ranks, global)?;
    let fresh = !args.run.goes_on()?;
    let Begun { folder, config, data, start, interrupt, meeting } = match fresh {
        true => Begun::new(backend, args, listening, global)?,
        false => Begun::again(args, listening, global)?,
    };
    let trained = || -> anyhow::Result<()> {
        compare_computing(&folder, &args.ranks.computed(global))?;
        let work =
            TokenizerWork { backend, folder: &folder, config: &config, data: &data, meeting };
        work.train(start.as_deref(), &interrupt, global.quiet).map(drop)
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
    }
    for note in
        [few_held_out(&data), much_held_out(&data, config.data.val_fraction)].iter().flatten()
    {
        eprintln!("note: {note}");
    }
    if let Err(error) = trained() {
        let flags = args.ranks.typed();
        let error = with_command(error, "tokenizer train", &folder, &flags, global);
        if !fresh {
            return Err(not_begun(error));
        }
        // Without a checkpoint there is nothing to go on with, and the next try finds the place free.
        folder.discard();
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
    interrupt: Interrupt,
    /// Where other ranks come to share its steps, if there are any.
    meeting: Option<Meeting>,
}

impl Begun {
    /// Opens a run that goes on.
    fn again(
        args: &TokenizerTrainArgs,
        listening: Option<Meeting>,
        global: &GlobalArgs,
    ) -> anyhow::Result<Self> {
        let (folder, had) = RunFolder::open_for_resume(&args.run.out)?;
        let kept = folder.began_with()?;
        let began = kept.as_ref().unwrap_or(&had);
        let config = args.run.continued((began, &had), &FREE, |config, had| {
            // Sized by the data, whatever a file says.
            let (g, had) = (&mut config.generator, &had.generator);
            (g.vocab, g.channels, g.classes) = (had.vocab, had.channels, had.classes);
        })?;
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
        let steps = Steps::from(&config.tokenizer_train);
        steps.can_go_on(&args.ranks)?;
        let data = run_data(&config, Some(folder.path()))?;
        let (now, before) = (config.tokenizer_train.steps, began.tokenizer_train.steps);
        longer(&folder, "tokenizer_train.steps", now, before)?;
        tokenizer_fits(&config, data.train.side(), args.ranks.here(), global)?;
        let interrupt = Interrupt::listen()?;
        let meeting = ranks::meeting(listening, &args.ranks, steps, global)?;
        if config != had || kept.as_ref() != Some(&config) {
            // Only once nothing stands in the way of the run.
            folder.reconfigure(&config)?;
        }
        Ok(Self { folder, config, data, start: None, interrupt, meeting })
    }

    /// Makes a new run.
    fn new<B: Compute>(
        backend: &B,
        args: &TokenizerTrainArgs,
        listening: Option<Meeting>,
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
        let steps = Steps::from(&config.tokenizer_train);
        steps.can_begin(&args.ranks)?;
        let data = data::open(&config.data)?;
        check_side(&Tokenizer::new(&config.tokenizer)?, &data)?;
        // As `sar train` would size a generator, to which the file may be given.
        let (t, g) = (&config.tokenizer, &mut config.generator);
        (g.vocab, g.channels, g.classes) = (t.vocab, t.latent_channels, data.classes.len());
        tokenizer_fits(&config, data.train.side(), args.ranks.here(), global)?;
        // Before other processes are started, which are to end with this one.
        let interrupt = Interrupt::listen()?;
        let meeting = ranks::meeting(listening, &args.ranks, steps, global)?;
        let folder = RunFolder::create(&args.run.out, &config)?;
        Ok(Self { folder, config, data, start, interrupt, meeting })
    }
}

/// Notes where the schedule ends before these images' latents do, and which of its grids these images do not have: the
/// tokenizer is not measured on them.
fn note_left_out(config: &Config, data: &Data) -> anyhow::Result<()> {
    let (side, factor) =
        (data.train.side(), Tokenizer::new(&config.tokenizer)?.downsample_factor());
    let (full, scales) = (side / factor, config.generator.schedule);
    if let Some(note) = small(side, factor, &scales) {
        eprintln!("note: {note}");
    }
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
