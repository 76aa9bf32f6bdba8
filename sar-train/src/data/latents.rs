//! Latents of a data set in a file, so that training need not encode its images again in every
//! epoch.
//!
//! Random schedules pool every latent to other grids in each step, so latents are stored and not
//! tokens. A training image has one latent for each *view*: view e is cut as in epoch e of a run
//! with the file's seed. As long as a run has not taken more epochs than there are views, it
//! equals, bit for bit, the run that encodes its images (in f32); after that, views are repeated.
//!
//! The file is safetensors: `train_labels [n]`, `validation_labels [m]`, `train [views, n, k, h, w]`,
//! `validation [m, k, h, w]`, and [`Origin`] in the metadata. It may be larger than memory: rows are written
//! and read one by one.

mod header;
mod writer;

pub use writer::{LatentsWriter, Sizes};

use super::loader::Examples;
use super::{Data, DataError, Origin};
use header::Header;
use sar_math::philox::Stream;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(not(unix))]
use std::sync::{Mutex, PoisonError};

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Unchanged.
    F32,
    /// Rounded to IEEE binary16.
    F16,
}

impl Precision {
    /// Number of bytes per value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => {
                values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
            }
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => {
                let value = |b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f32();
                bytes.as_chunks().0.iter().map(value).collect()
            }
        }
    }
}

/// Latents in a file; clones share it.
#[derive(Clone)]
pub struct Latents {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    header: Header,
    file: File,
    /// Locked while the file is sought and read, on systems where that takes two calls.
    #[cfg(not(unix))]
    turn: Mutex<()>,
    train_labels: Vec<u32>,
    validation_labels: Vec<u32>,
}

impl Latents {
    /// Opens a file; its latents are read on demand.
    ///
    /// # Errors
    /// [`DataError::Latents`] for a file of another kind or a truncated one, [`DataError::Missing`],
    /// [`DataError::Io`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = File::open(path).map_err(|e| DataError::io(path, "read", &e))?;
        let header = Header::read(path, &mut file)?;
        let mut labels = |at: u64, count: usize| {
            let mut bytes = vec![0; 4 * count];
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes))?;
            Ok(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<u32>>())
        };
        let both = labels(header.train_labels, header.sizes.train).and_then(|train| {
            Ok((train, labels(header.validation_labels, header.sizes.validation)?))
        });
        let (train_labels, validation_labels) =
            both.map_err(|e: std::io::Error| DataError::io(path, "read", &e))?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                header,
                file,
                #[cfg(not(unix))]
                turn: Mutex::new(()),
                train_labels,
                validation_labels,
            }),
        })
    }

    /// Number of images, views and values.
    pub fn sizes(&self) -> Sizes {
        self.inner.header.sizes
    }

    /// Returns what the latents were made from.
    pub fn origin(&self) -> &Origin {
        &self.inner.header.origin
    }

    /// Returns the labels of held-out images, in order.
    pub fn validation_labels(&self) -> &[u32] {
        &self.inner.validation_labels
    }

    /// Returns the latent `[k, h, w]` of a held-out image.
    ///
    /// # Errors
    /// [`DataError::OutOfBounds`], [`DataError::Io`].
    pub fn validation(&self, index: usize) -> Result<Vec<f32>, DataError> {
        within(index, self.sizes().validation)?;
        self.row(self.inner.header.validation, index)
    }

    /// Returns the latent `[k, h, w]` of a training image as `epoch` sees it.
    ///
    /// # Errors
    /// [`DataError::OutOfBounds`], [`DataError::Io`].
    pub fn training(&self, index: usize, epoch: u64) -> Result<Vec<f32>, DataError> {
        let sizes = self.sizes();
        within(index, sizes.train)?;
        let view = (epoch % sizes.views as u64) as usize;
        self.row(self.inner.header.train, view * sizes.train + index)
    }

    /// Describes the latents for people; two files that lead to the same run have the same
    /// description.
    pub fn describe(&self) -> String {
        let Header { sizes, precision, origin, .. } = &self.inner.header;
        let bits = 8 * precision.bytes();
        let views = if sizes.views == 1 { "view" } else { "views" };
        format!(
            "latents of {} {views} of each image, in {bits} bits, cut by seed {}",
            sizes.views, origin.seed
        )
    }

    /// Creates the error for a file that is not what was requested.
    pub(crate) fn unfit(&self, reason: String) -> DataError {
        DataError::Latents { path: self.inner.path.clone(), reason }
    }

    /// Checks that these are the latents of a run: of its images, cut as the run cuts them, encoded
    /// by its tokenizer, whose latents have the dimensions `[k, h, w]`.
    ///
    /// # Errors
    /// [`DataError::Latents`], with what differs.
    pub fn check(&self, run: &Origin, data: &Data, latent: [usize; 3]) -> Result<(), DataError> {
        let origins = self.origin().difference(run, "latents", "this run");
        let reason = match origins {
            Some(difference) if self.origin().augment != run.augment => {
                let sets = run.augment.settings().map(|set| format!(" --set {set}")).concat();
                format!("{difference}; encode them with{sets}")
            }
            Some(difference) => difference,
            None if self.belongs_to(data, latent) => return Ok(()),
            None => "numbers of images, labels or latents are not those of the images".to_owned(),
        };
        Err(self.unfit(reason))
    }

    /// Whether there is a latent of the right dimensions for each image, and a class for each
    /// label.
    fn belongs_to(&self, data: &Data, latent: [usize; 3]) -> bool {
        let (sizes, inner) = (self.sizes(), &self.inner);
        let labels = inner.train_labels.iter().chain(&inner.validation_labels);
        (sizes.train, sizes.validation) == (data.train.len(), data.validation.len())
            && sizes.latent == latent
            && labels.max().is_none_or(|&label| (label as usize) < data.classes.len())
    }

    /// Reads row `index` of the latents that begin at byte `from`.
    fn row(&self, from: u64, index: usize) -> Result<Vec<f32>, DataError> {
        let header = &self.inner.header;
        let mut bytes = vec![0; header.sizes.values() * header.precision.bytes()];
        let at = from + index as u64 * bytes.len() as u64;
        self.read_at(&mut bytes, at).map_err(|e| DataError::io(&self.inner.path, "read", &e))?;
        Ok(header.precision.decode(&bytes))
    }

    /// Fills `bytes` from offset `at` of the file.
    #[cfg(unix)]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        self.inner.file.read_exact_at(bytes, at)
    }

    #[cfg(not(unix))]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
        let _turn = self.inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = &self.inner.file;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(bytes)
    }
}

impl Examples for Latents {
    fn len(&self) -> usize {
        self.sizes().train
    }

    fn values(&self) -> usize {
        self.sizes().values()
    }

    fn example(
        &self,
        index: usize,
        epoch: u64,
        _draws: &mut Stream,
    ) -> Result<(Vec<f32>, u32), DataError> {
        // There are as many labels as images: both are read by the header's count.
        Ok((self.training(index, epoch)?, self.inner.train_labels[index]))
    }
}

fn within(index: usize, len: usize) -> Result<(), DataError> {
    if index < len { Ok(()) } else { Err(DataError::OutOfBounds { index, len }) }
}

impl std::fmt::Debug for Latents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latents")
            .field("path", &self.inner.path)
            .field("sizes", &self.sizes())
            .finish_non_exhaustive()
    }
}
