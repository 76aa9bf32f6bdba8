//! The folder of a run, and the lock that keeps it to one process.

use super::origin::ORIGIN;
use super::{Log, RunError, TensorBoard};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::config::Config;
use crate::data::{DataError, grid};
use crate::files::{folder_of, remove_left_behind, sync_folder, write_whole};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.toml";
const IMAGES: &str = "images.txt";
const HELD_OUT: &str = "held-out.txt";
const TRAINED_ON: &str = "trained-on.txt";
const CLASSES: &str = "classes.json";
const LATENTS: &str = "latents.txt";
const COMPUTED: &str = "computed.txt";
const LOG: &str = "log.jsonl";
const EVENTS: &str = "tensorboard";
const SAMPLES: &str = "samples";
/// Where a run has its checkpoints.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// The tokenizer that a generator's run keeps, so that it is whole on its own.
pub(crate) const RUN_TOKENIZER: &str = "tokenizer.safetensors";
/// Held while a process writes to the folder.
const LOCK: &str = "run.lock";

/// Whether a folder is that of a run.
pub(crate) fn is_run(folder: &Path) -> bool {
    folder.join(LOCK).is_file() && folder.join(CONFIG).is_file()
}

/// A run folder that this process alone may write to, until this is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The system releases the lock with the file, also when the process is killed.
    lock: File,
    /// Whether the file system has no locks.
    unlocked: bool,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

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
        if locked_before && let Some((files, events)) = run.only_begun() {
            // A start that was killed before it had anything to go on with leaves nothing that is missed.
            for file in files.iter().chain(&events) {
                fs::remove_file(file).map_err(RunError::write(file))?;
            }
            for folder in [run.path.join(EVENTS), run.samples(), run.checkpoints_folder()] {
                let _ = fs::remove_dir(folder);
            }
        }
        for entry in fs::read_dir(path).map_err(RunError::read(path))? {
            let name = entry.map_err(RunError::read(path))?.file_name();
            if name != LOCK {
                if !locked_before {
                    // What is no run's stays none. Where it cannot be removed, an empty lock is no harm.
                    let _ = fs::remove_file(&at);
                }
                let found = name.to_string_lossy().into_owned();
                let saved = inside(&run.checkpoints_folder()).is_ok_and(|found| !found.is_empty());
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
        for folder in [self.path.join(EVENTS), self.samples(), self.checkpoints_folder()] {
            let _ = fs::remove_dir(folder);
        }
        // Last: until then the place is not another's.
        let _ = fs::remove_file(self.path.join(LOCK));
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
        let within = |folder: &Path| match folder.exists() {
            true => inside(folder).ok(),
            false => Some(Vec::new()),
        };
        let is = |name: &OsString, known: &[&str]| known.iter().any(|known| name == *known);
        let events = self.path.join(EVENTS);
        let (names, curves) = (within(&self.path)?, within(&events)?);
        let known = names.iter().all(|name| is(name, &FILES) || is(name, &OTHERS));
        let own = curves.iter().all(|name| name.to_string_lossy().contains("tfevents"));
        let unused =
            within(&self.samples())?.is_empty() && within(&self.checkpoints_folder())?.is_empty();
        let files = names.iter().filter(|name| is(name, &FILES)).map(|name| self.path.join(name));
        (known && own && unused)
            .then(|| (files.collect(), curves.iter().map(|name| events.join(name)).collect()))
    }

    /// Opens the folder of a run to continue it, with the configuration it had.
    ///
    /// # Errors
    /// Not a run folder, in use, or an unusable configuration.
    pub fn open_for_resume(path: &Path) -> Result<(Self, Config), RunError> {
        let config = path.join(CONFIG);
        if !config.is_file() {
            return Err(RunError::NotARun { path: path.to_owned() });
        }
        let run = Self::lock(path)?;
        let config = Config::load(&config)?;
        for folder in [path, &path.join(SAMPLES)] {
            remove_left_behind(folder);
        }
        Ok((run, config))
    }

    fn lock(path: &Path) -> Result<Self, RunError> {
        let at = path.join(LOCK);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&at)
            .map_err(RunError::write(&at))?;
        let mut unlocked = false;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The name of the holder is a courtesy: without it the message still stands.
                if file.read_to_string(&mut holder).is_err() || holder.trim().is_empty() {
                    holder = "another process".to_owned();
                }
                let holder = holder.trim().to_owned();
                return Err(RunError::InUse { path: path.to_owned(), holder });
            }
            // Some network file systems have no locks: training there is better than none.
            Err(TryLockError::Error(e)) if has_no_locks(&e) => unlocked = true,
            Err(TryLockError::Error(e)) => return Err(RunError::write(at)(e)),
        }
        let holder = format!("{}\n", this_process());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(RunError::write(at))?;
        Ok(Self { path: path.to_owned(), lock: file, unlocked, made: Vec::new() })
    }

    /// Whether the file system has no locks, so that nothing keeps another process from the folder.
    pub fn is_unlocked(&self) -> bool {
        self.unlocked
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where pictures go.
    pub fn samples(&self) -> PathBuf {
        self.path.join(SAMPLES)
    }

    /// Where checkpoints lie.
    pub fn checkpoints_folder(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The run's checkpoints, of which the last `keep` stay.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn checkpoints(&self, keep: usize) -> Result<Checkpoints, CheckpointError> {
        Checkpoints::open(&self.checkpoints_folder(), keep)
    }

    /// The log of a run that has reached `step`: later records, of work that is done again, go.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn log(&self, step: u64) -> Result<Log, RunError> {
        Log::open(&self.path.join(LOG), step)
    }

    /// The TensorBoard events of a run that has reached `step`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn tensorboard(&self, step: u64) -> Result<TensorBoard, RunError> {
        TensorBoard::open(&self.path.join(EVENTS), step)
    }

    /// Writes a file of the folder so that it is there whole or not at all; folders on the way are
    /// made.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, RunError> {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(RunError::write(folder))?;
        }
        write_whole(&path, content).map_err(RunError::write(&path))?;
        Ok(path)
    }

    /// Keeps what the run's images were when it began; says what they were where that has changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_images(&self, now: &str) -> Result<Option<String>, RunError> {
        self.other(IMAGES, now)
    }

    /// Keeps which images the run holds out when it begins; says which those were where they have changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_held_out(&self, now: &str) -> Result<Option<String>, RunError> {
        self.other(HELD_OUT, now)
    }

    /// Keeps which images the run trains on when it begins; says which those were where they have changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_trained_on(&self, now: &str) -> Result<Option<String>, RunError> {
        self.other(TRAINED_ON, now)
    }

    /// Keeps what the run trains on when it begins, its images or latents of them; says what it was where that
    /// has changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_source(&self, now: &str) -> Result<Option<String>, RunError> {
        self.other(LATENTS, now)
    }

    /// Keeps what computes the run when it begins, backend and type of numbers; says what did where that has
    /// changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_computing(&self, now: &str) -> Result<Option<String>, RunError> {
        self.other(COMPUTED, now)
    }

    /// Keeps a line in a file of the run that is not there yet; says what one says that is there, where it is
    /// not the same.
    fn other(&self, file: &str, now: &str) -> Result<Option<String>, RunError> {
        match line_of(&self.path.join(file))? {
            Some(before) => Ok((before != now).then_some(before)),
            None => self.write(file, now.as_bytes()).map(|_| None),
        }
    }

    /// Keeps the names of the run's classes, in the order of their labels, when it begins; says what they
    /// were where that has changed.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other_classes(&self, now: &[String]) -> Result<Option<Vec<String>>, RunError> {
        match class_names(&self.path)? {
            Some(before) => Ok((before != now).then_some(before)),
            None => {
                let text = serde_json::to_vec(now).map_err(std::io::Error::from);
                self.write(CLASSES, &text.map_err(RunError::write(self.path.join(CLASSES)))?)?;
                Ok(None)
            }
        }
    }

    /// Writes the configuration that the run goes on with in the place of the one it had.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn reconfigure(&self, config: &Config) -> Result<(), RunError> {
        self.write(CONFIG, config.to_toml()?.as_bytes()).map(drop)
    }

    /// Writes a picture as PNG, as [`RunFolder::write`].
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn write_png(&self, name: &str, image: &image::RgbImage) -> Result<PathBuf, RunError> {
        let failed = |e: DataError| RunError::write(self.path.join(name))(std::io::Error::other(e));
        self.write(name, &grid::encode_png(image).map_err(failed)?)
    }
}

/// Whether a lock failed because there are none.
fn has_no_locks(error: &std::io::Error) -> bool {
    // "No locks available", of NFS without its lock service.
    const ENOLCK: i32 = 37;
    error.kind() == std::io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK)
}

/// This process, as another one that finds it in the folder is told: on a cluster a number alone says little.
fn this_process() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let job = std::env::var("SLURM_JOB_ID").ok();
    let on = if host.trim().is_empty() { String::new() } else { format!(" on {}", host.trim()) };
    let of = job.map(|job| format!(", job {job}")).unwrap_or_default();
    format!("process {}{on}{of}", std::process::id())
}

/// What the images of the run in a folder were when it began, where it kept that.
///
/// # Errors
/// [`RunError::Read`].
pub fn images_of(run: &Path) -> Result<Option<String>, RunError> {
    line_of(&run.join(IMAGES))
}

/// Which images the run in a folder held out when it began, where it kept that.
///
/// # Errors
/// [`RunError::Read`].
pub fn held_out_of(run: &Path) -> Result<Option<String>, RunError> {
    line_of(&run.join(HELD_OUT))
}

/// Names of what is in a folder.
fn inside(folder: &Path) -> std::io::Result<Vec<OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// What a file of a run says, where it is there.
fn line_of(path: &Path) -> Result<Option<String>, RunError> {
    match path.is_file() {
        true => fs::read_to_string(path).map(Some).map_err(RunError::read(path)),
        false => Ok(None),
    }
}

/// Names of the classes of the run in a folder, in the order of their labels, where it kept them.
///
/// # Errors
/// [`RunError::Read`].
pub fn class_names(run: &Path) -> Result<Option<Vec<String>>, RunError> {
    let path = run.join(CLASSES);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(RunError::read(&path))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| RunError::read(&path)(e.into()))
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // An unlocked file must not name a holder; the lock itself ends with the file in any case.
        let _ = self.lock.set_len(0);
        let _ = self.lock.unlock();
    }
}
