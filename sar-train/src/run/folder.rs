//! The folder of a run, and the lock that reserves it for one process.

use super::{Log, RunError, TensorBoard};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::config::Config;
use crate::data::{DataError, grid};
use crate::files::{remove_left_behind, write_whole};
use crate::run_files::{CHECKPOINTS, CONFIG, LOCK};
use std::fs::{self, File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

pub(super) const CLASSES: &str = "classes.json";
/// The configuration as the program last wrote it, beside [`CONFIG`], which a user may have edited.
pub(super) const BEGAN: &str = "began.toml";
pub(super) const LOG: &str = "log.jsonl";
pub(super) const EVENTS: &str = "tensorboard";
pub(super) const SAMPLES: &str = "samples";
/// The tokenizer's file in a generator's run, which makes the run self-contained.
pub(crate) const RUN_TOKENIZER: &str = "tokenizer.safetensors";

/// What a run records when it begins, a line in a file of its own, to be compared with when it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// How many images there are.
    Images,
    /// SHA-256 of the names of the images that it holds out.
    HeldOut,
    /// SHA-256 of the names of the images that it trains on.
    TrainedOn,
    /// Whether it trains on its images or on latents of them.
    Source,
    /// Backend, type of numbers, and number of ranks if several.
    Computing,
    /// SHA-256 of the weights of a generator's tokenizer.
    Tokenizer,
}

impl Recorded {
    /// All of them.
    pub(super) const ALL: [Self; 6] = [
        Self::Images,
        Self::HeldOut,
        Self::TrainedOn,
        Self::Source,
        Self::Computing,
        Self::Tokenizer,
    ];

    /// The file's name.
    pub(super) const fn file(self) -> &'static str {
        match self {
            Self::Images => "images.txt",
            Self::HeldOut => "held-out.txt",
            Self::TrainedOn => "trained-on.txt",
            Self::Source => "latents.txt",
            Self::Computing => "computed.txt",
            Self::Tokenizer => "tokenizer.txt",
        }
    }
}

/// A run folder that only this process may write to until this is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The system releases the lock when the file is closed, even if the process is killed.
    lock: File,
    /// Whether the file system does not support locks.
    unlocked: bool,
    /// Folders that were created for it, innermost first.
    pub(super) made: Vec<PathBuf>,
}

impl RunFolder {
    /// Opens the folder of a run to continue it, with the configuration in its file.
    ///
    /// # Errors
    /// It is not a run folder, is in use, or has an unusable configuration.
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

    /// The configuration as the program last wrote it: another one in the file was written by somebody else. `None` of
    /// a run of an earlier program.
    ///
    /// # Errors
    /// [`RunError::Config`].
    pub fn began_with(&self) -> Result<Option<Config>, RunError> {
        let began = self.path.join(BEGAN);
        Ok(if began.is_file() { Some(Config::load(&began)?) } else { None })
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
                // The name of the holder is optional: the message is also useful without it.
                if file.read_to_string(&mut holder).is_err() || holder.trim().is_empty() {
                    holder = "another process".to_owned();
                }
                let holder = holder.trim().to_owned();
                return Err(RunError::InUse { path: path.to_owned(), holder });
            }
            // Some network file systems have no locks: training without one is better than not
            // training.
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

    /// Whether the file system has no locks, so that nothing keeps another process out of the
    /// folder.
    pub fn is_unlocked(&self) -> bool {
        self.unlocked
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder for pictures.
    pub fn samples(&self) -> PathBuf {
        self.path.join(SAMPLES)
    }

    /// Returns the folder of the checkpoints.
    pub fn checkpoints_folder(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Opens the run's checkpoints, of which the last `keep` are kept.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn checkpoints(&self, keep: usize) -> Result<Checkpoints, CheckpointError> {
        Checkpoints::open(&self.checkpoints_folder(), keep)
    }

    /// Opens the log of a run that has reached `step`; records of later steps, which will be
    /// repeated, are removed.
    ///
    /// # Errors
    /// The log cannot be read or written.
    pub fn log(&self, step: u64) -> Result<Log, RunError> {
        Log::open(&self.path.join(LOG), step)
    }

    /// Opens the TensorBoard events of a run that has reached `step`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn tensorboard(&self, step: u64) -> Result<TensorBoard, RunError> {
        TensorBoard::open(&self.path.join(EVENTS), step)
    }

    /// Writes a file of the folder so that it exists completely or not at all; missing parent
    /// folders are created.
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

    /// Records something of a run when it begins; returns the recorded text if it differs from `now`.
    ///
    /// # Errors
    /// [`RunError::Read`], [`RunError::Write`].
    pub fn other(&self, what: Recorded, now: &str) -> Result<Option<String>, RunError> {
        match recorded(&self.path, what)? {
            Some(before) => Ok((before != now).then_some(before)),
            None => self.write(what.file(), now.as_bytes()).map(|_| None),
        }
    }

    /// Records the names of the run's classes, in the order of their labels, when it begins;
    /// returns the recorded names if they differ from `now`.
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

    /// Replaces the stored configuration by the one that the run continues with.
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn reconfigure(&self, config: &Config) -> Result<(), RunError> {
        let text = config.to_toml()?;
        // What is compared with comes last: if it is not written, the other counts as edited in what may be.
        self.write(CONFIG, text.as_bytes())?;
        self.write(BEGAN, text.as_bytes()).map(drop)
    }

    /// Writes a picture as PNG, like [`RunFolder::write`].
    ///
    /// # Errors
    /// [`RunError::Write`].
    pub fn write_png(&self, name: &str, image: &image::RgbImage) -> Result<PathBuf, RunError> {
        let failed = |e: DataError| RunError::write(self.path.join(name))(std::io::Error::other(e));
        self.write(name, &grid::encode_png(image).map_err(failed)?)
    }
}

/// Whether locking failed because locks are not supported.
fn has_no_locks(error: &std::io::Error) -> bool {
    // "No locks available", from NFS without its lock service.
    const ENOLCK: i32 = 37;
    error.kind() == std::io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK)
}

/// Describes this process to another one that finds the folder locked; on a cluster a number alone
/// says little.
fn this_process() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let job = std::env::var("SLURM_JOB_ID").ok();
    let on = if host.trim().is_empty() { String::new() } else { format!(" on {}", host.trim()) };
    let of = job.map(|job| format!(", job {job}")).unwrap_or_default();
    format!("process {}{on}{of}", std::process::id())
}

/// Returns what a run recorded when it began; `None` of a run that did not.
///
/// # Errors
/// [`RunError::Read`].
pub fn recorded(run: &Path, what: Recorded) -> Result<Option<String>, RunError> {
    let path = run.join(what.file());
    match path.is_file() {
        true => fs::read_to_string(&path).map(Some).map_err(RunError::read(&path)),
        false => Ok(None),
    }
}

/// Returns the names of the run's classes in the order of their labels, if recorded.
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
