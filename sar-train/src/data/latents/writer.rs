//! Writes latents as they are encoded.

use super::{Origin, Precision, header};
use crate::data::DataError;
use crate::files::{beside, is_special, put};
use std::io::{self, BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Errors that mean that there is no room for a file of this size, whatever the file system.
const NO_ROOM: [ErrorKind; 3] =
    [ErrorKind::StorageFull, ErrorKind::FileTooLarge, ErrorKind::QuotaExceeded];

/// Number of latents in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Number of views of each training image.
    pub views: usize,
    /// Number of training images.
    pub train: usize,
    /// Number of held-out images.
    pub validation: usize,
    /// Channels, height and width of a latent.
    pub latent: [usize; 3],
}

impl Sizes {
    /// Number of values of a latent.
    pub fn values(&self) -> usize {
        self.latent.iter().product()
    }

    /// Total number of latents.
    pub fn rows(&self) -> usize {
        self.views * self.train + self.validation
    }
}

/// A file being written; it appears under its name once it is complete.
pub struct LatentsWriter {
    path: PathBuf,
    to: BufWriter<NamedTempFile>,
    sizes: Sizes,
    precision: Precision,
    /// Number of values still to be written.
    missing: usize,
}

impl LatentsWriter {
    /// Begins a temporary file in the folder of `path` and reserves disk space for all of it.
    ///
    /// # Errors
    /// [`DataError::Io`] if there is no room or the file cannot be created, [`DataError::Latents`]
    /// if `path` is a pipe or a device.
    pub fn create(
        path: &Path,
        origin: &Origin,
        sizes: Sizes,
        precision: Precision,
    ) -> Result<Self, DataError> {
        let unusable = |reason: String| DataError::Latents { path: path.to_owned(), reason };
        if is_special(path) {
            return Err(unusable("it is a pipe or a device, and latents need a file".to_owned()));
        }
        let (header, data) = header::encode(origin, sizes, precision).map_err(unusable)?;
        let begin = || -> io::Result<_> {
            let file = beside(path)?;
            let room = (header.len() + data) as u64;
            match fs4::FileExt::allocate(file.as_file(), room) {
                Err(e) if NO_ROOM.contains(&e.kind()) => return Err(e),
                // A file system that cannot reserve space reports an error later, when it is full.
                _ => {}
            }
            let mut to = BufWriter::new(file);
            to.write_all(&header)?;
            Ok(to)
        };
        let to = begin().map_err(|e| DataError::io(path, "write", &e))?;
        let missing = sizes.rows() * sizes.values();
        Ok(Self { path: path.to_owned(), to, sizes, precision, missing })
    }

    /// Appends the next latents: view by view, then those of held-out images.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if there are more than announced at the beginning.
    pub fn push(&mut self, latents: &[f32]) -> Result<(), DataError> {
        let left = self.missing.checked_sub(latents.len());
        self.missing = left.ok_or_else(|| self.counts(self.missing, latents.len()))?;
        let bytes = self.precision.encode(latents);
        self.to.write_all(&bytes).map_err(|e| DataError::io(&self.path, "write", &e))
    }

    /// Appends the labels, training images first, and gives the file its name.
    ///
    /// # Errors
    /// As for [`LatentsWriter::push`], and if latents or labels are missing.
    pub fn finish(self, train: &[u32], validation: &[u32]) -> Result<(), DataError> {
        if self.missing > 0 {
            return Err(self.counts(0, self.missing));
        }
        for (expected, labels) in [(self.sizes.train, train), (self.sizes.validation, validation)] {
            if labels.len() != expected {
                return Err(self.counts(expected, labels.len()));
            }
        }
        let Self { path, mut to, .. } = self;
        let labels: Vec<u8> =
            train.iter().chain(validation).flat_map(|label| label.to_le_bytes()).collect();
        to.write_all(&labels)
            .and_then(|()| to.into_inner().map_err(|e| e.into_error()))
            .and_then(|file| put(file, &path, true))
            .map_err(|e| DataError::io(&path, "write", &e))
    }

    fn counts(&self, expected: usize, found: usize) -> DataError {
        DataError::Shape {
            what: "latents to be written",
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
