//! Labelled images: where they come from, how they are cut, and in which order they are used.
//!
//! [`open`] reads one of five kinds of source and returns a [`Data`]: a training set, a validation
//! set and the names of the classes.
//!
//! | source | what it looks like | validation |
//! | --- | --- | --- |
//! | class folders | `DIR/cat/*.png`, or `DIR/train/cat/*.png` with `DIR/val/cat/*.png` | `val/` if there, else held out by seed |
//! | list file | lines `relative/path label`, labels from 0 or names of classes, `#` comments; a `.csv` file; a folder with `train.txt` counts as one | `val.txt` next to it if there, else held out |
//! | tar archives | shards of `key.jpg` with `key.cls`, or class folders, packed; one, or a folder of them | by a folder or name `val`, else held out |
//! | glyph sheet | a PNG of 32×32 cells, a row per class, a column per font; `glyphs10` is embedded | the last 93 columns |
//! | loose images | a folder without classes, with `unlabelled = true` | held out by seed |
//!
//! Pixels are RGB in \[−1,1\], planar `[3,s,s]`, as the tokenizer takes them. Everything is ordered by
//! name, so the same files give the same data on every machine.
//!
//! Shapes in names: `b` batch, `3` colour planes, `h` height, `w` width.

mod archive;
pub mod augment;
mod config;
mod dataset;
pub mod decode;
mod error;
mod folder;
pub mod glyphs;
pub mod grid;
mod hole;
mod image_file;
mod latents;
mod list;
mod loader;
pub mod npz;
mod origin;
mod resize;
mod rows;
mod source;
mod tokens;
mod views;

pub use augment::{Augment, Crop};
pub use config::DataConfig;
pub(crate) use dataset::spread;
pub use dataset::{Batch, Dataset};
pub use decode::BadImage;
pub use error::DataError;
pub(crate) use folder::{classes_within, is_image, is_validation};
pub use hole::Known;
pub use image_file::ImageFile;
pub use latents::{Latents, LatentsWriter, Precision, Sizes};
pub use loader::{Cuts, Examples, Loader, LoaderConfig, Turns};
pub use origin::Origin;
pub use rows::{Earlier, RowsWriter};
pub(crate) use source::{Listing, Source, locate, some_of};
pub use tokens::TokensWriter;
pub(crate) use views::View;

use crate::hash::sha256_of_bytes;
use std::path::PathBuf;

/// A training set, a validation set and their classes.
#[derive(Clone, Debug)]
pub struct Data {
    /// Images that parameters are fitted to.
    pub train: Dataset,
    /// Images used only for measuring; empty only if `val_fraction` is 0 and the source names no
    /// validation.
    pub validation: Dataset,
    /// Number of training images before `limit` was applied.
    pub(crate) listed: usize,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Whether validation was drawn from all images, rather than named by the source.
    pub drawn: bool,
    /// How training images are cut.
    pub augment: Augment,
    /// One line for the log: source, counts and how validation was chosen.
    pub summary: String,
    /// Files left out under `skip_bad_images`, found so far; see also [`Dataset::skipped`].
    pub skipped: Vec<(PathBuf, BadImage)>,
    /// Class folders without images that were left out under `skip_bad_images`.
    pub(crate) empty: Vec<PathBuf>,
    workers: usize,
}

impl Data {
    /// Returns the SHA-256 of the names and labels of all images, training before held-out ones, in
    /// order. It identifies the images wherever they lie; the contents of the files are not hashed.
    pub fn fingerprint(&self) -> String {
        let mut names = Vec::new();
        for set in [&self.train, &self.validation] {
            set.name_to(&mut names);
            names.push(0);
        }
        sha256_of_bytes(&names)
    }

    /// Like [`Data::fingerprint`], but only of the training images.
    pub fn trained_on_fingerprint(&self) -> String {
        names_sum(&self.train)
    }

    /// Like [`Data::fingerprint`], but only of the held-out images.
    pub fn held_out_fingerprint(&self) -> String {
        names_sum(&self.validation)
    }
}

fn names_sum(set: &Dataset) -> String {
    let mut names = Vec::new();
    set.name_to(&mut names);
    sha256_of_bytes(&names)
}

impl Data {
    /// Returns a loader of training batches that starts at batch number `step`.
    ///
    /// # Errors
    /// [`DataError::Config`] if `batch` is 0, [`DataError::Worker`] if no thread can be started.
    pub fn loader(&self, batch: usize, seed: u64, step: u64) -> Result<Loader, DataError> {
        let config = LoaderConfig { batch, seed, workers: self.workers, turns: Turns::ALL };
        Loader::start_at(self.cuts(), config, step)
    }

    /// Returns the training images as an epoch sees them.
    pub(crate) fn cuts(&self) -> Cuts {
        Cuts { images: self.train.clone(), augment: self.augment.clone() }
    }

    /// Returns the number of decoding threads that the configuration asks for.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }
}

/// Opens the data of a configuration.
///
/// For up to 20,000 files the headers are read here; sets that fit into 256 MiB are decoded here
/// and stay in memory. Damage deeper inside larger sets is found when the image is first needed.
///
/// # Errors
/// A [`DataError`] that names the folder, file or line. Bad images are errors unless
/// `skip_bad_images` is set; a set of only bad images always is.
pub fn open(config: &DataConfig) -> Result<Data, DataError> {
    config.validate()?;
    match locate(config)? {
        Source::Sheet(sheet) => source::from_sheet(config, &sheet),
        Source::Files(listing) => source::from_files(config, listing),
    }
}

#[cfg(test)]
mod tests;
