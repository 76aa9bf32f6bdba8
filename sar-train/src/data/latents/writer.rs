//! Writes latents as they are encoded.

use super::{Origin, Precision, header};
use crate::data::DataError;
use crate::data::rows::{Earlier, Plan, RowsWriter};
use std::path::Path;

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

    /// Number of the label of the latent in row `row`: training images first.
    fn label(&self, row: usize) -> usize {
        match row.checked_sub(self.views * self.train) {
            Some(held_out) => self.train + held_out,
            None => row % self.train.max(1),
        }
    }
}

/// A file being written. It is called `NAME.partial` until it is complete, and stays if it has latents.
pub struct LatentsWriter {
    /// The file: its rows are the latents.
    pub rows: RowsWriter,
    sizes: Sizes,
    precision: Precision,
}

impl LatentsWriter {
    /// Begins a file, or goes on with one; `None` where it is complete. `labels` are those of the training images, then of
    /// the held-out ones.
    ///
    /// # Errors
    /// [`DataError::Partial`] for what an earlier call has left, if that is not to be lost or is something else;
    /// [`DataError::Io`] if there is no room or the file cannot be created; [`DataError::Shape`] for another number of
    /// labels; [`DataError::Latents`] for more latents than a file can hold.
    pub fn open(
        path: &Path,
        origin: &Origin,
        sizes: Sizes,
        precision: Precision,
        labels: Vec<u32>,
        earlier: Earlier,
    ) -> Result<Option<Self>, DataError> {
        let (expected, found) = (sizes.train + sizes.validation, labels.len());
        if expected != found {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(DataError::Shape { what: "labels to be written", expected, found });
        }
        let unusable = |reason: String| DataError::Latents { path: path.to_owned(), reason };
        let header = header::encode(origin, sizes, precision).map_err(unusable)?;
        let row = sizes.values() * precision.bytes();
        let plan = Plan { header, labels, row, rows: sizes.rows() };
        let rows =
            RowsWriter::open(path, plan, earlier, |found| header::difference(found, origin))?;
        Ok(rows.map(|rows| Self { rows, sizes, precision }))
    }

    /// Appends the next latents, of images with these labels: view by view, then those of held-out images.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if there are more than announced at the beginning.
    pub fn push(&mut self, latents: &[f32], labels: &[u32]) -> Result<(), DataError> {
        let first = self.sizes.label(self.rows.done());
        self.rows.push(&self.precision.encode(latents), first, labels)
    }
}
