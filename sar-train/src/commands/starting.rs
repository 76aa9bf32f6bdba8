//! A run that starts from weights: what it takes over from them and from their run, and what it does not.

use super::models::warn_untrained;
use super::resuming::compare_with_run;
use crate::checkpoint::locate;
use crate::cli::RunArgs;
use crate::config::{Config, GeneratorSection, Positions, SarConfig};
use crate::data::Data;
use crate::files::same_place;
use crate::run::RUN_TOKENIZER;
use crate::trained::{TrainedGenerator, config_of};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Ratio of a run's learning rate to the one that its weights were trained to, above which a note is printed.
const HIGHER: f64 = 3.0;

/// What has decided a shape, as errors say it.
const WEIGHTS: &str = "the weights of --init-from have";

/// Takes settings over from the run of the weights that a new run starts from, or else of its tokenizer: the side of
/// the images; which images are held out, if both use the same ones; and the tokenizer's schedule. Settings that the
/// user named stay as they are.
pub(super) fn inherit(
    config: &mut Config,
    from: Option<&TrainedGenerator>,
    tokenizer: Option<&Path>,
    side: Option<usize>,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let (of, whose) = match from.map(TrainedGenerator::run_config).transpose()?.flatten() {
        Some(of) => (Some(of), "weights'"),
        None => (tokenizer.and_then(run_of_tokenizer).map(|(_, of)| of), "tokenizer's"),
    };
    let of = of.as_ref();
    let mut taken = Vec::new();
    let side = of.map(|of| of.data.image_side).or(side).unwrap_or(config.data.image_side);
    let free = |section, key| !args.names(section, key);
    if free("data", "image_side") && side != config.data.image_side {
        config.data.image_side = side;
        taken.push(format!("data.image_side={side}"));
    }
    if let Some(of) = of.filter(|of| same_images(of, config)) {
        let (had, data) = (&of.data, &mut config.data);
        // A tokenizer may be trained on all images, but a generator's run is measured on held-out ones.
        let held_out = had.val_fraction > 0.0;
        if held_out && free("data", "val_fraction") && had.val_fraction != data.val_fraction {
            data.val_fraction = had.val_fraction;
            taken.push(format!("data.val_fraction={}", had.val_fraction));
        }
        if free("data", "split_seed") && had.split_seed != data.split_seed {
            data.split_seed = had.split_seed;
            taken.push(format!("data.split_seed={}", had.split_seed));
        }
    }
    // Weights bring their own schedule, in `adopt`; a schedule for another side may not fit.
    let schedule = of
        .filter(|of| of.data.image_side == config.data.image_side)
        .filter(|_| from.is_none() && free("generator", "schedule"))
        .map(|of| of.generator.schedule)
        .filter(|schedule| *schedule != config.generator.schedule);
    if let Some(schedule) = schedule {
        config.generator.schedule = schedule;
        taken.push(format!("generator.schedule={schedule}"));
    }
    if !taken.is_empty() {
        eprintln!(
            "note: taken over from the {whose} run: {}; --set takes others",
            taken.join(", ")
        );
    }
    Ok(())
}

/// Takes over how the tokenizer was trained, where its run says so: a run's configuration tells that, too, and nothing
/// else would be true of it.
pub(super) fn tell_tokenizer_training(
    config: &mut Config,
    from: Option<&TrainedGenerator>,
    tokenizer: Option<&Path>,
) -> anyhow::Result<()> {
    let of = match tokenizer {
        Some(path) => run_at(path).map(|(_, of)| of),
        None => from.map(TrainedGenerator::run_config).transpose()?.flatten(),
    };
    if let Some(of) = of {
        config.tokenizer_train = of.tokenizer_train;
    }
    Ok(())
}

/// Notes what a new run does not take over from the one whose weights it starts from.
pub(super) fn note_other_settings(
    from: &TrainedGenerator,
    config: &Config,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let Some(of) = from.run_config()? else { return Ok(()) };
    let (was, is) = (toml::Table::try_from(&of)?, toml::Table::try_from(config)?);
    let kept = [("data", "crop"), ("data", "flip"), ("data", "shift"), ("train", "lr")];
    let differs = |(section, key): &&(&str, &str)| {
        let value = |of: &toml::Table| of.get(*section).and_then(|s| s.get(*key)).cloned();
        let was = value(&was).filter(|was| value(&is).as_ref() != Some(was));
        let was = was.filter(|_| !args.names(section, key))?;
        Some(format!("{section}.{key}={}", was.to_string().trim_matches('"')))
    };
    let others: Vec<String> = kept.iter().filter_map(|pair| differs(&pair)).collect();
    if !others.is_empty() {
        eprintln!(
            "note: the weights were trained with {}, which this run does not take over; --set does",
            others.join(", ")
        );
    }
    note_rate(from, config)
}

/// Notes if a run goes on at a much higher learning rate than its weights were trained to.
pub(super) fn note_rate(from: &TrainedGenerator, config: &Config) -> anyhow::Result<()> {
    let Some(of) = from.run_config()?.filter(|_| !warn_untrained(from)) else { return Ok(()) };
    let (ended, highest) = (of.train.anneal().learning_rate(from.step), config.train.highest_lr());
    if highest > HIGHER * ended {
        let how = if config.train.warmup == 0 { "begins at" } else { "rises to" };
        eprintln!(
            "note: the weights were trained to a learning rate of {ended:.1e}, and this run {how} {highest:.1e}, \
             which unsettles them at first; a lower one, as of --set train.lr={:.0e}, does not",
            highest / 10.0
        );
    }
    Ok(())
}

/// Notes if the file of --config names a preset, and switches that differ from it and hold in `sar`.
pub(super) fn note_own_switches(sar: &SarConfig, args: &RunArgs) -> anyhow::Result<()> {
    let file = args.file_section("sar").filter(|file| file.contains_key("preset"));
    let Some(file) = file.filter(|_| !args.sets("sar", "preset")) else { return Ok(()) };
    let named = file.clone().try_into::<SarConfig>()?;
    let stands_for = toml::Table::try_from(SarConfig::preset(named.preset))?;
    let (named, holds) = (toml::Table::try_from(named)?, toml::Table::try_from(sar)?);
    let own = file.keys().filter(|key| named.get(*key) != stands_for.get(*key));
    let own = own.filter(|key| named.get(*key) == holds.get(*key) && !args.sets("sar", key));
    let own: Vec<String> = own.map(|key| format!("sar.{key}")).collect();
    if !own.is_empty() {
        let preset = named.get("preset").and_then(toml::Value::as_str).unwrap_or_default();
        eprintln!(
            "note: sar.preset of the file is {preset}, and its {} differ from the preset and hold; leave them out, or \
             give --set sar.preset={preset}, for the preset's own",
            own.join(", ")
        );
    }
    Ok(())
}

/// Notes which switches of the file of --config a preset has replaced.
pub(super) fn note_replaced(sar: &SarConfig, args: &RunArgs) -> anyhow::Result<()> {
    let Some(file) = args.file_section("sar") else { return Ok(()) };
    // Both as the program writes them, because a number may be written in several ways.
    let was = toml::Table::try_from(file.clone().try_into::<SarConfig>()?)?;
    let now = toml::Table::try_from(sar)?;
    let named = file.keys().filter(|key| *key != "preset" && !args.sets("sar", key));
    let replaced = named.filter(|key| was.get(*key) != now.get(*key));
    let replaced: Vec<String> = replaced.map(|key| format!("sar.{key}")).collect();
    if !replaced.is_empty() {
        let keys = replaced.join(", ");
        eprintln!(
            "note: --preset {} is all switches at once, also {keys} of the file; --set keeps a value",
            toml::Value::try_from(sar.preset)?.as_str().unwrap_or_default()
        );
    }
    Ok(())
}

/// Warns if a run uses the images of the run that it starts from, but holds out some that the
/// latter was trained on.
pub(super) fn compare_held_out(
    from: &TrainedGenerator,
    config: &Config,
    data: &Data,
) -> anyhow::Result<()> {
    match from.run_config()?.is_some_and(|of| same_images(&of, config)) && data.drawn {
        true => compare_with_run(from.run.as_deref(), "generator", data),
        false => Ok(()),
    }
}

/// Warns if a run uses the images of its tokenizer's run, but holds out some that the tokenizer was trained on.
pub(super) fn compare_with_tokenizer(
    named: Option<&Path>,
    config: &Config,
    data: &Data,
) -> anyhow::Result<()> {
    let Some(path) = named.filter(|_| data.drawn) else { return Ok(()) };
    match run_of_tokenizer(path) {
        Some((run, of)) if same_images(&of, config) => {
            compare_with_run(Some(&run), "tokenizer", data)
        }
        _ => Ok(()),
    }
}

/// The run in which a tokenizer was trained, and its configuration; `None` for a file without a run, or one that cannot
/// be read, which has been reported.
fn run_of_tokenizer(path: &Path) -> Option<(PathBuf, Config)> {
    // A generator's run keeps a tokenizer, but not what that tokenizer was trained on.
    run_at(path).filter(|(run, _)| !run.join(RUN_TOKENIZER).exists())
}

/// The run of weights, and its configuration; `None` as of [`run_of_tokenizer`].
fn run_at(path: &Path) -> Option<(PathBuf, Config)> {
    let run = locate(path, false).ok().and_then(|found| found.run)?;
    let of = config_of(&run).ok().flatten()?;
    Some((run, of))
}

/// Whether two configurations use images in the same place, which must still be there.
fn same_images(one: &Config, other: &Config) -> bool {
    let (one, other) = (&one.data, &other.data);
    match (&one.path, &other.path) {
        (Some(one), Some(other)) => same_place(one, other),
        _ => one.path == other.path && one.builtin == other.builtin,
    }
}

/// Gives a run that starts from weights their shape; it may have a schedule of its own.
pub(super) fn adopt(
    config: &mut Config,
    from: &TrainedGenerator,
    args: &RunArgs,
) -> anyhow::Result<()> {
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

/// Fails if the user asked for a value of a key that something else has decided.
pub(super) fn fixed<T: PartialEq + Display>(
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
