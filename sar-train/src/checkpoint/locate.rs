//! Finds weights from what a user types: a run folder, a checkpoint folder or a file.

use super::CheckpointError;
use super::folder::latest_in;
use super::record::{Purpose, verify};
use crate::run_files::{CHECKPOINTS, CONFIG};
use std::path::{Path, PathBuf};

/// File name of the running average of a checkpoint.
const AVERAGE: &str = "ema.safetensors";

/// Weights that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The safetensors file.
    pub file: PathBuf,
    /// The run folder that contains it, if there is one; its `config.toml` describes the rest.
    pub run: Option<PathBuf>,
    /// Whether they are the running average.
    pub ema: bool,
}

/// Finds the weights at `path`: in a run folder, those of the newest checkpoint, which must
/// be intact; in a checkpoint folder, its model (with `ema`, its running average); or else the file itself, which
/// with `ema` must be a running average.
///
/// # Errors
/// [`CheckpointError::None`], which says what is there instead; or a damaged checkpoint.
pub fn locate(path: &Path, ema: bool) -> Result<Located, CheckpointError> {
    let none = |reason: &str| CheckpointError::None { path: path.into(), reason: reason.into() };
    if path.is_file() {
        let whole = std::path::absolute(path).ok();
        let run = whole.as_deref().and_then(Path::parent).and_then(run_of);
        let average = path.file_name().is_some_and(|name| name == AVERAGE);
        if ema && !average {
            return Err(none(
                "is a file, whose weights are what they are: --ema chooses among those of a checkpoint; name its \
                 folder, or its ema.safetensors",
            ));
        }
        return Ok(Located { file: path.to_owned(), run, ema: average });
    }
    if !path.exists() {
        return Err(none("does not exist; give a run folder, a checkpoint or a .safetensors file"));
    }
    let (folder, run) = if path.join("state.json").is_file() {
        verify(path, Purpose::Weights)?;
        (path.to_owned(), run_of(path))
    } else if let Some(found) = latest_in(&path.join("checkpoints"), Purpose::Weights)? {
        (found.folder, Some(path.to_owned()))
    } else {
        return Err(none("holds no checkpoint; give a run folder that has saved one"));
    };
    let file = folder.join(if ema { AVERAGE } else { "model.safetensors" });
    if !file.is_file() {
        return Err(none(if ema {
            "keeps no running average; train with train.ema above 0, or leave out --ema"
        } else {
            "holds no model.safetensors"
        }));
    }
    Ok(Located { file, run, ema })
}

/// Returns the run folder that contains `checkpoints/step-N`.
fn run_of(step: &Path) -> Option<PathBuf> {
    let step = std::path::absolute(step).ok()?;
    let run = step.parent().filter(|p| p.ends_with(CHECKPOINTS))?.parent()?;
    run.join(CONFIG).is_file().then(|| run.to_owned())
}
