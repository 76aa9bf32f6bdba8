//! `sar train` and `sar refine`: a generator on the images of a configuration.

use super::classes::{adopt_classes, name_classes};
use super::launch::{Order, Task};
use super::models::{open_generator, open_tokenizer, tokenizer_of};
use super::ranks::listening;
use super::starting::{
    adopt, compare_held_out, compare_with_tokenizer, inherit, note_other_settings,
    note_own_switches, note_rate, note_replaced, tell_tokenizer_training,
};
use crate::backend::Compute;
use crate::cli::{
    GlobalArgs, RefineArgs, RunArgs, SarArgs, TrainArgs, check_refine, check_train, in_shell,
};
use crate::config::{Config, Decode, Mode, SarConfig};
use crate::data::{self, Data, DataError};
use crate::files::absolute;
use crate::run::RunFolder;
use crate::trained::TrainedTokenizer;
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

/// `sar train`.
///
/// # Errors
/// A configuration, data or a checkpoint cannot be used; see [`TrainError`](crate::train::TrainError).
pub fn run<B: Compute>(backend: &B, args: &TrainArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    check_train(args, global).map_err(anyhow::Error::msg)?;
    let (ranks, listening) = (&args.ranks, listening(&args.ranks, global)?);
    let order = Order { task: Task::Train, run: &args.run, ranks, listening, global };
    if args.run.goes_on()? {
        return order.go_on(backend, &FREE, |config, had| {
            // The run keeps its own tokenizer, whatever shape a file gives for a new one.
            config.tokenizer = had.tokenizer.clone();
            config.tokenizer_train = had.tokenizer_train.clone();
            on_latents(config, args.latents.as_deref());
            config.train.mode = args.mode.unwrap_or(config.train.mode);
        });
    }
    let mut config = args.run.config(Config::default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    on_latents(&mut config, args.latents.as_deref());
    config.train.mode = args.mode.unwrap_or(config.train.mode);
    used_by(config.train.mode, &args.run)?;
    if config.train.mode == Mode::Ssr {
        note_own_switches(&config.sar, &args.run)?;
    }
    let mut from =
        args.run.init_from.as_deref().map(|path| open_generator(path, false)).transpose()?;
    let tokenizer = match (&from, &args.tokenizer) {
        (Some(from), named) => tokenizer_of(from, backend, named.as_deref())?,
        (None, Some(path)) => open_named(backend, path, args.run.data.as_deref())?,
        (None, None) => anyhow::bail!("no tokenizer given; name it with --tokenizer"),
    };
    let (named, side) = (args.tokenizer.as_deref(), tokenizer.side);
    inherit(&mut config, from.as_ref(), named, side, &args.run)?;
    tell_tokenizer_training(&mut config, from.as_ref(), named)?;
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
    order.begin(backend, config, (&tokenizer, &data), from)
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
    let (ranks, listening) = (&args.ranks, listening(&args.ranks, global)?);
    let order = Order { task: Task::Refine, run: &run, ranks, listening, global };
    if args.run.goes_on()? {
        let refined = RunFolder::open_for_resume(&args.run.out)?.1.train.mode;
        anyhow::ensure!(
            refined == Mode::Ssr,
            "{} trains by {refined}, and goes on with `sar train --resume`",
            args.run.out.display()
        );
        return order.go_on(backend, &FREE, |config, had| {
            // The run keeps its own tokenizer, whatever shape a file gives for a new one.
            config.tokenizer = had.tokenizer.clone();
            config.tokenizer_train = had.tokenizer_train.clone();
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
    tell_tokenizer_training(&mut config, Some(&from), args.tokenizer.as_deref())?;
    config.train.mode = Mode::Ssr;
    switch(&mut config.sar, &args.sar);
    if args.sar.preset.is_none() {
        note_own_switches(&config.sar, &run)?;
    }
    config.sar.validate()?;
    let sets = |key| run.sets("sar", key);
    let filtered =
        args.sar.top_k.is_some() || args.sar.top_p.is_some() || sets("top_k") || sets("top_p");
    anyhow::ensure!(
        config.sar.decode == Decode::Sample || !filtered,
        "--top-k and --top-p (sar.top_k, sar.top_p) filter draws, and sar.decode is argmax, which takes none: leave \
         them out, or add --decode sample"
    );
    let mut data = open_data(&config, &run, Task::Refine)?;
    compare_held_out(&from, &config, &data)?;
    compare_with_tokenizer(args.tokenizer.as_deref(), &config, &data)?;
    note_rate(&from, &config)?;
    name_classes(&from, &mut data);
    order.begin(backend, config, (&tokenizer, &data), Some(from))
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
