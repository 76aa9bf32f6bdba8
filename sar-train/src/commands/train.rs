//! `sar train` and `sar refine`: a generator on the images of a configuration.

use super::generator_run::{NOTHING_TO_RESUME, Start, Work, check, longer};
use super::models::{
    LoadedGenerator, LoadedTokenizer, absolute, affordable, compare_classes, compare_computing,
    compare_with_run, run_data,
};
use super::{latents, output};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, RefineArgs, RunArgs, SarArgs, TrainArgs};
use crate::config::{Config, Decode, GeneratorSection, Mode, Positions, SarConfig};
use crate::data::{self, Data, DataError};
use crate::run::{Interrupt, RUN_TOKENIZER, RunFolder};
use anyhow::Context as _;
use clap::ValueEnum as _;
use std::fmt::Display;
use std::path::Path;

/// Sections that training a generator uses.
const USED: [&str; 6] = ["data", "generator", "train", "sar", "sample", "eval"];
/// Of these, what may change while a run goes on: how long and how often, and where the images are.
const FREE: [&str; 13] = [
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.save_every",
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
/// Why the others change nothing.
const TRAINED_ALREADY: &str = "the tokenizer is used as it was trained";

/// How many times the rate that weights were trained to is worth a word.
const HIGHER: f64 = 3.0;

/// Who has decided a shape.
const WEIGHTS: &str = "the weights of --init-from have";

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Train,
    Refine,
}

impl Task {
    /// What the progress bar calls it.
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
/// A configuration, data or checkpoint that cannot be used; see [`TrainError`](crate::train::TrainError).
pub fn run<B: Compute>(backend: &B, args: &TrainArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    if args.run.resume {
        return resume(backend, &args.run, global);
    }
    let mut config = args.run.config(Config::default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    on_latents(&mut config, args.latents.as_deref());
    config.train.mode = args.mode.unwrap_or(config.train.mode);
    used_by(config.train.mode, &args.run)?;
    let mut from =
        args.run.init_from.as_deref().map(|path| LoadedGenerator::open(path, false)).transpose()?;
    let tokenizer = match (&from, &args.tokenizer) {
        (Some(from), named) => from.tokenizer(backend, named.as_deref())?,
        (None, Some(path)) => LoadedTokenizer::open(backend, path)?,
        (None, None) => anyhow::bail!("no tokenizer given; name it with --tokenizer"),
    };
    let mut data = open_data(&config, &args.run, Task::Train).map_err(|error| {
        let named = args.run.config.is_some() || config.data.path.is_some();
        match from.as_ref().and_then(|from| from.run.as_deref()).filter(|_| !named) {
            // Flips and cuts come with them, which other arms of the same run have too.
            Some(run) => error.context(format!(
                "no images; --config {} takes them and every other setting from the run of these weights",
                run.join("config.toml").display()
            )),
            None => error,
        }
    })?;
    if let Some(from) = &mut from {
        compare_held_out(from, &config, &data)?;
        note_other_settings(from, &config, &args.run)?;
        match args.new_classes {
            true => from.adopt_classes(&data.classes, config.train.seed)?,
            false => from.name_classes(&mut data),
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
    if args.run.resume {
        let refined = RunFolder::open_for_resume(&args.run.out)?.1.train.mode;
        anyhow::ensure!(
            refined == Mode::Ssr,
            "{} trains by {refined}, and goes on with `sar train --resume`",
            args.run.out.display()
        );
        return resume(backend, &args.run, global);
    }
    let path = args
        .run
        .init_from
        .as_deref()
        .context("no generator given; name the trained one with --init-from")?;
    let from = LoadedGenerator::open(path, false)?;
    let tokenizer = from.tokenizer(backend, args.tokenizer.as_deref())?;
    let mut run = args.run.clone();
    if let Some(preset) = args.sar.preset.and_then(|p| p.to_possible_value()) {
        // It replaces the file's switches, and --set's preset but not its keys: presets come first.
        run.set.push(format!("sar.preset={}", preset.get_name()));
    }
    let mut config = run.config(from.run_config()?.unwrap_or_default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    if args.sar.preset.is_some() {
        note_replaced(&config.sar, &run)?;
    }
    on_latents(&mut config, args.latents.as_deref());
    // A file may be that of the run to be refined, which says how it was trained.
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
    note_rate(&from, &config)?;
    from.name_classes(&mut data);
    begin(backend, config, &args.run, global, (&tokenizer, &data), Some(from), Task::Refine)
}

/// Notes what a new run does not take over from the one whose weights it starts from.
fn note_other_settings(
    from: &LoadedGenerator,
    config: &Config,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let Some(of) = from.run_config()? else { return Ok(()) };
    let (was, is) = (toml::Table::try_from(&of)?, toml::Table::try_from(config)?);
    let kept = [
        ("data", "image_side"),
        ("data", "crop"),
        ("data", "flip"),
        ("data", "shift"),
        ("train", "lr"),
    ];
    let differs = |(section, key): &&(&str, &str)| {
        let value = |of: &toml::Table| of.get(*section).and_then(|s| s.get(*key)).cloned();
        let was = value(&was).filter(|was| value(&is).as_ref() != Some(was));
        let was = was.filter(|_| !args.names(section, key))?;
        Some(format!("{section}.{key}={}", was.to_string().trim_matches('"')))
    };
    let others: Vec<String> = kept.iter().filter_map(|pair| differs(&pair)).collect();
    if !others.is_empty() {
        output::note(format_args!(
            "note: the weights were trained with {}, which this run does not take over; --set does",
            others.join(", ")
        ));
    }
    note_rate(from, config)
}

/// Notes where a run goes on at a much higher rate than its weights were trained to.
fn note_rate(from: &LoadedGenerator, config: &Config) -> anyhow::Result<()> {
    let Some(of) = from.run_config()? else { return Ok(()) };
    let (ended, highest) = (of.train.anneal().learning_rate(from.step), config.train.highest_lr());
    if highest > HIGHER * ended {
        let how = if config.train.warmup == 0 { "begins at" } else { "rises to" };
        output::note(format_args!(
            "note: the weights were trained to a learning rate of {ended:.1e}, and this run {how} {highest:.1e}, \
             which unsettles them at first; a lower one, as of --set train.lr={:.0e}, does not",
            highest / 10.0
        ));
    }
    Ok(())
}

/// Notes which switches of the file of --config a preset has replaced.
fn note_replaced(sar: &SarConfig, args: &RunArgs) -> anyhow::Result<()> {
    let Some(file) = args.file_section("sar") else { return Ok(()) };
    // Both as the program writes them: a number may be written in several ways.
    let was = toml::Table::try_from(file.clone().try_into::<SarConfig>()?)?;
    let now = toml::Table::try_from(sar)?;
    let named = file.keys().filter(|key| *key != "preset" && !args.sets("sar", key));
    let replaced = named.filter(|key| was.get(*key) != now.get(*key));
    let replaced: Vec<String> = replaced.map(|key| format!("sar.{key}")).collect();
    if !replaced.is_empty() {
        let keys = replaced.join(", ");
        output::note(format_args!(
            "note: --preset {} is all switches at once, also {keys} of the file; --set keeps a value",
            toml::Value::try_from(sar.preset)?.as_str().unwrap_or_default()
        ));
    }
    Ok(())
}

/// Warns where a run on the images of the one that it starts from holds out what that one was trained on.
fn compare_held_out(from: &LoadedGenerator, config: &Config, data: &Data) -> anyhow::Result<()> {
    let real = |path: &Option<std::path::PathBuf>| path.as_ref()?.canonicalize().ok();
    let own = from.run_config()?.is_some_and(|of| real(&of.data.path) == real(&config.data.path));
    if own && data.drawn { compare_with_run(from.run.as_deref(), data) } else { Ok(()) }
}

/// Lets a run train on the latents of a flag.
fn on_latents(config: &mut Config, flag: Option<&Path>) {
    if let Some(path) = flag {
        config.train.latents = Some(absolute(path));
    }
}

/// Fails where `--set` names a switch of SAR that the way of training has no use for.
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

/// The images of a configuration.
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

/// A run that starts from weights has their shape; a schedule of its own it may have.
fn adopt(config: &mut Config, from: &LoadedGenerator, args: &RunArgs) -> anyhow::Result<()> {
    let (asked, weights) = (&config.generator, &from.section);
    for (key, asked, found) in [
        ("depth", asked.depth, weights.depth),
        ("width", asked.width, weights.width),
        ("heads", asked.heads, weights.heads),
        ("vocab", asked.vocab, weights.vocab),
        ("channels", asked.channels, weights.channels),
        ("classes", asked.classes, weights.classes),
        ("pos_side", asked.pos_side, weights.pos_side),
        ("mlp_ratio", asked.mlp_ratio, weights.mlp_ratio),
    ] {
        fixed(args, key, asked, found, WEIGHTS)?;
    }
    for (key, asked, found) in
        [("norm_eps", asked.norm_eps, weights.norm_eps), ("alng", asked.alng, weights.alng)]
    {
        fixed(args, key, asked, found, WEIGHTS)?;
    }
    let (asked_positions, found) = (asked.positions, weights.positions);
    fixed(args, "positions", asked_positions, found, WEIGHTS)?;
    if weights.positions == Positions::Levels {
        fixed(args, "schedule", asked.schedule, weights.schedule, WEIGHTS)?;
    }
    let schedule = if args.names("generator", "schedule") { asked } else { weights }.schedule;
    config.generator = GeneratorSection { schedule, ..weights.clone() };
    Ok(())
}

/// Fails where the user asked for a value of a key that something else has decided.
fn fixed<T: PartialEq + Display>(
    args: &RunArgs,
    key: &str,
    asked: T,
    found: T,
    who: &str,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        asked == found || !args.names("generator", key),
        "generator.{key} is {asked}, but {who} {found}; leave the key out"
    );
    Ok(())
}

/// Flags over what the preset, the file and --set say.
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
    (tokenizer, data): (&LoadedTokenizer<B>, &Data),
    from: Option<LoadedGenerator>,
    task: Task,
) -> anyhow::Result<()> {
    if let Some(from) = &from {
        from.compare_classes(data);
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
    config.validate()?;
    // Before the folder: a run that cannot start leaves none behind.
    affordable(&config.generator)?;
    check(&config, data, tokenizer)?;
    let latents = latents::of_run(backend, &config, data, tokenizer)?;
    // What is resolved is what is used.
    config.tokenizer = tokenizer.tokenizer.config().clone();
    let folder = RunFolder::create(&args.out, &config)?;
    let origin = from.as_ref().map(LoadedGenerator::origin);
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

/// Trains what has its folder.
fn started<B: Compute>(
    work: &Work<'_, B>,
    start: Start,
    task: Task,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    compare_computing(work.folder, &global.computed())?;
    let interrupt = Interrupt::listen()?;
    work.train(start, task.label(), &interrupt, global.quiet).map(drop)
}

fn resume<B: Compute>(backend: &B, args: &RunArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let (folder, had) = RunFolder::open_for_resume(&args.out)?;
    let config = args.continued(&had, &FREE)?;
    let kept = folder.path().join(RUN_TOKENIZER);
    if !kept.is_file() {
        // It is written before the first checkpoint.
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
    let tokenizer = LoadedTokenizer::open(backend, &kept)?;
    compare_classes(&folder, &data)?;
    check(&config, &data, &tokenizer)?;
    let latents = latents::of_run(backend, &config, &data, &tokenizer)?;
    longer(&folder, "train.steps", config.train.steps, had.train.steps)?;
    if config != had {
        // Once nothing stands in its way.
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
    work.train(Start::Resume, "resuming", &interrupt, global.quiet)?;
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}
