//! Places for the files that commands write, prepared before the work for them begins.

use crate::files::{folder_of, has_extension};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Folders that were made for a file; those that are still empty when it is dropped are removed.
#[must_use = "folders that stay empty are removed when it is dropped"]
pub(crate) struct Place {
    /// The folders, outermost first.
    made: Vec<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // A folder that holds something, above all the file itself, stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Makes sure that a file can be written where it is asked for, before the work for it begins:
/// makes its folder and tries to write there.
pub(crate) fn ready(file: &Path) -> anyhow::Result<Place> {
    anyhow::ensure!(!file.is_dir(), "{} is a folder; name a file in it", file.display());
    if file.exists() && !file.is_file() {
        // A pipe or a device is written to as it is.
        return Ok(Place { made: Vec::new() });
    }
    let folder = folder_of(file);
    let missing = |path: &&Path| *path != Path::new("") && !path.exists();
    let mut made: Vec<PathBuf> =
        folder.ancestors().take_while(missing).map(Path::to_path_buf).collect();
    made.reverse();
    let place = Place { made };
    std::fs::create_dir_all(folder)
        .with_context(|| format!("{}: the folder cannot be made", folder.display()))?;
    tempfile::tempfile_in(folder)
        .with_context(|| format!("{}: nothing can be written there", folder.display()))?;
    Ok(place)
}

/// As [`ready`], for a file whose name must have the extension of its kind: a name that would
/// replace a file of another kind is taken for mistyped.
pub(crate) fn ready_as(file: &Path, extensions: &[&str]) -> anyhow::Result<Place> {
    let regular = !file.exists() || file.is_file();
    let named = extensions.iter().any(|kind| has_extension(file, kind));
    anyhow::ensure!(
        named || !regular,
        "{}: name the file .{}, which is what is written",
        file.display(),
        extensions.first().unwrap_or(&"")
    );
    ready(file)
}

/// Whether there is a file that would be lost: an empty one would not.
pub(crate) fn is_taken(file: &Path) -> bool {
    file.is_file() && std::fs::metadata(file).map_or(true, |found| found.len() > 0)
}

/// As [`ready_as`], for a file that replaces none unless the user says so with --force.
pub(crate) fn ready_new(file: &Path, extensions: &[&str], force: bool) -> anyhow::Result<Place> {
    let place = ready_as(file, extensions)?;
    anyhow::ensure!(
        force || !is_taken(file),
        "{} exists; choose another name, or replace it with --force",
        file.display()
    );
    Ok(place)
}
