//! `sar report`: one self-contained HTML file about one or more run folders.
//!
//! Styles, curves (SVG) and images (PNG as base64) are in the file; it makes no requests and runs
//! no scripts. Every text that comes from a file is escaped. Missing or damaged files of a run
//! folder are mentioned in the page.

mod curves;
mod differences;
mod evaluations;
mod html;
mod log;
mod page;
mod pictures;
mod plot;
mod read;
pub mod summary;
mod tables;
pub mod text;
mod ticks;
pub mod verdict;

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the report in a run folder.
pub const REPORT_FILE: &str = "report.html";

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// A path that is not a folder.
    #[error("{path}: not a run folder ({problem}); give the folder that --out named")]
    Folder {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Folders without anything to show.
    #[error(
        "{path}: nothing to report: no summary.json, config.toml, log.jsonl, eval.json or samples; \
         give the folder that --out named"
    )]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// The page cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Whether a file is a report that this program has written.
pub fn is_report(file: &Path) -> bool {
    page::is_page(file)
}

/// A rendered page.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The whole file.
    pub html: String,
    /// What was missing or damaged, as also stated in the page.
    pub notes: Vec<String>,
}

/// Renders the report on `runs`, in this order.
///
/// # Errors
/// A path is not a folder, or a folder has nothing to show.
pub fn render(runs: &[PathBuf]) -> Result<Report, ReportError> {
    let material = read::read(runs)?;
    Ok(Report { html: page::page(&material), notes: material.notes() })
}

/// Renders the report on `runs` and writes it to `out`, through a temporary name.
///
/// # Errors
/// As for [`render`], or the file cannot be written.
pub fn write(runs: &[PathBuf], out: &Path) -> Result<Report, ReportError> {
    let report = render(runs)?;
    crate::files::write_whole(out, report.html.as_bytes())
        .map_err(|source| ReportError::Write { path: out.into(), source })?;
    Ok(report)
}
