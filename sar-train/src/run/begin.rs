//! How a run's folder is created, and removed again if the run came to nothing.

use super::folder::{BEGAN, CLASSES, EVENTS, LOG, RUN_TOKENIZER, Recorded, SAMPLES};
use super::origin::ORIGIN;
use super::{Log, RunError, RunFolder};
use crate::checkpoint::{any_in, clean};
use crate::config::Config;
use crate::files::{folder_of, remove_left_behind, sync_folder};
use crate::run_files::{CHECKPOINTS, CONFIG, LOCK};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

impl RunFolder {
    /// Creates the folder of a new run and writes its resolved configuration there.
    ///
    /// # Errors
    /// The folder is not empty, is in use, or cannot be written.
    pub fn create(path: &Path, config: &Config) -> Result<Self, RunError> {
        if path.is_file() {
            return Err(RunError::NotAFolder { path: path.to_owned() });
        }
        let missing = |path: &&Path| *path != Path::new("") && !path.exists();
        let made = path.ancestors().take_while(missing).map(Path::to_path_buf).collect();
        fs::create_dir_all(path).map_err(RunError::write(path))?;
        let at = path.join(LOCK);
        let locked_before = at.exists();
        // That another process uses the folder is more important to report than that it is not
        // empty.
        let mut run = Self::lock(path)?;
        run.made = made;
        if locked_before {
            run.take_over()?;
        }
        for entry in fs::read_dir(path).map_err(RunError::read(path))? {
            let name = entry.map_err(RunError::read(path))?.file_name();
            if name != LOCK {
                if !locked_before {
                    // A folder that was not a run's is left as it was. If the lock cannot be
                    // removed, an empty one does no harm.
                    let _ = fs::remove_file(&at);
                }
                let found = name.to_string_lossy().into_owned();
                // If the folder cannot be read, there may be a checkpoint in it.
                let saved = any_in(&run.checkpoints_folder()).unwrap_or(true);
                return Err(RunError::NotEmpty { path: path.to_owned(), found, saved });
            }
        }
        match run.begin(config) {
            Ok(()) => {
                for folder in run.made.iter().map(|made| folder_of(made)) {
                    // If the new folder's name were lost in a power failure, so would be the run in
                    // it.
                    let _ = sync_folder(folder);
                }
                Ok(run)
            }
            Err(error) => {
                run.discard();
                Err(error)
            }
        }
    }

    /// Cleans up after a start that was killed before it saved anything, and leaves everything
    /// else.
    fn take_over(&self) -> Result<(), RunError> {
        // Temporary files that were being written when it was killed.
        remove_left_behind(self.path());
        let checkpoints = self.checkpoints_folder();
        if !checkpoints.is_symlink() && checkpoints.is_dir() {
            clean(&checkpoints).map_err(RunError::read(checkpoints))?;
        }
        let Some((files, events)) = self.only_begun() else { return Ok(()) };
        for file in files.iter().chain(&events) {
            fs::remove_file(file).map_err(RunError::write(file))?;
        }
        for folder in [self.path().join(EVENTS), self.samples(), self.checkpoints_folder()] {
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Writes what every run has from the beginning.
    fn begin(&self, config: &Config) -> Result<(), RunError> {
        self.reconfigure(config)?;
        for folder in [self.samples(), self.checkpoints_folder()] {
            fs::create_dir_all(&folder).map_err(RunError::write(&folder))?;
        }
        Ok(())
    }

    /// Removes what the start of a run has written if it failed before a checkpoint or a picture
    /// was saved, and the folders that were created for it. Does nothing if there are other files
    /// in the folder, or if that cannot be determined.
    pub fn discard(mut self) {
        // Determined before anything is removed.
        let Some((files, events)) = self.only_begun() else { return };
        // Best effort: the error that ended the run is the one to report.
        for file in files.into_iter().chain(events) {
            let _ = fs::remove_file(file);
        }
        for folder in [self.path().join(EVENTS), self.samples(), self.checkpoints_folder()] {
            let _ = fs::remove_dir(folder);
        }
        // The lock goes last, because until then no other process can take the folder.
        let _ = fs::remove_file(self.path().join(LOCK));
        for folder in std::mem::take(&mut self.made) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Returns the files of a run that has only begun, and its curves; `None` if there is anything
    /// else.
    fn only_begun(&self) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        const FILES: [&str; 6] = [CONFIG, BEGAN, CLASSES, LOG, RUN_TOKENIZER, ORIGIN];
        const OTHERS: [&str; 4] = [LOCK, EVENTS, SAMPLES, CHECKPOINTS];
        let within = |folder: &Path| match fs::symlink_metadata(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => Some(Vec::new()),
            // A link leads to a folder of somebody else's, even if that cannot be read now.
            Ok(found) if found.is_dir() => inside(folder).ok(),
            _ => None,
        };
        let is = |name: &OsString, known: &[&str]| known.iter().any(|known| name == *known);
        let own = |name: &OsString| {
            is(name, &FILES) || Recorded::ALL.iter().any(|recorded| name == recorded.file())
        };
        let events = self.path().join(EVENTS);
        let (names, curves) = (inside(self.path()).ok()?, within(&events)?);
        let known = names.iter().all(|name| own(name) || is(name, &OTHERS));
        let whole = curves.iter().all(|name| name.to_string_lossy().contains("tfevents"));
        let unused =
            within(&self.samples())?.is_empty() && within(&self.checkpoints_folder())?.is_empty();
        let files = names.iter().filter(|name| own(name)).map(|name| self.path().join(name));
        (known && whole && unused && Log::has_only_begun(&self.path().join(LOG)))
            .then(|| (files.collect(), curves.iter().map(|name| events.join(name)).collect()))
    }
}

/// Returns the names of a folder's entries.
fn inside(folder: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}
