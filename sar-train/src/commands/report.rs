//! `sar report`: one page about one or more runs.

use crate::cli::ReportArgs;
use crate::report::{self, REPORT_FILE};
use anyhow::Context as _;

/// Writes the report and says where it lies and what was missing.
///
/// # Errors
/// A path is not a run folder, or the page cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let out = match (&args.out, args.runs.first()) {
        (Some(out), _) => out.clone(),
        (None, Some(first)) => first.join(REPORT_FILE),
        (None, None) => anyhow::bail!("no run folder given"),
    };
    let there = args.runs.iter().all(|run| run.is_dir());
    let place = there.then(|| super::place::ready_as(&out, &["html", "htm"])).transpose();
    let _place = match args.out {
        Some(_) => place,
        None => place.context("no place for the report in the run's folder; name one with --out"),
    }?;
    // An earlier report is replaced.
    anyhow::ensure!(
        !super::place::is_taken(&out) || report::is_report(&out),
        "{} exists and is no report of this program; name another file with --out",
        out.display()
    );
    let report = report::write(&args.runs, &out)?;
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    println!("{}", out.display());
    Ok(())
}
