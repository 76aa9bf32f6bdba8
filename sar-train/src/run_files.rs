//! Names of the files that mark a folder as a run or as samples: shared by the code that writes
//! such folders, the code that reads them, and the code that skips them when it looks for images.

use std::path::Path;

/// The resolved configuration of the run.
pub(crate) const CONFIG: &str = "config.toml";
/// The folder of a run's checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The file that is locked while a process writes to the folder.
pub(crate) const LOCK: &str = "run.lock";
/// The record that `sar sample` and `sar edit` write next to their images.
pub(crate) const SAMPLES_RECORD: &str = "samples.json";

/// Whether a folder is a run folder.
pub(crate) fn is_run(folder: &Path) -> bool {
    folder.join(LOCK).is_file() && folder.join(CONFIG).is_file()
}

/// Whether a folder holds samples.
pub(crate) fn is_samples(folder: &Path) -> bool {
    folder.join(SAMPLES_RECORD).is_file()
}
