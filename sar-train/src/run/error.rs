//! Errors of run folders.

use std::path::PathBuf;

/// Why a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another process writes to it.
    #[error(
        "{} is in use by {holder}; two runs cannot share a folder: wait for it, stop it, or choose \
         another --out", path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The other process, as far as it is known.
        holder: String,
    },
    /// The folder of a new run is not empty.
    #[error(
        "{} is not empty ({found} is in it); {}remove it, or choose another --out", path.display(),
        if *saved { "continue the run there with --resume, " } else { "" }
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One of its entries.
        found: String,
        /// Whether it has a checkpoint that a run can continue from.
        saved: bool,
    },
    /// The path is a file.
    #[error("{} is a file, expected a folder; choose another --out", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// There is no run to continue.
    #[error(
        "{} is not a run folder: it has no config.toml; check --out, or start anew without --resume",
        path.display()
    )]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The stored configuration cannot be used.
    #[error("the run's configuration cannot be used")]
    Config(#[from] crate::config::ConfigError),
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Writing failed.
    #[error(
        "cannot write {}; make room or check permissions; a run that has begun goes on with --resume",
        path.display()
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A record cannot be written as JSON.
    #[error("{}: a record cannot be written as JSON: {reason}", path.display())]
    Record {
        /// The log.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl RunError {
    pub(super) fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(super) fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }
}
