//! List files: lines of `relative/path label`, as the published loaders read `train.txt`.
//!
//! Paths are relative to the list's folder and may contain blanks: a line is split at its last tab, or else at its last
//! blank. Of a `.csv` file the first two columns count, separated by commas or semicolons; if its first line names no
//! image, that is its header. Backslashes in paths stand for slashes where that leads to a file.
//!
//! Labels are whole numbers from 0; or none is a number, and they name classes, which are numbered in alphabetical order.
//! Empty lines and lines beginning with `#` are ignored. A `val.txt` (or `valid.txt`, `validation.txt`) next to a
//! `train.txt` names the validation images.

use super::folder::is_image;
use super::{DataError, ImageFile, Listing};
use crate::files::has_extension;
use std::path::{Path, PathBuf};

/// Limit of labels if the number of classes is not given; a higher one is taken for a mistake in
/// the file.
pub(super) const MOST_CLASSES_BY_DEFAULT: usize = 1 << 20;

/// Names of a list of validation images.
const VALIDATION: [&str; 3] = ["val.txt", "valid.txt", "validation.txt"];

/// Reads a list file; labels that are numbers must lie below `num_classes` if given.
pub(super) fn list(path: &Path, num_classes: Option<usize>) -> Result<Listing, DataError> {
    let list = List::read(path)?;
    let classes = Classes::of(&list, num_classes)?;
    let paired = path.file_name().is_some_and(|n| n == "train.txt");
    let beside = VALIDATION.map(|name| path.with_file_name(name));
    let beside = beside.into_iter().find(|list| paired && list.is_file());
    let validation = beside.map(|beside| List::read(&beside)?.labelled(&classes)).transpose()?;
    Ok(Listing {
        root: path.to_path_buf(),
        kind: "list file",
        train: list.labelled(&classes)?,
        validation,
        classes: classes.names(),
        loose: Vec::new(),
        empty: Vec::new(),
    })
}

/// A list file as read.
struct List<'a> {
    path: &'a Path,
    lines: Vec<Line>,
}

struct Line {
    number: usize,
    file: String,
    label: String,
}

impl<'a> List<'a> {
    fn read(path: &'a Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|e| DataError::io(path, "read", &e))?;
        let text = String::from_utf8(bytes).map_err(|_| DataError::Io {
            path: path.to_path_buf(),
            action: "read",
            reason: "not text in UTF-8; expected a folder, a list of `relative/path label` lines, \
                     a tar archive or a PNG glyph sheet"
                .into(),
        })?;
        let mut list = Self { path, lines: Vec::new() };
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.lines().map(str::trim).zip(1..);
        let lines = lines.filter(|(line, _)| !(line.is_empty() || line.starts_with('#')));
        let mut lines = lines.peekable();
        let first = lines.peek().map_or(("", 0), |first| *first);
        let separator = separator_of(first.0).filter(|_| has_extension(path, "csv"));
        let folder = path.parent().unwrap_or(Path::new(""));
        for (line, number) in lines {
            let found = match separator {
                Some(separator) => columns(line, separator),
                None => at_last_blank(line),
            };
            let names_none = |file: &str| {
                let first = separator.is_some() && number == first.1;
                first && !is_image(Path::new(file)) && !within(folder, file).is_file()
            };
            match found {
                // The header of a table.
                Some((file, _)) if names_none(&file) => {}
                Some((file, label)) => list.lines.push(Line { number, file, label }),
                None => return Err(list.bad(number, format!("no label after {line:?}"))),
            }
        }
        if list.lines.is_empty() {
            let hint = " named in lines of `relative/path label`";
            return Err(DataError::Empty { path: path.to_path_buf(), hint });
        }
        Ok(list)
    }

    /// The images with their labels among `classes`.
    fn labelled(&self, classes: &Classes) -> Result<Vec<(ImageFile, u32)>, DataError> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let labelled = |line: &Line| {
            let label = match classes {
                Classes::Numbered(classes) => self.numbered(line, *classes)?,
                Classes::Named(names) => match names.binary_search(&line.label) {
                    Ok(label) => label as u32,
                    Err(_) => {
                        let reason = format!("label {:?} is no class of the list", line.label);
                        return Err(self.bad(line.number, reason));
                    }
                },
            };
            Ok((within(folder, &line.file).into(), label))
        };
        self.lines.iter().map(labelled).collect()
    }

    /// The label of a line where labels are numbers.
    fn numbered(&self, line: &Line, classes: usize) -> Result<u32, DataError> {
        let label: u64 = line.label.parse().map_err(|_| {
            let reason = format!("label {:?} is not a whole number from 0", line.label);
            self.bad(line.number, reason)
        })?;
        match u32::try_from(label) {
            Ok(label) if (label as usize) < classes => Ok(label),
            _ => {
                let path = self.path.to_path_buf();
                Err(DataError::LabelOutOfRange { path, line: line.number, label, classes })
            }
        }
    }

    fn bad(&self, line: usize, reason: String) -> DataError {
        DataError::BadLine { path: self.path.to_path_buf(), line, reason }
    }
}

/// Splits a line at its last tab, or else at its last blank.
fn at_last_blank(line: &str) -> Option<(String, String)> {
    let (file, label) = line.rsplit_once('\t').or_else(|| line.rsplit_once(char::is_whitespace))?;
    Some((file.trim_end().to_owned(), label.trim_start().to_owned()))
}

/// What separates the columns of a table, by one of its lines: of commas and semicolons what comes first, quotes aside.
fn separator_of(line: &str) -> Option<char> {
    let mut quoted = false;
    line.chars().find(|&letter| {
        quoted ^= letter == '"';
        !quoted && matches!(letter, ',' | ';')
    })
}

/// Returns the first two columns of a line of a table; what is quoted may have the separator in it.
fn columns(line: &str, separator: char) -> Option<(String, String)> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                fields.last_mut()?.push('"');
            }
            '"' => quoted = !quoted,
            other if other == separator && !quoted => fields.push(String::new()),
            other => fields.last_mut()?.push(other),
        }
    }
    let mut fields = fields.iter().map(|field| field.trim().to_owned());
    Some((fields.next()?, fields.next().filter(|label| !label.is_empty())?))
}

/// The place of a listed file. Lists that were written on Windows have backslashes in it.
fn within(folder: &Path, file: &str) -> PathBuf {
    let path = folder.join(file);
    let other = folder.join(file.replace('\\', "/"));
    if file.contains('\\') && !path.exists() && other.exists() { other } else { path }
}

/// The classes of a list.
enum Classes {
    /// So many, named by their numbers.
    Numbered(usize),
    /// In alphabetical order.
    Named(Vec<String>),
}

impl Classes {
    /// A number of any kind, or what could be the end of a path, is no name of a class.
    fn of(list: &List<'_>, num_classes: Option<usize>) -> Result<Self, DataError> {
        let is_name = |Line { label, .. }: &Line| {
            let spelt = label.chars().any(char::is_alphabetic) && label.parse::<f64>().is_err();
            spelt && !is_image(Path::new(label))
        };
        if list.lines.iter().all(is_name) {
            let mut names: Vec<String> = list.lines.iter().map(|l| l.label.clone()).collect();
            names.sort_unstable();
            names.dedup();
            return Ok(Self::Named(names));
        }
        let most = num_classes.unwrap_or(MOST_CLASSES_BY_DEFAULT);
        let mut highest = 0;
        for line in &list.lines {
            highest = highest.max(list.numbered(line, most)?);
        }
        Ok(Self::Numbered(num_classes.unwrap_or(highest as usize + 1)))
    }

    fn names(self) -> Vec<String> {
        match self {
            Self::Numbered(classes) => (0..classes).map(|class| class.to_string()).collect(),
            Self::Named(names) => names,
        }
    }
}
