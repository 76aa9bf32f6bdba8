//! Errors of data.

use super::BadImage;
use std::path::PathBuf;

/// Why data cannot be used. The message says what to do next.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A key of the configuration has an impossible value.
    #[error("data.{key}: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// There is nothing at the path.
    #[error("{}: no such file or folder; check the path", path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// A file or folder cannot be read or written.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The system's message.
        reason: String,
    },
    /// An example whose length differs from the others of its loader.
    #[error("example {index} has {found} values, expected {expected}")]
    Example {
        /// Index of the example.
        index: usize,
        /// Number of values that all examples should have.
        expected: usize,
        /// Number of values that it has.
        found: usize,
    },
    /// Class folders without images.
    #[error(
        "{}: no images in {count} of the class folders ({named}); expected PNG, JPEG or WebP files; \
         add images to them, remove them, or leave them out with --skip-bad-images", path.display()
    )]
    EmptyClasses {
        /// The folder that contains the class folders.
        path: PathBuf,
        /// Number of empty class folders.
        count: usize,
        /// The names of the first of them.
        named: String,
    },
    /// No images at all.
    #[error("{}: no images here; expected PNG, JPEG or WebP files{hint}", path.display())]
    Empty {
        /// The folder or list.
        path: PathBuf,
        /// What to do next, beginning with punctuation; may be empty.
        hint: &'static str,
    },
    /// Two folders that could both be the same part of the data.
    #[error(
        "{}: {found} are names of one and the same part of the data; leave one of them there",
        path.display()
    )]
    SeveralParts {
        /// The folder that holds them.
        path: PathBuf,
        /// Their names.
        found: String,
    },
    /// Loose images, without class folders or labels.
    #[error(
        "{}: images, but {missing}, \
         or do without classes: train with --set data.unlabelled=true (`sar data check`: --unlabelled)", path.display()
    )]
    NoClasses {
        /// The folder or archive.
        path: PathBuf,
        /// What is missing, and what to do about it.
        missing: &'static str,
    },
    /// Only one class where a class-conditional model needs two.
    #[error(
        "{}: only one class ({class:?}){}; expected at least two; {}\
         if one class is meant, train with --set data.allow_one_class=true", path.display(), without(*bad), within
    )]
    OneClass {
        /// The source.
        path: PathBuf,
        /// Its only class.
        class: String,
        /// Number of bad images left out, including those of other classes.
        bad: usize,
        /// Advice where its folder holds others, which may be the classes.
        within: String,
    },
    /// A validation class that training does not have.
    #[error(
        "{}: class {class:?} is not among the {known} training classes; \
         remove it or add it to training", path.display()
    )]
    UnknownClass {
        /// The validation folder or list.
        path: PathBuf,
        /// The class found.
        class: String,
        /// Number of training classes.
        known: usize,
    },
    /// A label at or above the number of classes.
    #[error(
        "{}: label {label} is out of range; expected 0 to {}{} (data.num_classes)", path.display(),
        classes.saturating_sub(1), at_line(*line)
    )]
    LabelOutOfRange {
        /// The list file, or the folder with too many classes.
        path: PathBuf,
        /// Line, counted from 1; 0 if the source has no lines.
        line: usize,
        /// The label found.
        label: u64,
        /// The number of classes.
        classes: usize,
    },
    /// A line of a list file that is not `path label`.
    #[error("{}:{line}: {reason}; expected `relative/path label`", path.display())]
    BadLine {
        /// The list file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An archive, or a file in it, that cannot be used.
    #[error("{}: {reason}", path.display())]
    Archive {
        /// The archive, or the archive's path joined with the name of a file in it.
        path: PathBuf,
        /// What was expected and found, and what to do.
        reason: String,
    },
    /// A glyph sheet whose size does not fit its grid.
    #[error("{name}: not a glyph sheet: {reason}")]
    BadSheet {
        /// The file, or the name of the embedded sheet.
        name: String,
        /// What was expected and found.
        reason: String,
    },
    /// An image that cannot be used.
    #[error("{}: {reason}; repair or remove it, or pass --skip-bad-images", path.display())]
    BadImage {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: BadImage,
    },
    /// Every image is bad.
    #[error(
        "{}: none of the {count} images can be used; the first, {}: {reason}",
        path.display(), first.display()
    )]
    AllBad {
        /// The source.
        path: PathBuf,
        /// Number of images tried.
        count: usize,
        /// The first of them.
        first: PathBuf,
        /// Why the first one is bad.
        reason: BadImage,
    },
    /// An index beyond the end of a data set.
    #[error("image {index} of a data set of {len}")]
    OutOfBounds {
        /// The index asked for.
        index: usize,
        /// Number of images.
        len: usize,
    },
    /// An array whose length does not fit its shape, or a picture too large to draw.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// What was to be drawn or written.
        what: &'static str,
        /// The length or size expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An `.npz` file that does not hold what was requested.
    #[error("{}: not usable: {reason}", path.display())]
    Npz {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// A file that does not hold the requested latents.
    #[error("{}: {reason}; `sar tokenizer encode TOKENIZER --latents` makes such a file", path.display())]
    Latents {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A file of rows that cannot be begun or gone on with.
    #[error("{}: {reason}", path.display())]
    Partial {
        /// The file.
        path: PathBuf,
        /// What was found, and what to do.
        reason: String,
    },
    /// A decoding thread could not be started or died.
    #[error("decoding thread: {reason}")]
    Worker {
        /// What happened.
        reason: String,
    },
}

/// Returns a note that bad images were left out, if there were any.
fn without(bad: usize) -> String {
    if bad == 0 { String::new() } else { format!(" without the {bad} bad images") }
}

impl DataError {
    /// Converts a file system error; a path that does not exist becomes [`DataError::Missing`].
    pub(crate) fn io(path: &std::path::Path, action: &'static str, error: &std::io::Error) -> Self {
        let path = path.to_path_buf();
        match error.kind() {
            std::io::ErrorKind::NotFound if action == "read" => Self::Missing { path },
            _ => Self::Io { path, action, reason: error.to_string() },
        }
    }
}

fn at_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(" (line {line})") }
}
