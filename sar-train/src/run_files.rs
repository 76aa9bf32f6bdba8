//! The files by which a folder is known to be a run's, or one of samples: by those who write it, by those who read it, and
//! by those who look for images and pass it over.

use std::path::Path;

/// What the run resolved to.
pub(crate) const CONFIG: &str = "config.toml";
/// Where a run has its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Held while a process writes to the folder.
pub(crate) const LOCK: &str = "run.lock";
/// The record that `sar sample` and `sar edit` write beside their images.
pub(crate) const SAMPLES_RECORD: &str = "samples.json";

/// Whether a folder is that of a run.
pub(crate) fn is_run(folder: &Path) -> bool {
    folder.join(LOCK).is_file() && folder.join(CONFIG).is_file()
}

/// Whether a folder is one of samples.
pub(crate) fn is_samples(folder: &Path) -> bool {
    folder.join(SAMPLES_RECORD).is_file()
}
