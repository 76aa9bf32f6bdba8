//! `sar train` and `sar refine`: a generator on the images of a configuration.

use super::classes::{adopt_classes, compare_with_generator, name_classes};
use super::generator_run::{Start, Work, check};
use super::models::{open_generator, open_tokenizer, tokenizer_of};
use super::resuming::{
    NOTHING_TO_RESUME, compare_classes, compare_computing, longer, run_data, with_command,
};
use super::room::fits_in_memory;
use super::starting::{
    adopt, compare_held_out, compare_with_tokenizer, fixed, inherit, note_other_settings,
    note_rate, note_replaced,
};
use super::{latents, output};
use crate::backend::Compute;
use crate::cli::{
    GlobalArgs, RefineArgs, RunArgs, SarArgs, TrainArgs, check_refine, check_train, in_shell,
};
use crate::config::{Config, Decode, Mode, SarConfig};
use crate::data::{self, Data, DataError};
use crate::files::absolute;
use crate::run::{Interrupt, RUN_TOKENIZER, RunFolder};
use crate::train::TrainError;
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use clap::ValueEnum as _;
use std::path::Path;

/// Sections that training a generator uses.
const USED: [&str; 6] = ["data", "generator", "train", "sar", "sample", "eval"];
/// Those of their keys that may change when a run goes on: how long and how often, and where the images are.
const FREE: [&str; 14] = [
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.save_every",
    "train.save_minutes",
    "train.eval_every",
    "train.keep",
    "train.non_finite_limit",
    "train.latents",
    "sample",
    "eval",
    "data.path",
    "data.workers",
    "data.skip_bad_images",
];
/// Why settings of other sections change nothing.
const TRAINED_ALREADY: &str = "the tokenizer is used as it was trained";

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Train,
    Refine,
}

impl Task {
    /// The command's name.
    fn command(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Refine => "refine",
        }
    }

    /// Label of its progress bar.
    fn label(self) -> &'static str {
        match self {
            Self::Train => "training",
            Self::Refine => "refining",
        }
    }
}

/// `sar train`.
///
/// # Errors
/// A configuration, data or a checkpoint cannot be used; see [`TrainError`].
pub fn run<B: Compute>(backend: &B, args: &TrainArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    check_train(args, global).map_err(anyhow::Error::msg)?;
    if args.run.goes_on()? {
        return resume(backend, &args.run, global, Task::Train, |config, had| {
            // The run keeps its own tokenizer, whatever shape a file gives for a new one.
            config.tokenizer = had.tokenizer.clone();
            on_latents(config, args.latents.as_deref());
            config.train.mode = args.mode.unwrap_or(config.train.mode);
        });
    }
    let mut config = args.run.config(Config::default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    on_latents(&mut config, args.latents.as_deref());
    config.train.mode = args.mode.unwrap_or(config.train.mode);
    used_by(config.train.mode, &args.run)?;
    let mut from =
        args.run.init_from.as_deref().map(|path| open_generator(path, false)).transpose()?;
    let tokenizer = match (&from, &args.tokenizer) {
        (Some(from), named) => tokenizer_of(from, backend, named.as_deref())?,
        (None, Some(path)) => open_named(backend, path, args.run.data.as_deref())?,
        (None, None) => anyhow::bail!("no tokenizer given; name it with --tokenizer"),
    };
    let (named, side) = (args.tokenizer.as_deref(), tokenizer.side);
    inherit(&mut config, from.as_ref(), named, side, &args.run)?;
    let mut data = open_data(&config, &args.run, Task::Train).map_err(|error| {
        let named = args.run.config.is_some() || config.data.path.is_some();
        match from.as_ref().and_then(|from| from.run.as_deref()).filter(|_| !named) {
            // The run's settings include its flips and crops, which other arms of the same run have, too.
            Some(run) => error.context(format!(
                "no images; --config {} takes them and every other setting from the run of these weights",
                run.join("config.toml").display()
            )),
            None => error,
        }
    })?;
    compare_with_tokenizer(named, &config, &data)?;
    if let Some(from) = &mut from {
        compare_held_out(from, &config, &data)?;
        note_other_settings(from, &config, &args.run)?;
        match args.new_classes {
            true => adopt_classes(from, &data.classes, config.train.seed)?,
            false => name_classes(from, &mut data),
        }
        adopt(&mut config, from, &args.run)?;
    }
    begin(backend, config, &args.run, global, (&tokenizer, &data), from, Task::Train)
}

/// `sar refine`: SAR on a trained generator.
///
/// # Errors
/// As [`run`].
pub fn refine<B: Compute>(
    backend: &B,
    args: &RefineArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    check_refine(args, global).map_err(anyhow::Error::msg)?;
    let mut run = args.run.clone();
    if let Some(preset) = args.sar.preset.and_then(|p| p.to_possible_value()) {
        // The preset replaces the file's switches and --set's preset, but not other keys of --set:
        // presets come first.
        run.set.push(format!("sar.preset={}", preset.get_name()));
    }
    if args.run.goes_on()? {
        let refined = RunFolder::open_for_resume(&args.run.out)?.1.train.mode;
        anyhow::ensure!(
            refined == Mode::Ssr,
            "{} trains by {refined}, and goes on with `sar train --resume`",
            args.run.out.display()
        );
        return resume(backend, &run, global, Task::Refine, |config, had| {
            // The run keeps its own tokenizer, whatever shape a file gives for a new one.
            config.tokenizer = had.tokenizer.clone();
            on_latents(config, args.latents.as_deref());
            config.train.mode = Mode::Ssr;
            switch(&mut config.sar, &args.sar);
        });
    }
    let path = args
        .run
        .init_from
        .as_deref()
        .context("no generator given; name the trained one with --init-from")?;
    let from = open_generator(path, false)?;
    let tokenizer = tokenizer_of(&from, backend, args.tokenizer.as_deref())?;
    let mut config = run.config(from.run_config()?.unwrap_or_default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    if args.sar.preset.is_some() {
        note_replaced(&config.sar, &run)?;
    }
    on_latents(&mut config, args.latents.as_deref());
    // The file may be that of the run to be refined, which says how that run was trained.
    anyhow::ensure!(
        config.train.mode == Mode::Ssr || !args.run.sets("train", "mode"),
        "train.mode is {}, but `sar refine` trains by ssr; leave the key out, or use `sar train \
         --init-from … --mode {}`",
        config.train.mode,
        config.train.mode
    );
    adopt(&mut config, &from, &run)?;
    config.train.mode = Mode::Ssr;
    switch(&mut config.sar, &args.sar);
    config.sar.validate()?;
    anyhow::ensure!(
        config.sar.decode == Decode::Sample || (args.sar.top_k, args.sar.top_p) == (None, None),
        "--top-k and --top-p filter draws, and sar.decode is argmax, which takes none: leave them out, or add \
         --decode sample"
    );
    let mut data = open_data(&config, &run, Task::Refine)?;
    compare_held_out(&from, &config, &data)?;
    compare_with_tokenizer(args.tokenizer.as_deref(), &config, &data)?;
    note_rate(&from, &config)?;
    name_classes(&from, &mut data);
    begin(backend, config, &args.run, global, (&tokenizer, &data), Some(from), Task::Refine)
}

/// Opens the tokenizer at a path; if nothing is there, the error says how to train one on the images of --data.
fn open_named<B: Compute>(
    backend: &B,
    path: &Path,
    images: Option<&str>,
) -> anyhow::Result<TrainedTokenizer<B>> {
    open_tokenizer(backend, path).map_err(|error| {
        let source = images.map_or("…".to_owned(), |source| in_shell(source.as_ref()));
        match path.exists() {
            true => error.into(),
            false => anyhow::Error::from(error).context(format!(
                "no tokenizer there; `sar tokenizer train --data {source} --out {}` trains one",
                in_shell(path)
            )),
        }
    })
}

/// Makes a run train on the latents that a flag names.
fn on_latents(config: &mut Config, flag: Option<&Path>) {
    if let Some(path) = flag {
        config.train.latents = Some(absolute(path));
    }
}

/// Fails if `--set` names a switch of SAR that the training mode does not use.
fn used_by(mode: Mode, args: &RunArgs) -> anyhow::Result<()> {
    let mut used: Vec<&str> = USED.into_iter().filter(|section| *section != "sar").collect();
    let what = match mode {
        Mode::Ssr => return Ok(()),
        Mode::Teacher => "it is for --mode ssr",
        Mode::Student | Mode::Hybrid { .. } | Mode::Interleaved => {
            used.extend(["sar.top_k", "sar.top_p"]);
            "of [sar] it takes the filter of its own samples, sar.top_k and sar.top_p"
        }
    };
    args.sets_only(&used, &format!("this run's mode is {mode}, and {what}"))
}

/// Opens the images of a configuration.
fn open_data(config: &Config, args: &RunArgs, task: Task) -> anyhow::Result<Data> {
    data::open(&config.data).map_err(|error| match &error {
        DataError::Missing { .. }
            if task == Task::Refine && args.data.is_none() && !args.names("data", "path") =>
        {
            let moved = "the images of the generator's run have moved: name them with --data";
            anyhow::Error::from(error).context(moved)
        }
        _ => error.into(),
    })
}

/// Applies the flags, which override the preset, the file and --set.
fn switch(sar: &mut SarConfig, args: &SarArgs) {
    sar.extent = args.extent.unwrap_or(sar.extent);
    sar.target = args.target.unwrap_or(sar.target);
    sar.decode = args.decode.unwrap_or(sar.decode);
    sar.top_k = args.top_k.unwrap_or(sar.top_k);
    sar.top_p = args.top_p.unwrap_or(sar.top_p);
    sar.guidance = args.guidance.unwrap_or(sar.guidance);
    sar.sigma = args.sigma.unwrap_or(sar.sigma);
}

fn begin<B: Compute>(
    backend: &B,
    mut config: Config,
    args: &RunArgs,
    global: &GlobalArgs,
    (tokenizer, data): (&TrainedTokenizer<B>, &Data),
    from: Option<TrainedGenerator>,
    task: Task,
) -> anyhow::Result<()> {
    if let Some(from) = &from {
        compare_with_generator(from, data);
    } else {
        let (t, g) = (tokenizer.tokenizer.config(), &mut config.generator);
        let classes = data.classes.len();
        fixed(args, "vocab", g.vocab, t.vocab, "the tokenizer has")?;
        fixed(args, "channels", g.channels, t.latent_channels, "the tokenizer has")?;
        anyhow::ensure!(
            g.classes <= classes || !args.names("generator", "classes"),
            "generator.classes is {}, but the data have {classes}; leave the key out, or say by \
             data.num_classes={} that there are classes without images",
            g.classes,
            g.classes
        );
        fixed(args, "classes", g.classes, classes, "the data have")?;
        (g.vocab, g.channels, g.classes) = (t.vocab, t.latent_channels, classes);
    }
    if let Some(side) = tokenizer.side.filter(|side| *side != data.train.side()) {
        eprintln!(
            "note: the tokenizer was trained on images of {side} px, and here they are {} px \
             (data.image_side)",
            data.train.side()
        );
    }
    // The resolved configuration says what is used.
    config.tokenizer = tokenizer.tokenizer.config().clone();
    config.validate()?;
    // Before the folder is made: a run that cannot start leaves none behind.
    fits_in_memory(&config, global)?;
    check(&config, data, tokenizer)?;
    let latents = latents::of_run(backend, &config, data, tokenizer)?;
    let folder = RunFolder::create(&args.out, &config)?;
    let origin = from.as_ref().map(TrainedGenerator::origin).transpose()?;
    let start = from.map_or(Start::New, |from| Start::From(from.weights));
    let latents = latents.as_ref();
    let work = Work { backend, config: &config, data, tokenizer, latents, folder: &folder };
    let kept = origin.map_or(Ok(()), |origin| folder.keep_origin(&origin));
    let trained = kept.map_err(Into::into).and_then(|()| started(&work, start, task, global));
    if let Err(error) = trained {
        // Without a checkpoint there is nothing to go on with, and the next try finds the place free.
        folder.discard();
        return Err(error);
    }
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}

/// Trains a run that has its folder.
fn started<B: Compute>(
    work: &Work<'_, B>,
    start: Start,
    task: Task,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    compare_computing(work.folder, &global.computed())?;
    let interrupt = Interrupt::listen()?;
    let trained = work.train(start, task.label(), &interrupt, global.quiet);
    trained.map(drop).map_err(|error| with_command(error, task.command(), work.folder, global))
}

/// Goes on with the run in --out; `rest` applies the command's own flags, which --requeue may have.
fn resume<B: Compute>(
    backend: &B,
    args: &RunArgs,
    global: &GlobalArgs,
    task: Task,
    rest: impl FnOnce(&mut Config, &Config),
) -> anyhow::Result<()> {
    let (folder, had) = RunFolder::open_for_resume(&args.out)?;
    let config = args.continued(&had, &FREE, rest)?;
    let kept = folder.path().join(RUN_TOKENIZER);
    if !kept.is_file() {
        // The tokenizer is written before the first checkpoint.
        let path = folder.path().display();
        match folder.checkpoints(config.train.keep)?.latest()? {
            None => anyhow::bail!("{path}: {NOTHING_TO_RESUME}"),
            Some(_) => anyhow::bail!(
                "{path} has no {RUN_TOKENIZER}, which a generator's run keeps: put its tokenizer's \
                 model.safetensors there; a tokenizer's run goes on with `sar tokenizer train --resume`"
            ),
        }
    }
    let data = run_data(&config, Some(folder.path()))?;
    let tokenizer = open_tokenizer(backend, &kept)?;
    compare_classes(&folder, &data)?;
    check(&config, &data, &tokenizer)?;
    fits_in_memory(&config, global)?;
    let latents = latents::of_run(backend, &config, &data, &tokenizer)?;
    longer(&folder, "train.steps", config.train.steps, had.train.steps)?;
    if config != had {
        // Only once nothing stands in the way of the run.
        folder.reconfigure(&config)?;
    }
    compare_computing(&folder, &global.computed())?;
    let interrupt = Interrupt::listen()?;
    let work = Work {
        backend,
        config: &config,
        data: &data,
        tokenizer: &tokenizer,
        latents: latents.as_ref(),
        folder: &folder,
    };
    work.train(Start::Resume, "resuming", &interrupt, global.quiet).map_err(|error| match error
        .downcast_ref()
    {
        Some(TrainError::NotBegun) => {
            error.context("its checkpoints are as they were; continue with --resume")
        }
        _ => with_command(error, task.command(), &folder, global),
    })?;
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}
