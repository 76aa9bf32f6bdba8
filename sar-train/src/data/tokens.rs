//! Tokens of a data set in a file, for other programs.
//!
//! The file is safetensors: `labels [n]`, `validation [n]` (1 for held-out images), `ids [n, T]`, with the schedule and
//! [`Origin`] in the metadata. It may be larger than memory: rows are written one by one.

use super::rows::header::{self, About};
use super::rows::{Earlier, Plan, RowsWriter};
use super::{DataError, Origin};
use safetensors::tensor::Dtype;
use sar_math::ScaleSchedule;
use std::path::Path;

/// Key in the metadata.
const KEY: &str = "sar.tokens";
/// What else decides what they are.
const FLAGS: &str = "--schedule, --backend or --dtype";

/// A file being written. It is called `NAME.partial` until it is complete, and stays if it has tokens.
pub struct TokensWriter {
    /// The file: its rows are the tokens of an image each.
    pub rows: RowsWriter,
}

impl TokensWriter {
    /// Begins a file, or goes on with one; `None` where it is complete. `labels` are those of the training images and of
    /// the held-out ones.
    ///
    /// # Errors
    /// [`DataError::Partial`] for what an earlier call has left, if that is not to be lost or is something else;
    /// [`DataError::Io`] if there is no room or the file cannot be created; [`DataError::Shape`] for more tokens than a
    /// file can hold.
    pub fn open(
        path: &Path,
        origin: &Origin,
        schedule: &ScaleSchedule,
        [train, validation]: [Vec<u32>; 2],
        earlier: Earlier,
    ) -> Result<Option<Self>, DataError> {
        let (rows, tokens) = (train.len() + validation.len(), schedule.tokens());
        let tensors = [
            ("labels", Dtype::U32, vec![rows]),
            ("validation", Dtype::U32, vec![rows]),
            ("ids", Dtype::U32, vec![rows, tokens]),
        ];
        let too_many = |found| DataError::Shape {
            what: "tokens to be written",
            expected: "what a file can hold".to_owned(),
            found,
        };
        let about = About::text(origin).map_err(too_many)?;
        let metadata = [(KEY, about.as_str()), ("schedule", &schedule.to_string())];
        let header = header::encode(&tensors, &metadata).map_err(too_many)?;
        let held_out = train.iter().map(|_| 0).chain(validation.iter().map(|_| 1));
        let labels = train.iter().chain(&validation).copied().chain(held_out).collect();
        let plan = Plan { header, labels, row: size_of::<u32>() * tokens, rows };
        let differs = |found: &[u8]| header::difference(found, KEY, origin, "tokens", FLAGS);
        let rows = RowsWriter::open(path, plan, earlier, differs)?;
        Ok(rows.map(|rows| Self { rows }))
    }

    /// Appends the tokens `[b, T]` of the next images, which have these labels; training images first.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if there are more than announced at the beginning.
    pub fn push(&mut self, ids: &[u32], labels: &[u32]) -> Result<(), DataError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.rows.push(&bytes, self.rows.done(), labels)
    }
}
