//! The folder that `sar sample` and `sar edit` write: whose images are in it, and how they came about.

mod record;

pub(super) use record::{EditRecord, SampleRecord, as_text};

use crate::cli::OutArgs;
use crate::files::{Sharing, absolute, lock_folder, remove_left_behind, write_new, write_whole};
// What has none beside it was not written here.
use crate::run_files::SAMPLES_RECORD as RECORD;
use crate::run_files::{CHECKPOINTS, CONFIG};
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pictures of several images.
pub(super) const GRID: &str = "grid.png";
/// The first images at every scale.
pub(super) const SCALES: &str = "scales.png";
/// An image that was edited, what is drawn anew in grey.
pub(super) const GIVEN: &str = "given.png";

/// A folder for samples, with no others in it.
pub(super) struct SampleFolder {
    path: PathBuf,
    /// Nobody else writes to the folder meanwhile; the system releases it with the process.
    _lock: Option<File>,
}

/// Longer than another process takes to write its numbers there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps a folder to this process, or to those that make parts of its images; nothing where the system locks no
/// folders.
fn lock(path: &Path, sharing: Sharing) -> anyhow::Result<Option<File>> {
    lock_folder(path, sharing, PATIENCE).map_err(|_| {
        anyhow::anyhow!(
            "{} is in use: another `sar` writes images to it; wait until it has ended, or choose another --out",
            path.display()
        )
    })
}

impl SampleFolder {
    /// Makes the folder for the images of a record, or takes that of an earlier call.
    ///
    /// # Errors
    /// Images are there that would be replaced, or stay beside the new ones; those that are to be gone on
    /// with are others; the folder is a run's own, or in use; it cannot be written.
    pub(super) fn open(place: &OutArgs, record: &SampleRecord) -> anyhow::Result<Self> {
        let folder = Self::make(&place.out, Sharing::Alone)?;
        let path = folder.path.as_path();
        // A call that was killed had not painted them all.
        let there = |mut record: SampleRecord| {
            record.labels.truncate(folder.present(record.labels.len()));
            record
        };
        let earlier = folder.record()?.map(there);
        // Before anything is removed: what is not ours stays, and so does what is.
        folder.refuse_others(record, earlier.as_ref())?;
        match earlier {
            None => {}
            Some(earlier) if place.force || earlier.labels.is_empty() => folder.clear(&earlier)?,
            Some(earlier) if place.resume => folder.refuse_different(record, &earlier)?,
            Some(earlier) => anyhow::bail!(
                "{} holds {} images of an earlier call; go on after them with --resume, replace them \
                 with --force, or choose another --out",
                path.display(),
                (0..earlier.labels.len()).filter(|k| folder.has(*k)).count()
            ),
        }
        remove_left_behind(path);
        Ok(folder)
    }

    /// Makes the folder for the images of a record, of which this process makes a part, or takes that of the other
    /// parts.
    ///
    /// # Errors
    /// As for [`SampleFolder::open`]; what is there is of other images, or of more.
    pub(super) fn join(place: &OutArgs, record: &SampleRecord) -> anyhow::Result<Self> {
        let folder = Self::make(&place.out, Sharing::Shared)?;
        let kept = match folder.record()? {
            Some(kept) => kept,
            None => folder.begin(record)?,
        };
        folder.refuse_others(record, Some(&kept))?;
        if let Some(difference) = record.difference_from(&kept)? {
            anyhow::bail!(
                "{} is for parts of other images: {difference}; remove it, or choose another --out",
                folder.path.display()
            );
        }
        if kept.labels.len() < record.labels.len() {
            // Those of an earlier call, or of one that was stopped.
            folder.keep(&SampleRecord { npz: kept.npz, ..record.clone() })?;
        }
        // Nothing is tidied up: what is temporary may be another part's.
        Ok(folder)
    }

    /// Says what is in a folder where nothing does; of parts that begin at once one does, for all of them.
    fn begin(&self, record: &SampleRecord) -> anyhow::Result<SampleRecord> {
        let path = self.path.join(RECORD);
        let others = self.refuse_others(record, None);
        if others.is_ok() {
            let text = serde_json::to_string_pretty(record)?;
            write_new(&path, text.as_bytes()).with_context(|| format!("{}", path.display()))?;
        }
        // What others there are may be those of a part that was quicker.
        match self.record()? {
            Some(kept) => Ok(kept),
            None => {
                others?;
                anyhow::bail!("{} cannot be read back; remove it", path.display())
            }
        }
    }

    /// Makes a folder, or takes one that is there.
    fn make(path: &Path, sharing: Sharing) -> anyhow::Result<Self> {
        anyhow::ensure!(!path.is_file(), "{} is a file; --out names a folder", path.display());
        anyhow::ensure!(
            !is_of_a_run(path),
            "{} is a run's own folder; choose another --out",
            path.display()
        );
        fs::create_dir_all(path)
            .with_context(|| format!("{}: the folder cannot be made", path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock(path, sharing)? })
    }

    fn refuse_others(
        &self,
        record: &SampleRecord,
        earlier: Option<&SampleRecord>,
    ) -> anyhow::Result<()> {
        match self.first_of_others(record, earlier)? {
            None => Ok(()),
            Some(name) => anyhow::bail!(
                "{} has images that its {RECORD} does not name ({name}); choose another --out",
                self.path.display()
            ),
        }
    }

    fn refuse_different(
        &self,
        record: &SampleRecord,
        earlier: &SampleRecord,
    ) -> anyhow::Result<()> {
        match record.difference_from(earlier)? {
            None => Ok(()),
            Some(difference) => anyhow::bail!(
                "{} holds other images: {difference}; replace them with --force, or choose another --out",
                self.path.display()
            ),
        }
    }

    /// Says what is in the folder; without an image there is nothing to say.
    pub(super) fn keep(&self, record: &SampleRecord) -> anyhow::Result<()> {
        let path = self.path.join(RECORD);
        if record.labels.is_empty() {
            // The record last: until then it says whose the other is.
            let files = record.edit.iter().map(|_| self.path.join(GIVEN)).chain([path]);
            for path in files {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
            return Ok(());
        }
        let text = serde_json::to_string_pretty(record)?;
        write_whole(&path, text.as_bytes()).with_context(|| format!("{}", path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says is in it; `None` where it says nothing.
    fn record(&self) -> anyhow::Result<Option<SampleRecord>> {
        let path = self.path.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("{}", path.display()))?,
        };
        let record = serde_json::from_str(&text).with_context(|| {
            format!("{} is no record of samples; choose another --out", path.display())
        })?;
        Ok(Some(record))
    }

    fn has(&self, number: usize) -> bool {
        self.path.join(format!("{number:06}.png")).exists()
    }

    /// One more than the number of the last image that is there, of so many.
    pub(super) fn present(&self, most: usize) -> usize {
        (0..most).rev().find(|k| self.has(*k)).map_or(0, |last| last + 1)
    }

    /// The array that the images of a folder were written to, if its record names one.
    pub(super) fn array_of(path: &Path) -> Option<PathBuf> {
        let text = fs::read(path.join(RECORD)).ok()?;
        serde_json::from_slice::<SampleRecord>(&text).ok()?.npz
    }

    /// What a folder's record says, as it is written; `None` where it has none.
    pub(super) fn record_of(path: &Path) -> Option<Value> {
        serde_json::from_slice(&fs::read(path.join(RECORD)).ok()?).ok()
    }

    /// How many images there should be in a folder, by its record; `None` where it has none.
    pub(super) fn images_of(path: &Path) -> anyhow::Result<Option<usize>> {
        let record = path.join(RECORD);
        if !record.is_file() {
            return Ok(None);
        }
        let named = || format!("{}: the record of the samples cannot be read", record.display());
        let record: SampleRecord =
            serde_json::from_slice(&fs::read(&record).with_context(named)?).with_context(named)?;
        Ok(Some(record.labels.len()))
    }

    /// Removes what an earlier call wrote, the record last: until then it says whose the rest is.
    fn clear(&self, earlier: &SampleRecord) -> anyhow::Result<()> {
        for name in earlier.files().chain([RECORD.to_owned()]) {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e)
                        .with_context(|| format!("{}: cannot be removed", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The name of an image that this program would write over, or leave beside its own, and that no record
    /// names.
    fn first_of_others(
        &self,
        record: &SampleRecord,
        earlier: Option<&SampleRecord>,
    ) -> anyhow::Result<Option<String>> {
        let written: BTreeSet<String> = record.files().collect();
        let own: BTreeSet<String> = earlier.into_iter().flat_map(SampleRecord::files).collect();
        let files = fs::read_dir(&self.path)
            .with_context(|| format!("{}: the folder cannot be read", self.path.display()))?;
        let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
        let alike = |name: &String| {
            let numbered =
                name.strip_suffix(".png").is_some_and(|stem| stem.parse::<u64>().is_ok());
            (numbered || written.contains(name)) && !own.contains(name)
        };
        Ok(names.filter(alike).min())
    }
}

/// Whether a folder is a run's, or lies in one that a run keeps its own pictures, weights or curves in.
fn is_of_a_run(path: &Path) -> bool {
    const OWN: [&str; 3] = ["samples", CHECKPOINTS, "tensorboard"];
    let is_run = |path: &Path| path.join(CONFIG).is_file() && path.join(CHECKPOINTS).is_dir();
    let absolute = absolute(path);
    let own = |folder: &Path| {
        let named = folder.file_name().is_some_and(|name| OWN.iter().any(|own| name == *own));
        named && folder.parent().is_some_and(is_run)
    };
    is_run(path) || absolute.ancestors().any(own)
}
