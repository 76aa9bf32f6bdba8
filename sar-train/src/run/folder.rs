//! The folder of a run, and the lock that keeps it to one process.

use super::{Log, RunError, TensorBoard};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::config::Config;
use crate::data::{DataError, grid};
use crate::files::{remove_left_behind, write_whole};
use crate::run_files::{CHECKPOINTS, CONFIG, LOCK};
use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

pub(super) const IMAGES: &str = "images.txt";
pub(super) const HELD_OUT: &str = "held-out.txt";
pub(super) const TRAINED_ON: &str = "trained-on.txt";
pub(super) const CLASSES: &str = "classes.json";
pub(super) const LATENTS: &str = "latents.txt";
pub(super) const COMPUTED: &str = "computed.txt";
pub(super) const LOG: &str = "log.jsonl";
pub(super) const EVENTS: &str = "tensorboard";
pub(super) const SAMPLES: &str = "samples";
/// The tokenizer that a generator's run keeps, so that it is whole on its own.
pub(crate) const RUN_TOKENIZER: &str = "tokenizer.safetensors";

/// A run folder that this process alone may write to, until this is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The system releases the lock with the file, also when the process is killed.
    lock: File,
    /// Whether the file system has no locks.
    unlocked: bool,
    /// Folders that were made for it, the innermost first.
    pub(super) made: Vec<PathBuf>,
}

impl RunFolder {
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

    pub(super) fn lock(path: &Path) -> Result<Self, RunError> {
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
