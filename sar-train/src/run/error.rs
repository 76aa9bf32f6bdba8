//! What can go wrong with a run's folder.

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
        /// The process, as far as it is known.
        holder: String,
    },
    /// A new run in a folder that holds something.
    #[error(
        "{} is not empty ({found} is in it); {}remove it, or choose another --out", path.display(),
        if *saved { "continue the run there with --resume, " } else { "" }
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
        /// One of the things in it.
        found: String,
        /// Whether it has a checkpoint that a run can go on from.
        saved: bool,
    },
    /// Not a folder at all.
    #[error("{} is a file, expected a folder; choose another --out", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// Nothing to continue.
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
        /// Why.
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
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A record that JSON cannot hold.
    #[error("{}: a record cannot be written as JSON: {reason}", path.display())]
    Record {
        /// The log.
        path: PathBuf,
        /// Why.
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
