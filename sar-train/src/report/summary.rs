//! `summary.json`: the numbers of a comparison, written by the demo and read by the report.

use crate::eval::{EvalSettings, Floor, SweepPoint};
use crate::files::write_whole;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Version of the format of `summary.json` that this program writes.
pub const SUMMARY_FORMAT: u32 = 1;

/// Name of the file in a run folder.
pub const SUMMARY_FILE: &str = "summary.json";

/// Role of an arm of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArmRole {
    /// The generator that the others start from.
    Base,
    /// Trained for the same number of further steps without the method.
    Control,
    /// Trained for the same number of further steps with the method.
    Refined,
    /// Any other role.
    #[default]
    Other,
}

/// One generator of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arm {
    /// Name as shown: "SAR, preset release".
    pub name: String,
    /// Role in the comparison.
    pub role: ArmRole,
    /// How it was trained, in a sentence.
    pub description: String,
    /// Optimiser steps of this arm, not counting those of the checkpoint it started from.
    pub steps: u64,
    /// Teacher-forcing loss on held-out images, nats per token.
    pub heldout_loss: Option<f64>,
    /// The same per scale, coarse to fine.
    pub scale_loss: Vec<f64>,
    /// Held-out accuracy per scale, 0..1.
    pub scale_accuracy: Vec<f64>,
    /// Quality over guidance, in ascending order of guidance.
    pub sweep: Vec<SweepPoint>,
    /// Training images per second.
    pub train_images_per_second: Option<f64>,
    /// Generated images per second.
    pub sample_images_per_second: Option<f64>,
    /// Largest resident memory so far, bytes.
    pub peak_memory: Option<u64>,
    /// The arm's run folder, relative to the folder of the summary.
    pub run: Option<String>,
}

impl Arm {
    /// Returns the point of lowest Fréchet distance; the lower guidance on ties.
    pub fn best(&self) -> Option<&SweepPoint> {
        self.sweep.iter().min_by(|a, b| a.frechet.mean.total_cmp(&b.frechet.mean))
    }

    /// Returns the point at a guidance value, if it was measured.
    pub fn at(&self, guidance: f64) -> Option<&SweepPoint> {
        self.sweep.iter().find(|p| same_guidance(p.guidance, guidance))
    }
}

/// Tolerance for equal guidance values: different ones are hundredths apart, writing and reading
/// changes less than this.
const AS_WRITTEN: f64 = 1e-9;

/// Whether two guidance values are the same setting, apart from rounding when written.
pub(crate) fn same_guidance(a: f64, b: f64) -> bool {
    (a - b).abs() < AS_WRITTEN
}

/// Which arm is better, in words; made by [`crate::report::verdict::verdict`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// One sentence.
    pub headline: String,
    /// The reasons, one sentence each.
    pub details: Vec<String>,
}

/// Tokenizer quality, if the run trained a tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizerSummary {
    /// Number of optimiser steps.
    pub steps: u64,
    /// Peak signal-to-noise ratio on validation images, dB.
    pub psnr: Option<f64>,
    /// Number of codebook entries used on the validation images.
    pub codes_used: Option<usize>,
    /// Codebook size.
    pub vocab: Option<usize>,
}

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Version of the format, [`SUMMARY_FORMAT`].
    pub format: u32,
    /// Title: "Ten glyph classes, 32×32".
    pub title: String,
    /// What was done, in a paragraph.
    pub description: String,
    /// The data: "3,700 training and 930 validation images of 463 open fonts".
    pub data: String,
    /// Which arm is better.
    pub verdict: Verdict,
    /// Arms in the order in which they are shown.
    pub arms: Vec<Arm>,
    /// Measures of real and reconstructed images.
    pub floors: Vec<Floor>,
    /// How quality was measured.
    pub settings: EvalSettings,
    /// Tokenizer quality.
    pub tokenizer: Option<TokenizerSummary>,
    /// Seed of training.
    pub seed: u64,
    /// Total wall time in seconds.
    pub seconds: Option<f64>,
    /// Largest resident memory overall, in bytes.
    pub peak_memory: Option<u64>,
    /// What to keep in mind when reading the numbers.
    pub notes: Vec<String>,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            format: SUMMARY_FORMAT,
            title: String::new(),
            description: String::new(),
            data: String::new(),
            verdict: Verdict::default(),
            arms: Vec::new(),
            floors: Vec::new(),
            settings: EvalSettings::default(),
            tokenizer: None,
            seed: 0,
            seconds: None,
            peak_memory: None,
            notes: Vec::new(),
        }
    }
}

/// Why a summary cannot be read or written.
#[derive(Debug, Error)]
pub enum SummaryError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not JSON, or does not have this format.
    #[error("{path}: not a summary that this program reads: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Position and cause.
        source: serde_json::Error,
    },
    /// The file was written by a later version.
    #[error(
        "{path}: summary format {found}, but this program reads up to {SUMMARY_FORMAT}; use the \
         newer program that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl Summary {
    /// Reads `summary.json` of a run folder.
    ///
    /// # Errors
    /// The file cannot be read, is not JSON of this format, or has a later format.
    pub fn read(folder: &Path) -> Result<Self, SummaryError> {
        let path = folder.join(SUMMARY_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| SummaryError::Io { path: path.clone(), source })?;
        let summary: Self = serde_json::from_str(&text)
            .map_err(|source| SummaryError::Json { path: path.clone(), source })?;
        if summary.format > SUMMARY_FORMAT {
            return Err(SummaryError::Newer { path, found: summary.format });
        }
        Ok(summary)
    }

    /// Writes `summary.json` to a run folder, through a temporary name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), SummaryError> {
        let path = folder.join(SUMMARY_FILE);
        let text = serde_json::to_string_pretty(self)
            .map_err(|source| SummaryError::Json { path: path.clone(), source })?;
        write_whole(&path, text.as_bytes()).map_err(|source| SummaryError::Io { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Measured;

    #[test]
    fn written_and_read_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let point = SweepPoint {
            guidance: 0.5,
            top_k: None,
            top_p: None,
            frechet: Measured::of(vec![43.25, 44.5]).unwrap(),
            precision: Measured::once(0.25).unwrap(),
            recall: Measured::once(0.75).unwrap(),
            class_accuracy: Measured::once(0.5).unwrap(),
        };
        let arm = Arm { name: "a".into(), sweep: vec![point], ..Arm::default() };
        let summary = Summary { arms: vec![arm], ..Summary::default() };
        summary.write(folder.path()).unwrap();
        assert_eq!(Summary::read(folder.path()).unwrap(), summary);
    }

    #[test]
    fn damaged_and_newer_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Summary::read(folder.path()), Err(SummaryError::Io { .. })));
        let path = folder.path().join(SUMMARY_FILE);
        std::fs::write(&path, "{\"arms\": [").unwrap();
        let text = Summary::read(folder.path()).unwrap_err().to_string();
        assert!(text.contains("summary.json"), "{text}");
        std::fs::write(&path, "{\"format\": 99}").unwrap();
        assert!(matches!(Summary::read(folder.path()), Err(SummaryError::Newer { found: 99, .. })));
    }
}
