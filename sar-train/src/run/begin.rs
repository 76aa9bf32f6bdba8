//! How a run's folder begins, and what is taken away where it came to nothing.

use super::folder::{
    CLASSES, COMPUTED, EVENTS, HELD_OUT, IMAGES, LATENTS, LOG, RUN_TOKENIZER, SAMPLES, TRAINED_ON,
};
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
    /// Makes the folder of a new run and writes its resolved configuration there.
    ///
    /// # Errors
    /// The folder holds something, is in use, or cannot be written.
    pub fn create(path: &Path, config: &Config) -> Result<Self, RunError> {
        if path.is_file() {
            return Err(RunError::NotAFolder { path: path.to_owned() });
        }
        let missing = |path: &&Path| *path != Path::new("") && !path.exists();
        let made = path.ancestors().take_while(missing).map(Path::to_path_buf).collect();
        fs::create_dir_all(path).map_err(RunError::write(path))?;
        let at = path.join(LOCK);
        let locked_before = at.exists();
        // Who is in the folder is more to the point than that it is not empty.
        let mut run = Self::lock(path)?;
        run.made = made;
        if locked_before {
            run.take_over()?;
        }
        for entry in fs::read_dir(path).map_err(RunError::read(path))? {
            let name = entry.map_err(RunError::read(path))?.file_name();
            if name != LOCK {
                if !locked_before {
                    // What is no run's stays none. Where it cannot be removed, an empty lock is no harm.
                    let _ = fs::remove_file(&at);
                }
                let found = name.to_string_lossy().into_owned();
                // What cannot be looked at may be one.
                let saved = any_in(&run.checkpoints_folder()).unwrap_or(true);
                return Err(RunError::NotEmpty { path: path.to_owned(), found, saved });
            }
        }
        match run.begin(config) {
            Ok(()) => {
                for folder in run.made.iter().map(|made| folder_of(made)) {
                    // A run in a folder whose name is lost with the power is lost.
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

    /// Takes the place of a start that was killed before it had anything to go on with, and leaves all else.
    fn take_over(&self) -> Result<(), RunError> {
        // What it was about to write when it was killed.
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

    /// Writes what every run has from its beginning.
    fn begin(&self, config: &Config) -> Result<(), RunError> {
        self.write(CONFIG, config.to_toml()?.as_bytes())?;
        for folder in [self.samples(), self.checkpoints_folder()] {
            fs::create_dir_all(&folder).map_err(RunError::write(&folder))?;
        }
        Ok(())
    }

    /// Takes away what the start of a run has written where it failed before a checkpoint or a picture was saved,
    /// and the folders that were made for it; nothing where somebody has put something there, or where that cannot
    /// be told.
    pub fn discard(mut self) {
        // Read before anything is removed.
        let Some((files, events)) = self.only_begun() else { return };
        // As far as it goes: the error that ended the run is the one to tell.
        for file in files.into_iter().chain(events) {
            let _ = fs::remove_file(file);
        }
        for folder in [self.path().join(EVENTS), self.samples(), self.checkpoints_folder()] {
            let _ = fs::remove_dir(folder);
        }
        // Last: until then the place is not another's.
        let _ = fs::remove_file(self.path().join(LOCK));
        for folder in std::mem::take(&mut self.made) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// The files of a run that has only begun, and its curves; `None` where there is anything else.
    fn only_begun(&self) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        const FILES: [&str; 10] = [
            CONFIG,
            IMAGES,
            HELD_OUT,
            TRAINED_ON,
            CLASSES,
            LATENTS,
            COMPUTED,
            LOG,
            RUN_TOKENIZER,
            ORIGIN,
        ];
        const OTHERS: [&str; 4] = [LOCK, EVENTS, SAMPLES, CHECKPOINTS];
        let within = |folder: &Path| match fs::symlink_metadata(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => Some(Vec::new()),
            // A link leads to what is somebody's, also where that cannot be looked at now.
            Ok(found) if found.is_dir() => inside(folder).ok(),
            _ => None,
        };
        let is = |name: &OsString, known: &[&str]| known.iter().any(|known| name == *known);
        let events = self.path().join(EVENTS);
        let (names, curves) = (inside(self.path()).ok()?, within(&events)?);
        let known = names.iter().all(|name| is(name, &FILES) || is(name, &OTHERS));
        let own = curves.iter().all(|name| name.to_string_lossy().contains("tfevents"));
        let unused =
            within(&self.samples())?.is_empty() && within(&self.checkpoints_folder())?.is_empty();
        let files = names.iter().filter(|name| is(name, &FILES)).map(|name| self.path().join(name));
        (known && own && unused && Log::has_only_begun(&self.path().join(LOG)))
            .then(|| (files.collect(), curves.iter().map(|name| events.join(name)).collect()))
    }
}

/// Names of what is in a folder.
fn inside(folder: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}
