//! The folder that `sar sample` and `sar edit` write: whose images are in it, and how they came about.

mod record;

pub(super) use record::{EditRecord, SampleRecord, as_text};

use crate::cli::OutArgs;
use crate::data::grid::file_name;
use crate::data::is_image;
use crate::files::{Sharing, absolute, lock_folder, remove_left_behind, write_new, write_whole};
// Images without this record next to them were not written here.
use crate::run_files::SAMPLES_RECORD as RECORD;
use crate::run_files::{CHECKPOINTS, CONFIG};
use anyhow::Context as _;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A grid of several images.
pub(super) const GRID: &str = "grid.png";
/// The first images at every scale.
pub(super) const SCALES: &str = "scales.png";
/// The image that was edited, with the part that is drawn anew in grey.
pub(super) const GIVEN: &str = "given.png";

/// A folder for samples, with no other images in it.
pub(super) struct SampleFolder {
    path: PathBuf,
    /// Keeps others from writing to the folder; the system releases it when the process ends.
    _lock: Option<File>,
}

/// How long to wait for a lock: longer than another process takes to write its numbers there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Locks a folder for this process, or for the processes that make parts of its images; `None` if
/// the system cannot lock folders.
fn lock(path: &Path, sharing: Sharing) -> anyhow::Result<Option<File>> {
    lock_folder(path, sharing, PATIENCE).map_err(|_| {
        anyhow::anyhow!(
            "{} is in use: another `sar` writes images to it; wait until it has ended, or choose another --out",
            path.display()
        )
    })
}

impl SampleFolder {
    /// Makes the folder for the images of a record, or takes over that of an earlier call.
    ///
    /// # Errors
    /// The folder has images that would be replaced or stay among the new ones; the images to go on
    /// with are others; the folder is a run's own or is in use; it cannot be written.
    pub(super) fn open(place: &OutArgs, record: &SampleRecord) -> anyhow::Result<Self> {
        let folder = Self::make(&place.out, Sharing::Alone)?;
        let path = folder.path.as_path();
        // A call that was killed may not have painted all of them.
        let there = |mut record: SampleRecord| {
            record.labels.truncate(folder.present(record.labels.len()));
            record
        };
        let earlier = folder.record()?.map(there);
        // Checked before anything is removed: if others' images are there, they stay, and so do ours.
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

    /// Makes the folder for the images of a record, of which this process makes a part, or joins
    /// the folder of the other parts.
    ///
    /// # Errors
    /// As for [`SampleFolder::open`]; the folder is for other images, or for more.
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
            // The record is of an earlier call with fewer images, or of one that was stopped.
            folder.keep(&SampleRecord { npz: kept.npz, ..record.clone() })?;
        }
        // Nothing is tidied up: temporary files may be those of another part.
        Ok(folder)
    }

    /// Writes the record of a folder that has none; of parts that begin at the same time, one
    /// writes it for all of them.
    fn begin(&self, record: &SampleRecord) -> anyhow::Result<SampleRecord> {
        let path = self.path.join(RECORD);
        let others = self.refuse_others(record, None);
        if others.is_ok() {
            let text = serde_json::to_string_pretty(record)?;
            write_new(&path, text.as_bytes()).with_context(|| format!("{}", path.display()))?;
        }
        // The other images may be those of a part that was quicker.
        match self.record()? {
            Some(kept) => Ok(kept),
            None => {
                others?;
                anyhow::bail!("{} cannot be read back; remove it", path.display())
            }
        }
    }

    /// Makes a folder, or takes one that exists.
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
            Some(name) if earlier.is_none() => anyhow::bail!(
                "{} has images that its {RECORD} does not name ({name}) and would make samples, which are no data; \
                 choose another --out",
                self.path.display()
            ),
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

    /// Writes the folder's record; without images, removes it.
    pub(super) fn keep(&self, record: &SampleRecord) -> anyhow::Result<()> {
        let path = self.path.join(RECORD);
        if record.labels.is_empty() {
            // The record is removed last: until then it says whose the other file is.
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
        let written = write_whole(&path, text.as_bytes());
        written.with_context(|| format!("{} cannot be written", path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the folder's record; `None` if it has none.
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
        self.path.join(file_name(number as u64)).exists()
    }

    /// Returns one more than the number of the last image that exists, among the first `most`.
    pub(super) fn present(&self, most: usize) -> usize {
        (0..most).rev().find(|k| self.has(*k)).map_or(0, |last| last + 1)
    }

    /// Returns the array that the images of a folder were written to, if its record names one.
    pub(super) fn array_of(path: &Path) -> Option<PathBuf> {
        let text = fs::read(path.join(RECORD)).ok()?;
        serde_json::from_slice::<SampleRecord>(&text).ok()?.npz
    }

    /// Returns a folder's record as it was written; `None` if it has none.
    pub(super) fn record_of(path: &Path) -> Option<Value> {
        serde_json::from_slice(&fs::read(path.join(RECORD)).ok()?).ok()
    }

    /// Returns how many images a folder should have by its record; `None` if it has none.
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

    /// Returns the name of an image that no record names and that this program would overwrite or
    /// leave among its own.
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
        // A record makes all images beside it samples, which are no data: without one, every image is in the way.
        let alike = |name: &String| {
            let numbered =
                name.strip_suffix(".png").is_some_and(|stem| stem.parse::<u64>().is_ok());
            let image = earlier.is_none() && is_image(Path::new(name));
            (numbered || image || written.contains(name)) && !own.contains(name)
        };
        Ok(names.filter(alike).min())
    }
}

/// Whether a folder is a run's, or lies in one where a run keeps its own pictures, weights or curves.
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
