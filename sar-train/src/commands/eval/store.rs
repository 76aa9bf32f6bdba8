//! Where the numbers of an evaluation go, and what happens to those already there.

use crate::commands::place::is_taken;
use crate::eval::EvalReport;
use crate::files::{Sharing, folder_of, lock_folder, write_whole};
use crate::report::text;
use anyhow::Context as _;
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for other processes: reading and writing a file of numbers takes milliseconds, on a
/// network disk perhaps a second.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// Prints the numbers, and writes them to a file.
pub(super) fn keep(
    report: &EvalReport,
    whole: bool,
    json: Option<&Path>,
    quiet: bool,
) -> anyhow::Result<()> {
    // Printed first, so that a file that cannot be written does not lose them.
    print!("{}", text::evaluation(report));
    let Some(json) = json else { return Ok(()) };
    let file = json.display();
    match store(report, whole, json)? {
        Stored::Beside { there, partial } => {
            let partial = partial.display();
            eprintln!(
                "note: {file} keeps its {there}; these are in {partial}, and the next evaluation by the same settings \
                 takes them up"
            );
            return Ok(());
        }
        Stored::InPlaceOf { there, aside } => {
            let aside = aside.display();
            eprintln!("note: {file} had another one ({there}), which is kept as {aside}");
        }
        Stored::With { others } if others > 0 && !quiet => {
            let were = if others == 1 { "was" } else { "were" };
            eprintln!("the numbers are in {file}, with {others} more that {were} there before");
            return Ok(());
        }
        Stored::With { .. } => {}
    }
    if !quiet {
        eprintln!("the numbers are in {file}");
    }
    Ok(())
}

/// What became of the numbers.
pub(super) enum Stored {
    /// They are in the file, with `others` points of the same evaluation that they do not include.
    With { others: usize },
    /// They are in the file, and what was there before has been renamed.
    InPlaceOf { there: String, aside: PathBuf },
    /// They are only a part and would have replaced points that they do not cover: they are in a separate file.
    Beside { there: String, partial: PathBuf },
}

/// Writes the numbers to a file, together with those there that were measured in the same way: a
/// sweep may be measured in parts, by several processes at once. A part does not replace what it
/// does not cover; what a whole evaluation replaces and does not cover is kept in another file.
pub(super) fn store(report: &EvalReport, whole: bool, json: &Path) -> anyhow::Result<Stored> {
    let _turn = turn_in(folder_of(json));
    let mut report = report.clone();
    let (own, partial) = (report.points.len(), numbered(json, "partial"));
    let begun = read(&partial).is_some_and(|begun| report.take_up(&begun));
    let replaced = match read(json) {
        Some(there) if report.take_up(&there) || report.covers(&there) => None,
        other => other.map(|there| there.extent()),
    };
    let stored = match replaced {
        Some(there) if !whole => {
            write(&report, &partial)?;
            return Ok(Stored::Beside { there, partial });
        }
        Some(there) => Stored::InPlaceOf { there, aside: keep_aside(json)? },
        None => Stored::With { others: report.points.len() - own },
    };
    write(&report, json)?;
    if begun {
        // They are in the main file now.
        let _ = fs::remove_file(partial);
    }
    Ok(stored)
}

/// Adds what earlier calls have measured in the same way, the interrupted ones included.
pub(super) fn take_up(report: &mut EvalReport, json: &Path) {
    for earlier in [json.to_owned(), numbered(json, "partial")].iter().filter_map(|file| read(file))
    {
        report.take_up(&earlier);
    }
}

fn write(report: &EvalReport, json: &Path) -> anyhow::Result<()> {
    let numbers = serde_json::to_string_pretty(report)?;
    let written = write_whole(json, numbers.as_bytes());
    written.with_context(|| format!("{} cannot be written", json.display()))
}

/// Returns the file's name with `what` appended to its stem, such as `eval-1.json`.
fn numbered(json: &Path, what: impl Display) -> PathBuf {
    let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (part(json.file_stem()), part(json.extension()));
    json.with_file_name(format!("{stem}-{what}.{extension}"))
}

/// Waits for other processes that write numbers in a folder, and keeps them waiting until the lock
/// is dropped. Where folders cannot be locked nobody waits, and a process that locks one for long,
/// as `sar sample` does, is not waited for.
fn turn_in(folder: &Path) -> Option<File> {
    lock_folder(folder, Sharing::Alone, LONGEST_TURN).ok().flatten()
}

/// Fails if a file that would be written holds something else than an evaluation, which would be lost.
pub(super) fn not_foreign(json: &Path) -> anyhow::Result<()> {
    for file in [json.to_owned(), numbered(json, "partial")] {
        if !is_taken(&file) {
            continue;
        }
        let text = fs::read(&file).with_context(|| format!("{}", file.display()))?;
        anyhow::ensure!(
            serde_json::from_slice::<EvalReport>(&text).is_ok(),
            "{} exists and is no evaluation of this program; name another file with --json, or remove it",
            file.display()
        );
    }
    Ok(())
}

/// Reads the evaluation in a file, if there is one.
fn read(json: &Path) -> Option<EvalReport> {
    // A pipe or a device is not read.
    let text = json.is_file().then(|| fs::read(json).ok())??;
    serde_json::from_slice(&text).ok()
}

/// Renames a file to the next free name with a number, such as `eval-1.json`.
fn keep_aside(json: &Path) -> anyhow::Result<PathBuf> {
    let name = |n: usize| numbered(json, n);
    let aside = (1..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0));
    fs::rename(json, &aside).with_context(|| format!("{}: cannot be renamed", json.display()))?;
    Ok(aside)
}
