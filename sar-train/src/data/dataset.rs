//! Labelled images in a fixed order.

use super::augment::Augment;
use super::decode::{BadImage, Picture};
use super::image_file::ImageFile;
use super::{DataConfig, DataError};
use rayon::prelude::*;
use sar_math::philox::Stream;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Labelled images in a fixed order; clones share the images.
#[derive(Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    items: Vec<Item>,
    side: usize,
    max_pixels: u64,
    skip_bad: bool,
    /// Images that turned out bad while decoding, by index.
    bad: Mutex<BTreeMap<usize, BadImage>>,
}

/// One labelled image: in memory, or read from its file when needed.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) file: ImageFile,
    pub(super) label: u32,
    pub(super) picture: Option<Arc<Picture>>,
}

/// Examples and labels of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Images `[b,3,s,s]` in \[−1,1\], or other examples that a loader makes batches of.
    pub values_b: Vec<f32>,
    /// Labels `[b]`, indices into the class names.
    pub labels_b: Vec<u32>,
    /// Position of the first image: in the endless shuffled sequence for a loader's batch, in the
    /// data set for [`Dataset::batch`].
    pub first_index: u64,
}

impl Batch {
    /// Puts images one behind the other.
    ///
    /// # Errors
    /// The first of theirs, in order.
    pub(super) fn gathered(
        images: Vec<Result<(Vec<f32>, u32), DataError>>,
        first_index: u64,
    ) -> Result<Self, DataError> {
        let mut batch = Self { values_b: Vec::new(), labels_b: Vec::new(), first_index };
        for image in images {
            let (pixels, label) = image?;
            batch.values_b.extend(pixels);
            batch.labels_b.push(label);
        }
        Ok(batch)
    }
}

impl Dataset {
    pub(super) fn new(root: PathBuf, items: Vec<Item>, config: &DataConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                root,
                items,
                side: config.image_side,
                max_pixels: config.max_pixels,
                skip_bad: config.skip_bad_images,
                bad: Mutex::default(),
            }),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.inner.items.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.inner.items.is_empty()
    }

    /// Side of the returned images, in pixels.
    pub fn side(&self) -> usize {
        self.inner.side
    }

    /// Returns all labels in order, without decoding anything.
    pub fn labels(&self) -> Vec<u32> {
        self.inner.items.iter().map(|item| item.label).collect()
    }

    /// Returns the path of an image's file, or of a sheet's cell, such as `glyphs10/A/12`.
    ///
    /// # Errors
    /// [`DataError::OutOfBounds`].
    pub fn path(&self, index: usize) -> Result<&Path, DataError> {
        self.item(index).map(|item| item.file.path())
    }

    /// Returns image `index` as evaluation sees it, the largest square in the middle, `[3,s,s]` in
    /// \[−1,1\], and its label.
    ///
    /// With `skip_bad_images` a bad image is replaced by the next good one.
    ///
    /// # Errors
    /// [`DataError::BadImage`], [`DataError::AllBad`], [`DataError::OutOfBounds`].
    pub fn image(&self, index: usize) -> Result<(Vec<f32>, u32), DataError> {
        let (picture, label) = self.picture(index)?;
        Ok((Augment::evaluation(self.side()).evaluate(&picture), label))
    }

    /// Returns images `first` to `first + count` as evaluation sees them; fewer at the end of the
    /// set.
    ///
    /// # Errors
    /// As for [`Dataset::image`]; of several errors, the first in order.
    pub fn batch(&self, first: usize, count: usize) -> Result<Batch, DataError> {
        self.item(first)?;
        let end = self.len().min(first.saturating_add(count));
        let indices: Vec<usize> = (first..end).collect();
        self.gather(&indices, first as u64)
    }

    /// Returns the images with these indices as evaluation sees them, in the order of the list.
    ///
    /// # Errors
    /// As for [`Dataset::image`]; of several errors, the first in order.
    pub fn select(&self, indices: &[usize]) -> Result<Batch, DataError> {
        self.gather(indices, indices.first().map_or(0, |&i| i as u64))
    }

    /// Returns a data set of the images with these indices.
    ///
    /// # Errors
    /// [`DataError::OutOfBounds`].
    pub fn subset(&self, indices: &[usize]) -> Result<Self, DataError> {
        let items = indices.iter().map(|&i| self.item(i).cloned()).collect::<Result<_, _>>()?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: self.inner.root.clone(),
                items,
                bad: Mutex::default(),
                ..*self.inner
            }),
        })
    }

    /// Returns the bad images found and replaced so far (only with `skip_bad_images`).
    pub fn skipped(&self) -> Vec<(PathBuf, BadImage)> {
        let bad = self.inner.bad.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |(&i, reason): (&usize, &BadImage)| {
            self.inner.items.get(i).map(|item| (item.file.path().to_owned(), reason.clone()))
        };
        bad.iter().filter_map(named).collect()
    }

    /// Appends the names of all images, relative to the set's folder, and their labels.
    pub(super) fn name_to(&self, names: &mut Vec<u8>) {
        for item in &self.inner.items {
            let path = item.file.name_in(&self.inner.root);
            names.extend(path.as_os_str().as_encoded_bytes());
            names.push(0);
            names.extend(item.label.to_le_bytes());
        }
    }

    /// Returns image `index` cut as `augment` says, with random numbers from `draws`.
    pub(super) fn cut(
        &self,
        index: usize,
        augment: &Augment,
        draws: &mut Stream,
    ) -> Result<(Vec<f32>, u32), DataError> {
        let (picture, label) = self.picture(index)?;
        Ok((augment.apply(&*picture, draws), label))
    }

    fn item(&self, index: usize) -> Result<&Item, DataError> {
        let len = self.len();
        self.inner.items.get(index).ok_or(DataError::OutOfBounds { index, len })
    }

    fn gather(&self, indices: &[usize], first_index: u64) -> Result<Batch, DataError> {
        Batch::gathered(indices.par_iter().map(|&i| self.image(i)).collect(), first_index)
    }

    /// Returns the picture at `index`, or with `skip_bad` the next good one. Which one that is
    /// depends only on the files, so batches stay reproducible.
    fn picture(&self, index: usize) -> Result<(Arc<Picture>, u32), DataError> {
        let first = self.item(index)?;
        let mut first_reason = None;
        for step in 0..self.len() {
            let at = (index + step) % self.len();
            let item = self.item(at)?;
            let reason = match self.load(at, item) {
                Ok(picture) => return Ok((picture, item.label)),
                Err(reason) => reason,
            };
            if !self.inner.skip_bad {
                return Err(DataError::BadImage { path: item.file.path().into(), reason });
            }
            first_reason.get_or_insert(reason);
        }
        Err(DataError::AllBad {
            path: self.inner.root.clone(),
            count: self.len(),
            first: first.file.path().into(),
            reason: first_reason.unwrap_or(BadImage::NotAnImage),
        })
    }

    fn load(&self, index: usize, item: &Item) -> Result<Arc<Picture>, BadImage> {
        if let Some(picture) = &item.picture {
            return Ok(picture.clone());
        }
        let known = || self.inner.bad.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = known().get(&index) {
            return Err(reason.clone());
        }
        item.file.decode(self.inner.max_pixels).map(Arc::new).inspect_err(|reason| {
            if self.inner.skip_bad {
                known().insert(index, reason.clone());
            }
        })
    }
}

/// Returns at most `limit` indices spread evenly over `len` images, so that every class of a set
/// ordered by class has its share.
pub(crate) fn spread(len: usize, limit: usize) -> Vec<usize> {
    let count = len.min(limit);
    (0..count).map(|i| i * len / count).collect()
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("root", &self.inner.root)
            .field("len", &self.len())
            .field("side", &self.side())
            .finish_non_exhaustive()
    }
}
