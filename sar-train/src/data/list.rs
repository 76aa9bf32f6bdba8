//! List files: lines of `relative/path label`, as the published loaders read `train.txt`.
//!
//! Paths are relative to the list's folder and may contain blanks: a line is split at its last one.
//! Labels are whole numbers from 0. Empty lines and lines beginning with `#` are ignored. A
//! `val.txt` (or `valid.txt`, `validation.txt`) next to a `train.txt` names the validation images.

use super::{DataError, ImageFile, Listing};
use std::path::Path;

/// Limit of labels if the number of classes is not given; a higher one is taken for a mistake in
/// the file.
pub(super) const MOST_CLASSES_BY_DEFAULT: usize = 1 << 20;

/// Names of a list of validation images.
const VALIDATION: [&str; 3] = ["val.txt", "valid.txt", "validation.txt"];

/// Reads a list file; labels must lie below `num_classes` if given.
pub(super) fn list(path: &Path, num_classes: Option<usize>) -> Result<Listing, DataError> {
    let train = read(path, num_classes.unwrap_or(MOST_CLASSES_BY_DEFAULT))?;
    let highest = train.iter().map(|&(_, label)| label as usize).max().unwrap_or(0);
    let classes = num_classes.unwrap_or(highest + 1);
    let paired = path.file_name().is_some_and(|n| n == "train.txt");
    let beside = VALIDATION.map(|name| path.with_file_name(name));
    let beside = beside.into_iter().find(|list| paired && list.is_file());
    let validation = beside.map(|list| read(&list, classes)).transpose()?;
    Ok(Listing {
        root: path.to_path_buf(),
        kind: "list file",
        classes: (0..classes).map(|c| c.to_string()).collect(),
        train,
        validation,
        loose: Vec::new(),
        empty: Vec::new(),
    })
}

fn read(path: &Path, classes: usize) -> Result<Vec<(ImageFile, u32)>, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::io(path, "read", &e))?;
    let text = String::from_utf8(bytes).map_err(|_| DataError::Io {
        path: path.to_path_buf(),
        action: "read",
        reason: "not text; expected a folder, a list of `relative/path label` lines, \
                 a tar archive or a PNG glyph sheet"
            .into(),
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            let (file, label) = entry(path, i + 1, line, classes)?;
            files.push((folder.join(file).into(), label));
        }
    }
    if files.is_empty() {
        let hint = " named in lines of `relative/path label`";
        return Err(DataError::Empty { path: path.to_path_buf(), hint });
    }
    Ok(files)
}

fn entry<'a>(
    path: &Path,
    line: usize,
    text: &'a str,
    classes: usize,
) -> Result<(&'a str, u32), DataError> {
    let bad = |reason: String| DataError::BadLine { path: path.to_path_buf(), line, reason };
    let Some((file, label)) = text.rsplit_once(char::is_whitespace) else {
        return Err(bad(format!("no label after {text:?}")));
    };
    let number: u64 =
        label.parse().map_err(|_| bad(format!("label {label:?} is not a whole number from 0")))?;
    match u32::try_from(number) {
        Ok(label) if (label as usize) < classes => Ok((file.trim_end(), label)),
        _ => {
            let path = path.to_path_buf();
            Err(DataError::LabelOutOfRange { path, line, label: number, classes })
        }
    }
}
