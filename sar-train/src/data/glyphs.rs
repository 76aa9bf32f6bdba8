//! Glyph sheets: one PNG of 32×32 cells, a row per class, a column per font.
//!
//! The last 93 columns are for validation: whole fonts are held out, not single images.

use super::decode::{Picture, decode_bytes};
use super::{DataError, ImageFile};
use std::ops::Range;
use std::path::Path;

/// Side of a cell in pixels.
pub const CELL: usize = 32;
/// Number of columns at the right that are for validation.
pub const VALIDATION_COLUMNS: usize = 93;
/// Name of the embedded sheet: the letters A to J in 463 open fonts.
pub const BUILTIN: &str = "glyphs10";

static GLYPHS10: &[u8] = include_bytes!("../../../data/glyphs10.png");
/// Pixel limit for the embedded sheet, which is smaller than this.
const BUILTIN_PIXELS: u64 = 16_000_000;

/// A decoded sheet.
pub(crate) struct Sheet {
    pub(crate) name: String,
    /// Class names, one per row.
    pub(crate) classes: Vec<String>,
    columns: usize,
    picture: Picture,
}

impl Sheet {
    pub(super) fn cell(&self, row: usize, column: usize) -> Picture {
        self.picture.cell(column * CELL, row * CELL, CELL, CELL)
    }

    pub(super) fn train_columns(&self) -> Range<usize> {
        0..self.columns - VALIDATION_COLUMNS
    }

    pub(super) fn validation_columns(&self) -> Range<usize> {
        self.columns - VALIDATION_COLUMNS..self.columns
    }
}

/// Decodes an embedded sheet by name.
pub(super) fn builtin(name: &str) -> Result<Sheet, DataError> {
    if name != BUILTIN {
        let reason = format!("expected {BUILTIN:?}, found {name:?}");
        return Err(DataError::Config { key: "builtin", reason });
    }
    let picture = decode_bytes(GLYPHS10, BUILTIN_PIXELS)
        .map_err(|reason| DataError::BadImage { path: name.into(), reason })?;
    sheet(name.to_owned(), picture)
}

/// Decodes a sheet from a file.
pub(super) fn from_file(path: &Path, max_pixels: u64) -> Result<Sheet, DataError> {
    let picture = ImageFile::from(path.to_path_buf())
        .decode(max_pixels)
        .map_err(|reason| DataError::BadImage { path: path.to_path_buf(), reason })?;
    sheet(path.display().to_string(), picture)
}

fn sheet(name: String, picture: Picture) -> Result<Sheet, DataError> {
    let (width, height) = (picture.width(), picture.height());
    let (rows, columns) = (height / CELL, width / CELL);
    if rows * CELL != height || columns * CELL != width || columns <= VALIDATION_COLUMNS {
        let reason = format!(
            "expected whole cells of {CELL}×{CELL} pixels in more than {VALIDATION_COLUMNS} \
             columns, found {width}×{height} pixels"
        );
        return Err(DataError::BadSheet { name, reason });
    }
    Ok(Sheet { name, classes: class_names(rows), columns, picture })
}

/// Returns the class names: sheets of up to 36 rows show A–Z, then 0–9; rows of larger ones are
/// numbered.
fn class_names(rows: usize) -> Vec<String> {
    let characters = ('A'..='Z').chain('0'..='9');
    if rows <= 36 {
        characters.take(rows).map(String::from).collect()
    } else {
        (0..rows).map(|r| r.to_string()).collect()
    }
}
