//! The folder that `sar sample` and `sar edit` write: whose images are in it, and how they came about.

use crate::backend::Compute;
use crate::cli::OutArgs;
use crate::config::SampleConfig;
use crate::files::{absolute, lock_folder, remove_left_behind, write_whole};
use crate::hash::sha256_of;
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the record beside the images. What has none beside it was not written here.
const RECORD: &str = "samples.json";
/// Pictures of several images.
pub(super) const GRID: &str = "grid.png";
/// The first images at every scale.
pub(super) const SCALES: &str = "scales.png";
/// An image that was edited, what is drawn anew in grey.
pub(super) const GIVEN: &str = "given.png";

/// What the images of a folder are: all that they depend on, and the class of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SampleRecord {
    /// The program's version.
    pub program: String,
    /// The weights' file.
    pub generator: PathBuf,
    /// SHA-256 of its weights.
    #[serde(default)]
    pub generator_sha256: String,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// SHA-256 of the tokenizer's weights.
    #[serde(default)]
    pub tokenizer_sha256: String,
    /// Optimiser steps of the generator's weights.
    pub step: u64,
    /// Whether the generator's weights are the averaged ones (EMA).
    pub ema: bool,
    /// What computed: `cpu f32`.
    #[serde(default)]
    pub computed: String,
    /// Schedule sampled in.
    pub schedule: String,
    /// The other settings.
    pub settings: SampleConfig,
    /// What they are edits of, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditRecord>,
    /// Where they, or the first of them, are one array, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npz: Option<PathBuf>,
    /// Names of all classes, in the order of their labels; none where they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Class of image k, which is `{k:06}.png`.
    pub labels: Vec<u32>,
}

/// What an image was edited by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct EditRecord {
    /// The image.
    pub image: PathBuf,
    /// What of it was drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// SHA-256 of image and mask as cut and scaled.
    #[serde(default)]
    pub pixels_sha256: String,
    /// How many scales were taken from it whole.
    pub keep_scales: usize,
    /// How often what is masked was drawn.
    pub passes: usize,
    /// Whether the pictures are as decoded, the image's own pixels not put back.
    pub decoded: bool,
}

/// A folder for samples, with no others in it.
pub(super) struct SampleFolder {
    path: PathBuf,
    /// Nobody else writes to the folder meanwhile; the system releases it with the process.
    _lock: Option<File>,
}

/// Longer than another process takes to write its numbers there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps a folder to this process; nothing where the system locks no folders.
fn lock(path: &Path) -> anyhow::Result<Option<File>> {
    lock_folder(path, PATIENCE).map_err(|_| {
        anyhow::anyhow!(
            "{} is in use: another `sar` writes images to it; choose another --out",
            path.display()
        )
    })
}

impl SampleRecord {
    /// Of images that are about to be made, of some classes in turn.
    pub(super) fn new<B: Compute>(
        generator: &TrainedGenerator,
        tokenizer: (&TrainedTokenizer<B>, &Path),
        schedule: &ScaleSchedule,
        settings: &SampleConfig,
        classes: &[u32],
        (ema, computed): (bool, String),
    ) -> Self {
        let turns = classes.iter().copied().cycle();
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            generator: as_text(&absolute(&generator.file)),
            generator_sha256: sha256_of(&generator.weights),
            tokenizer: as_text(&absolute(tokenizer.1)),
            tokenizer_sha256: sha256_of(&tokenizer.0.weights),
            step: generator.step,
            ema,
            computed,
            schedule: schedule.to_string(),
            settings: settings.clone(),
            edit: None,
            npz: None,
            classes: generator.classes.clone().unwrap_or_default(),
            labels: turns.take(settings.count).collect(),
        }
    }

    /// Images painted at once.
    pub(super) fn batch(&self) -> usize {
        self.settings.batch.min(self.labels.len())
    }

    /// Why the images of `earlier` are not the first of these, if they are not.
    fn difference_from(&self, earlier: &Self) -> anyhow::Result<Option<String>> {
        if earlier.generator_sha256.is_empty() {
            return Ok(Some("an earlier version of the program made them".to_owned()));
        }
        if self.edit.is_some() != earlier.edit.is_some() {
            let kind =
                if earlier.edit.is_some() { "edits of an image" } else { "samples, no edits" };
            return Ok(Some(format!("they are {kind}")));
        }
        let [was, is] = [earlier.essence()?, self.essence()?];
        if let Some((key, was, is)) = difference("", &was, &is) {
            return Ok(Some(match key.as_str() {
                "generator_sha256" => "the generator has other weights now".to_owned(),
                "tokenizer_sha256" => "the tokenizer has other weights now".to_owned(),
                "edit.pixels_sha256" => "the image or its mask is another now".to_owned(),
                _ => format!("{key} was {was} and is {is} now"),
            }));
        }
        let common = self.labels.iter().zip(&earlier.labels).take_while(|(a, b)| a == b).count();
        let there = earlier.labels.len();
        Ok((common < there).then(|| match common == self.labels.len() {
            true => format!("they go up to number {}, and --count is {common}", there - 1),
            false => format!("image {common} is of another class; give the same --classes"),
        }))
    }

    /// All that an image depends on, but its class and number.
    fn essence(&self) -> anyhow::Result<Value> {
        // What is in the files counts, wherever they are, and the schedule that was sampled in.
        let essence = Self {
            generator: PathBuf::new(),
            tokenizer: PathBuf::new(),
            step: 0,
            ema: false,
            npz: None,
            classes: Vec::new(),
            labels: Vec::new(),
            settings: SampleConfig { count: 1, batch: 1, schedule: None, ..self.settings.clone() },
            edit: self.edit.as_ref().map(|edit| EditRecord {
                image: PathBuf::new(),
                mask: None,
                ..edit.clone()
            }),
            ..self.clone()
        };
        Ok(serde_json::to_value(essence)?)
    }

    /// Names of the files that it stands for.
    fn files(&self) -> impl Iterator<Item = String> {
        let images = (0..self.labels.len()).map(|k| format!("{k:06}.png"));
        let given = self.edit.iter().map(|_| GIVEN.to_owned());
        images.chain([GRID, SCALES].map(String::from)).chain(given)
    }
}

impl SampleFolder {
    /// Makes the folder for the images of a record, or takes that of an earlier call.
    ///
    /// # Errors
    /// Images are there that would be replaced, or stay beside the new ones; those that are to be gone on
    /// with are others; the folder is a run's own, or in use; it cannot be written.
    pub(super) fn open(place: &OutArgs, record: &SampleRecord) -> anyhow::Result<Self> {
        let path = place.out.as_path();
        anyhow::ensure!(!path.is_file(), "{} is a file; --out names a folder", path.display());
        anyhow::ensure!(
            !is_of_a_run(path),
            "{} is a run's own folder; choose another --out",
            path.display()
        );
        fs::create_dir_all(path)
            .with_context(|| format!("{}: the folder cannot be made", path.display()))?;
        let folder = Self { path: path.to_owned(), _lock: lock(path)? };
        let earlier = match path.join(RECORD).exists() {
            true => Some(folder.record()?),
            false => None,
        };
        // Before anything is removed: what is not ours stays, and so does what is.
        if let Some(name) = folder.first_of_others(record, earlier.as_ref())? {
            anyhow::bail!(
                "{} has images that its {RECORD} does not name ({name}); choose another --out",
                path.display()
            );
        }
        match earlier {
            None => {}
            Some(earlier) if place.force || earlier.labels.is_empty() => folder.clear(&earlier)?,
            Some(earlier) if place.resume => {
                if let Some(difference) = record.difference_from(&earlier)? {
                    anyhow::bail!(
                        "{} holds other images: {difference}; replace them with --force, or choose another --out",
                        path.display()
                    );
                }
            }
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

    fn record(&self) -> anyhow::Result<SampleRecord> {
        let path = self.path.join(RECORD);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let mut record: SampleRecord = serde_json::from_str(&text).with_context(|| {
            format!("{} is no record of samples; choose another --out", path.display())
        })?;
        // A call that was killed had not painted them all.
        record.labels.truncate(self.present(record.labels.len()));
        Ok(record)
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

/// A path that can be written to a record, also where it is no text.
pub(super) fn as_text(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

/// Whether a folder is a run's, or lies in one that a run keeps its own pictures, weights or curves in.
fn is_of_a_run(path: &Path) -> bool {
    const OWN: [&str; 3] = ["samples", "checkpoints", "tensorboard"];
    let is_run =
        |path: &Path| path.join("config.toml").is_file() && path.join("checkpoints").is_dir();
    let absolute = absolute(path);
    let own = |folder: &Path| {
        let named = folder.file_name().is_some_and(|name| OWN.iter().any(|own| name == *own));
        named && folder.parent().is_some_and(is_run)
    };
    is_run(path) || absolute.ancestors().any(own)
}

/// The first value that differs in two records: its name, what it was and what it is.
fn difference(name: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    let told =
        |value: &Value| if value.is_null() { "not given".to_owned() } else { value.to_string() };
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            names.into_iter().find_map(|key| {
                let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let [was, is] = [was, is].map(|of| value(of).unwrap_or_default());
                difference(&name, &was, &is)
            })
        }
        _ => (was != is).then(|| (name.to_owned(), told(was), told(is))),
    }
}
