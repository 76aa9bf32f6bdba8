//! The folder `checkpoints/` of a run.

use super::record::{NO_SUM, OPTIMIZER, Purpose, Record, STATE, read_record, summed, verify};
use super::storage::write_synced;
use super::weights::{check_length, load_sets, write_tensors};
use super::{CheckpointError, Disk, FORMAT, Header, Kind, Storage, load_weights};
use crate::files::sync_folder;
use crate::params::Layout;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const MOMENTS: [&str; 2] = ["first_moment.", "second_moment."];

/// What is saved at a step.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a, S> {
    /// Kind, step and the model's configuration.
    pub header: &'a Header,
    /// Order and names of the parameters.
    pub layout: &'a Layout,
    /// The parameters.
    pub weights: &'a [f32],
    /// Running average of the parameters, if one is kept.
    pub ema: Option<&'a [f32]>,
    /// AdamW's first moment.
    pub first_moment: &'a [f32],
    /// AdamW's second moment.
    pub second_moment: &'a [f32],
    /// Everything else that the training loop needs to continue bit for bit: seeds, data cursor,
    /// counters.
    pub state: &'a S,
}

/// A checkpoint that has been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The folder of the checkpoint.
    pub folder: PathBuf,
    /// A problem that does not affect the checkpoint itself.
    pub warning: Option<String>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The step of the checkpoint.
    pub step: u64,
    /// The folder of the checkpoint.
    pub folder: PathBuf,
    /// Later checkpoints that were skipped because they are damaged, one line each.
    pub warnings: Vec<String>,
}

/// A checkpoint read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Resumed<S> {
    /// Kind, step and the model's configuration.
    pub header: Header,
    /// The parameters.
    pub weights: Vec<f32>,
    /// Running average of the parameters, if one was kept.
    pub ema: Option<Vec<f32>>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// State of the training loop.
    pub state: S,
}

/// The checkpoints of a run, newest last; only the last few are kept.
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    /// A step whose checkpoint is kept in addition to the last few.
    kept_also: Option<u64>,
    storage: Arc<dyn Storage>,
}

impl Checkpoints {
    /// Opens the folder, creating it if necessary, and removes what an interrupted save left
    /// behind.
    ///
    /// Only the process that holds the run's lock may call this; readers use [`latest_in`].
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, CheckpointError> {
        Self::open_on(folder, keep, Arc::new(Disk))
    }

    /// Like [`Checkpoints::open`], on another storage.
    ///
    /// # Errors
    /// As for [`Checkpoints::open`].
    pub fn open_on(
        folder: &Path,
        keep: usize,
        storage: Arc<dyn Storage>,
    ) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder)
            .map_err(|e| CheckpointError::write(folder, e, "choose --out"))?;
        clean(folder).map_err(|e| CheckpointError::read(folder, e))?;
        Ok(Self { folder: folder.to_owned(), keep: keep.max(1), kept_also: None, storage })
    }

    /// Saves a checkpoint as `step-N` and removes the oldest ones beyond the number to keep.
    ///
    /// When this returns, the checkpoint is durable. If it fails or the process is killed, the
    /// earlier checkpoints are still there.
    ///
    /// # Errors
    /// [`CheckpointError::Length`], [`CheckpointError::Write`] (for example if the disk is full).
    pub fn save<S: Serialize>(&self, snapshot: &Snapshot<'_, S>) -> Result<Saved, CheckpointError> {
        for (what, flat) in [
            ("weights", snapshot.weights),
            ("running average", snapshot.ema.unwrap_or(snapshot.weights)),
            ("first moment", snapshot.first_moment),
            ("second moment", snapshot.second_moment),
        ] {
            check_length(what, snapshot.layout, flat)?;
        }
        let name = format!("step-{}", snapshot.header.step);
        let aside = self.folder.join(format!(".{name}.tmp"));
        let folder = self.folder.join(&name);
        let saved = self
            .write(snapshot, &aside)
            .and_then(|()| replace(&aside, &folder))
            .and_then(|()| sync_folder(&self.folder));
        if let Err(source) = saved {
            // Best effort: what remains is removed at the next start.
            let _ = fs::remove_dir_all(&aside);
            let kept = match steps(&self.folder).ok().and_then(|s| s.last().copied()) {
                Some(step) => format!("the checkpoint of step {step} is still there"),
                None => "no earlier checkpoint exists".to_owned(),
            };
            return Err(CheckpointError::write(folder, source, &kept));
        }
        let warning = self.remove_old(snapshot.header.step).err().map(|e| {
            format!("{}: earlier checkpoints cannot be removed: {e}", self.folder.display())
        });
        Ok(Saved { folder, warning })
    }

    /// Returns the newest complete checkpoint, or `None` if none was ever saved.
    ///
    /// # Errors
    /// As for [`latest_in`].
    pub fn latest(&self) -> Result<Option<Found>, CheckpointError> {
        latest_in(&self.folder, Purpose::Resume)
    }

    /// Protects the checkpoint of a step from removal, instead of the one of an earlier call.
    pub fn keep_also(&mut self, step: u64) {
        self.kept_also = Some(step);
    }

    /// Whether there is a checkpoint of a step; it may be damaged.
    pub fn has(&self, step: u64) -> bool {
        self.folder.join(format!("step-{step}")).join(STATE).is_file()
    }

    /// Returns the checkpoint to continue from, like [`Checkpoints::latest`]. Damaged ones after it
    /// are renamed, because the run will reach their steps again, and they would be taken for its
    /// new checkpoints.
    ///
    /// # Errors
    /// As for [`latest_in`]; also if one cannot be renamed.
    pub fn take_up(&self) -> Result<Option<Found>, CheckpointError> {
        let Some(mut found) = self.latest()? else { return Ok(None) };
        let later = steps(&self.folder).map_err(|e| CheckpointError::read(&self.folder, e))?;
        for step in later.into_iter().filter(|step| *step > found.step) {
            let name = format!("step-{step}");
            let aside = (1..)
                .map(|n| {
                    format!(
                        "{name}.damaged{}",
                        if n == 1 { String::new() } else { format!("-{n}") }
                    )
                })
                .find(|aside| !self.folder.join(aside).exists())
                .unwrap_or_default();
            fs::rename(self.folder.join(&name), self.folder.join(&aside)).map_err(|e| {
                CheckpointError::write(self.folder.join(&name), e, "it is damaged; remove it")
            })?;
            found.warnings.push(format!("{name} is kept as {aside}"));
        }
        Ok(Some(found))
    }

    /// Reads a checkpoint back.
    ///
    /// # Errors
    /// A file is damaged, or does not fit the layout or the type of the state.
    pub fn load<S: DeserializeOwned>(
        found: &Found,
        kind: Kind,
        layout: &Layout,
    ) -> Result<Resumed<S>, CheckpointError> {
        let path = found.folder.join(STATE);
        let bad = |reason: String| CheckpointError::State { path: path.clone(), reason };
        let record = read_record(&found.folder)?;
        let state = S::deserialize(record.run)
            .map_err(|e| bad(format!("the state cannot be read: {e}")))?;
        let model = load_weights(&found.folder.join(MODEL), kind, layout)?;
        let header = model.header.ok_or_else(|| bad("the weights have no header".to_owned()))?;
        let ema = match record.files.contains_key(EMA) {
            true => Some(load_weights(&found.folder.join(EMA), kind, layout)?.flat),
            false => None,
        };
        let moments = load_sets(&found.folder.join(OPTIMIZER), layout, &MOMENTS)?;
        let [first_moment, second_moment] = <[_; 2]>::try_from(moments)
            .map_err(|_| bad("the moments cannot be read".to_owned()))?;
        Ok(Resumed { header, weights: model.flat, ema, first_moment, second_moment, state })
    }

    fn write<S: Serialize>(&self, snapshot: &Snapshot<'_, S>, aside: &Path) -> io::Result<()> {
        if aside.exists() {
            fs::remove_dir_all(aside)?;
        }
        fs::create_dir(aside)?;
        let storage = self.storage.as_ref();
        let (header, layout) = (snapshot.header, snapshot.layout);
        let mut files = BTreeMap::new();
        let mut tensors = |name: &str, sets: &[(&str, &[f32])]| {
            let path = aside.join(name);
            let sum = write_synced(storage, &path, |to| write_tensors(to, header, layout, sets))?;
            files.insert(name.to_owned(), sum);
            io::Result::Ok(())
        };
        tensors(MODEL, &[("", snapshot.weights)])?;
        if let Some(ema) = snapshot.ema {
            tensors(EMA, &[("", ema)])?;
        }
        let moments = [(MOMENTS[0], snapshot.first_moment), (MOMENTS[1], snapshot.second_moment)];
        tensors(OPTIMIZER, &moments)?;
        let record = Record {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            step: header.step,
            files,
            run: serde_json::to_value(snapshot.state)?,
            own_crc32: Some(NO_SUM.to_owned()),
        };
        let (_, text) = summed(&serde_json::to_string_pretty(&record)?, NO_SUM);
        write_synced(storage, &aside.join(STATE), |to| to.write_all(text.as_bytes()))?;
        sync_folder(aside)
    }

    /// Removes the oldest checkpoints before `saved`, so that with it the configured number is
    /// left.
    fn remove_old(&self, saved: u64) -> io::Result<()> {
        let mut steps = steps(&self.folder)?;
        steps.retain(|step| *step < saved);
        let mut outcome = Ok(());
        let old = steps.iter().take((steps.len() + 1).saturating_sub(self.keep));
        for step in old.filter(|step| Some(**step) != self.kept_also) {
            let folder = self.folder.join(format!("step-{step}"));
            // Renamed first, so that a removal that is cut short does not look like a checkpoint.
            let aside = self.folder.join(format!(".step-{step}.old.tmp"));
            let removed = fs::rename(&folder, &aside).and_then(|()| fs::remove_dir_all(&aside));
            // Failing to remove one does not prevent the removal of others.
            outcome = outcome.and(removed);
        }
        outcome
    }
}

/// Returns the newest intact checkpoint of a `checkpoints/` folder, or `None` if it has no `step-N` at all.
///
/// A run goes on from the newest intact one, with warnings about damaged ones after it. Weights are those of the newest
/// alone: older ones in their place would be another model.
///
/// # Errors
/// [`CheckpointError::None`] if all are damaged, or for weights if the newest is; [`CheckpointError::Newer`] if the
/// newest was written by a newer program.
pub fn latest_in(folder: &Path, purpose: Purpose) -> Result<Option<Found>, CheckpointError> {
    // While a run is active, a listed checkpoint may be gone when it is read; then the folder is
    // listed again.
    const LISTINGS: usize = 10;
    let mut last = Ok(None);
    for _ in 0..LISTINGS {
        let (found, gone) = list(folder, purpose);
        if !gone {
            return found;
        }
        last = found;
    }
    last
}

/// Returns the newest complete checkpoint, and whether one disappeared in the meantime.
fn list(folder: &Path, purpose: Purpose) -> (Result<Option<Found>, CheckpointError>, bool) {
    let mut damaged = Vec::new();
    let mut gone = false;
    let steps = match steps(folder) {
        Ok(steps) => steps,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return (Ok(None), false),
        Err(e) => return (Err(CheckpointError::read(folder, e)), false),
    };
    for &step in steps.iter().rev() {
        let candidate = folder.join(format!("step-{step}"));
        match verify(&candidate, purpose) {
            Ok(()) => {
                if let (Purpose::Weights, Some(damage)) = (purpose, damaged.first()) {
                    let reason = format!(
                        "has a newest checkpoint that is damaged: {damage}; the one before it is whole: name {} to \
                         use its weights",
                        candidate.display()
                    );
                    return (Err(CheckpointError::None { path: folder.to_owned(), reason }), gone);
                }
                let warning = |damage| format!("{damage}; trying the checkpoint before it");
                let warnings = damaged.into_iter().map(warning).collect();
                return (Ok(Some(Found { step, folder: candidate, warnings })), gone);
            }
            Err(newer @ CheckpointError::Newer { .. }) => return (Err(newer), false),
            Err(damage) => {
                gone |= !candidate.exists();
                damaged.push(damage.to_string());
            }
        }
    }
    let Some(first) = damaged.first() else { return (Ok(None), false) };
    let reason = match damaged.len() {
        1 => format!("has one checkpoint, and it is damaged: {first}"),
        n => format!("has {n} checkpoints, all damaged; the newest: {first}"),
    };
    let reason = match purpose {
        Purpose::Resume => format!("{reason} (weights that are whole serve --init-from)"),
        Purpose::Weights => reason,
    };
    (Err(CheckpointError::None { path: folder.to_owned(), reason }), gone)
}

/// Returns the steps of the `step-N` folders in ascending order.
fn steps(folder: &Path) -> io::Result<Vec<u64>> {
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let step: Option<u64> =
            name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok());
        // A name such as `step-007` was not written by this program.
        steps.extend(step.filter(|step| *name == *format!("step-{step}")));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Whether a `checkpoints/` folder contains any checkpoints, complete or not.
///
/// # Errors
/// The folder exists but cannot be read, for example because it is a link to a disk that is not
/// mounted.
pub(crate) fn any_in(folder: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.and_then(|_| steps(folder)).map(|steps| !steps.is_empty()),
    }
}

/// Moves `aside` to `folder`, which may exist: a resumed run saves the same step again.
fn replace(aside: &Path, folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return fs::rename(aside, folder);
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let replaced = folder.with_file_name(format!(".{name}.replaced"));
    if replaced.exists() {
        fs::remove_dir_all(&replaced)?;
    }
    // Between the two renames there is no `folder`; `clean` restores `replaced` if the process dies
    // here.
    fs::rename(folder, &replaced)?;
    if let Err(e) = fs::rename(aside, folder) {
        fs::rename(&replaced, folder)?;
        return Err(e);
    }
    // The new one is in place. Files that are still held open may remain until a later start.
    let _ = fs::remove_dir_all(&replaced);
    Ok(())
}

/// Removes what an interrupted save left behind.
pub(crate) fn clean(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if let Some(step) = name.strip_prefix('.').and_then(|n| n.strip_suffix(".replaced")) {
            let original = folder.join(step);
            if original.exists() {
                let _ = fs::remove_dir_all(&path);
            } else {
                fs::rename(&path, original)?;
            }
        } else if name.starts_with(".step-") && name.ends_with(".tmp") {
            // Files that are still held open may remain until a later start.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}
