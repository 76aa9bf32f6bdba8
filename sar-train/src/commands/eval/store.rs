//! Where the numbers of an evaluation go, beside those that are there.

use crate::commands::output;
use crate::eval::EvalReport;
use crate::files::{folder_of, write_whole};
use crate::report::text;
use anyhow::Context as _;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// To read a file of numbers and to write it takes milliseconds, on a network disk perhaps a second.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// Prints the numbers, and writes them to a file.
pub(super) fn keep(
    report: &EvalReport,
    whole: bool,
    json: Option<&Path>,
    quiet: bool,
) -> anyhow::Result<()> {
    // First: a file that cannot be written does not lose them.
    print!("{}", text::evaluation(report));
    let Some(json) = json else { return Ok(()) };
    let file = json.display();
    match store(report, whole, json)? {
        Stored::No { there } => {
            output::note(format_args!("note: {file} keeps its {there}; --json FILE keeps these"));
            return Ok(());
        }
        Stored::InPlaceOf { there, aside } => {
            let aside = aside.display();
            output::note(format_args!(
                "note: {file} had another one ({there}), which is kept as {aside}"
            ));
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
    /// They are in the file, with so many points of the same evaluation that they do not have.
    With { others: usize },
    /// They are in the file, and what was there is aside.
    InPlaceOf { there: String, aside: PathBuf },
    /// They are a part, and would have replaced what they do not cover.
    No { there: String },
}

/// Writes the numbers to a file, with those there that were measured in the same way: a sweep may be measured in parts,
/// by several processes at once. A part does not replace what it does not cover; what a whole one replaces and does
/// not cover is kept aside.
pub(super) fn store(report: &EvalReport, whole: bool, json: &Path) -> anyhow::Result<Stored> {
    let _turn = turn_in(folder_of(json));
    let mut report = report.clone();
    let mut stored = Stored::With { others: 0 };
    if let Some(there) = read(json) {
        let own = report.points.len();
        if report.take_up(&there) {
            stored = Stored::With { others: report.points.len() - own };
        } else if !report.covers(&there) {
            let there = there.extent();
            if !whole {
                return Ok(Stored::No { there });
            }
            stored = Stored::InPlaceOf { there, aside: keep_aside(json)? };
        }
    }
    let numbers = serde_json::to_string_pretty(&report)?;
    write_whole(json, numbers.as_bytes()).with_context(|| format!("{}", json.display()))?;
    Ok(stored)
}

/// Waits for other processes that write numbers in a folder, and keeps them waiting until it is dropped. Where folders
/// cannot be locked nobody waits, and who locks one for long, as `sar sample` does, is not waited for.
fn turn_in(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    let began = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if began.elapsed() < LONGEST_TURN => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => return None,
        }
    }
}

/// An evaluation that a file has.
fn read(json: &Path) -> Option<EvalReport> {
    // A pipe or a device is not read.
    let text = json.is_file().then(|| fs::read(json).ok())??;
    serde_json::from_slice(&text).ok()
}

/// Gives a file the next free name with a number: `eval-1.json`.
fn keep_aside(json: &Path) -> anyhow::Result<PathBuf> {
    let part = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let (stem, extension) = (part(json.file_stem()), part(json.extension()));
    let name = |n: usize| json.with_file_name(format!("{stem}-{n}.{extension}"));
    let aside = (1..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0));
    fs::rename(json, &aside).with_context(|| format!("{}: cannot be renamed", json.display()))?;
    Ok(aside)
}
