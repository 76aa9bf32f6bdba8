//! The files by which a folder is known to be a run's: by the run itself, by those who read it, and by those who look
//! for images and pass it over.

use std::path::Path;

/// What the run resolved to.
pub(crate) const CONFIG: &str = "config.toml";
/// Where a run has its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// Held while a process writes to the folder.
pub(crate) const LOCK: &str = "run.lock";

/// Whether a folder is that of a run.
pub(crate) fn is_run(folder: &Path) -> bool {
    folder.join(LOCK).is_file() && folder.join(CONFIG).is_file()
}
