//! What a run began with, and whether it goes on with the same.

use super::classes::other_class;
use crate::checkpoint::{Checkpoints, Kind, Resumed};
use crate::cli::{GlobalArgs, going_on};
use crate::config::Config;
use crate::data::{self, Data, DataError, some_of};
use crate::params::Layout;
use crate::run::{Interrupted, Recorded, RunFolder, recorded};
use crate::train::TrainError;
use serde::de::DeserializeOwned;
use std::path::Path;

/// What to do about a run without a checkpoint.
pub(crate) const NOTHING_TO_RESUME: &str = "the run has no checkpoint yet, so there is nothing to resume; start it with the flags of a new one (--requeue goes on where there is one, and begins where not)";

/// Says where a run goes on; nothing is left of steps after the last checkpoint.
pub(crate) fn from_step(step: u64) -> String {
    let nothing = if step == 0 { ": nothing was saved after it" } else { "" };
    format!("goes on from step {step}{nothing}")
}

/// Adds the command that goes on with the run to its error, if the user stopped it; `flags` are the command's own.
pub(crate) fn with_command(
    error: anyhow::Error,
    command: &str,
    folder: &RunFolder,
    flags: &str,
    global: &GlobalArgs,
) -> anyhow::Error {
    let stopped = error.chain().any(|cause| {
        // A transparent variant is in the chain in place of the error that it holds.
        cause.is::<Interrupted>()
            || matches!(cause.downcast_ref(), Some(TrainError::Interrupted(_)))
    });
    match stopped {
        true => error.context(format!(
            "stopped; go on with `{}{flags}`",
            going_on(command, folder.path(), global)
        )),
        false => error,
    }
}

/// Says of a run that was to go on, and was stopped before its first step, that nothing has become of it.
pub(crate) fn not_begun(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(TrainError::NotBegun) => {
            error.context("its checkpoints are as they were; continue with --resume")
        }
        _ => error,
    }
}

/// Opens the images that a run was made with.
///
/// # Errors
/// As [`data::open`]; if the images have moved, the error says what to change.
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
    // What data.limit leaves out does not change what is held out.
    let (training, held_out) = (data.listed, data.validation.len());
    format!("{training} training and {held_out} held-out images of {} classes", data.classes.len())
}

/// Warns if other images are held out now than when a run's model (`what`) was trained, since it
/// was trained on some of them.
pub(crate) fn compare_with_run(run: Option<&Path>, what: &str, data: &Data) -> anyhow::Result<()> {
    let Some(run) = run else { return Ok(()) };
    let held_out =
        recorded(run, Recorded::HeldOut)?.map(|before| before == data.held_out_fingerprint());
    let (before, now) = (recorded(run, Recorded::Images)?, counted(data));
    // The same images are held out, whatever classes without images were counted.
    if held_out == Some(true) {
        return Ok(());
    }
    if let Some(before) = before.filter(|before| *before != now) {
        eprintln!(
            "warning: the {what} was trained where there were {before}, and now there are {now}: held-out \
             images are drawn from all of them, so that it was trained on some of these"
        );
    } else if held_out == Some(false) {
        eprintln!(
            "warning: other images are held out now than when the {what} was trained, so that it was trained \
             on some of these; keep data.split_seed and data.val_fraction as they were"
        );
    }
    Ok(())
}

/// Warns if a run goes on with more or fewer images than it began with; whether an image's content
/// has changed is not checked.
pub(crate) fn compare_images(folder: &RunFolder, data: &Data) -> anyhow::Result<()> {
    let now = counted(data);
    if let Some(before) = folder.other(Recorded::Images, &now)? {
        eprintln!(
            "warning: the run began with {before}, and now there are {now}: it goes on, but not as it \
             would have with the same, and where held-out images are drawn from all of them, some \
             that are held out now may have been trained on"
        );
    } else if folder.other(Recorded::HeldOut, &data.held_out_fingerprint())?.is_some() {
        eprintln!(
            "warning: other images are held out than when the run began; were some renamed? Some that are held \
             out now may have been trained on"
        );
    } else if folder.other(Recorded::TrainedOn, &data.trained_on_fingerprint())?.is_some() {
        eprintln!(
            "warning: as many images are trained on as when the run began, but not the same by name, or in another \
             order; were some renamed? The run goes on, not as it would have with the same"
        );
    }
    Ok(())
}

/// Warns if nothing keeps other processes out of the run's folder, and if a run goes on with
/// another backend, number type or number of ranks than it began with.
pub(crate) fn compare_computing(folder: &RunFolder, now: &str) -> anyhow::Result<()> {
    if folder.is_unlocked() {
        eprintln!(
            "warning: the file system of {} has no locks: see to it that no other process trains in that folder",
            folder.path().display()
        );
    }
    if let Some(before) = folder.other(Recorded::Computing, now)? {
        eprintln!(
            "warning: the run began on {before} and goes on with {now}, not bit for bit; --backend, --dtype and \
             --ranks are given to --resume, too"
        );
    }
    Ok(())
}

/// Reads the checkpoint that a run goes on from, if there is one, and warns of later ones that are damaged.
pub(crate) fn resumed<S: DeserializeOwned>(
    folder: &RunFolder,
    keep: usize,
    kind: Kind,
    layout: &Layout,
) -> anyhow::Result<Option<Resumed<S>>> {
    let Some(found) = folder.checkpoints(keep)?.take_up()? else { return Ok(None) };
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(Some(Checkpoints::load(&found, kind, layout)?))
}

/// Warns about class folders that were left out because there is no image in them.
pub(crate) fn tell_empty(data: &Data) {
    if data.empty.is_empty() {
        return;
    }
    let names: Vec<String> = data.empty.iter().map(|path| path.display().to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    eprintln!(
        "warning: {} class folders without images are left out: {}",
        names.len(),
        some_of(&names)
    );
}

/// Warns about images that turned out bad while training and were replaced by others.
pub(crate) fn tell_replaced(data: &Data) {
    let replaced = data.train.skipped();
    if let Some((path, reason)) = replaced.first() {
        eprintln!(
            "warning: {} bad images were left out while training, others in their place; the first, {}: {reason}",
            replaced.len(),
            path.display()
        );
    }
}

/// Records the classes of a new run, and stops a run that goes on if its labels would mean other classes.
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

/// Notes if a run goes on to another last step, and fails if it has already reached that step.
pub(crate) fn longer(folder: &RunFolder, key: &str, now: u64, before: u64) -> anyhow::Result<()> {
    if now == before {
        return Ok(());
    }
    let reached = folder.checkpoints(usize::MAX)?.latest()?.map_or(0, |found| found.step);
    anyhow::ensure!(now > reached, "{key} is {now}, but the run has reached step {reached}");
    eprintln!(
        "note: {key} is {now} now and was {before}: the learning rate goes on as in a run of that length"
    );
    Ok(())
}
