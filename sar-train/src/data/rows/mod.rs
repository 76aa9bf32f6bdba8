//! Safetensors files that are written row by row, and gone on with after an interruption.
//!
//! The labels come first, then the rows. Until it has all rows, a file is called `NAME.partial`, and its length says how
//! many there are: rows are only ever appended.

pub(crate) mod header;

use super::DataError;
use crate::files::{behind, folder_of, is_special, put_over};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Errors that mean that there is no room for a file of this size, whatever the file system.
const NO_ROOM: [ErrorKind; 3] =
    [ErrorKind::StorageFull, ErrorKind::FileTooLarge, ErrorKind::QuotaExceeded];

/// Advice where a complete file is something else.
const REPLACE: &str = "; choose another --out, or replace it with --force; --force --resume goes on with what is begun in its place";
/// What is said of a file that is left from an interrupted call.
const LEFT: &str = "an interrupted call has left its rows here; go on after them with --resume, or begin anew with --force";
/// What is said of a complete file in the way.
const THERE: &str = "it exists; choose another name, or replace it with --force";

/// What to do with what earlier calls have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Go on after the rows of an interrupted call.
    pub go_on: bool,
    /// Replace a complete file and, without `go_on`, those rows.
    pub replace: bool,
}

/// What a file of rows holds.
pub(super) struct Plan {
    /// The header, its length included.
    pub(super) header: Vec<u8>,
    /// Labels, or other numbers of images, that follow the header, as far as they are known before the rows are made.
    pub(super) labels: Vec<u32>,
    /// Bytes of a row.
    pub(super) row: usize,
    /// Number of rows.
    pub(super) rows: usize,
}

impl Plan {
    /// Byte at which the rows begin.
    fn start(&self) -> u64 {
        (self.header.len() + 4 * self.labels.len()) as u64
    }

    /// Byte at which row `row` begins.
    fn at(&self, row: usize) -> u64 {
        self.start() + (row * self.row) as u64
    }
}

/// What an earlier call has left of a file.
enum Left {
    /// A part of what comes before the rows, or nothing.
    Nothing,
    /// This number of rows of the same file.
    Rows(usize),
    /// Another file, which has this header.
    Other(Vec<u8>),
}

/// A file of rows being written.
pub struct RowsWriter {
    path: PathBuf,
    partial: PathBuf,
    to: BufWriter<File>,
    plan: Plan,
    done: usize,
}

fn unfit<T>(path: &Path, reason: impl Into<String>) -> Result<T, DataError> {
    Err(DataError::Partial { path: path.to_owned(), reason: reason.into() })
}

impl RowsWriter {
    /// Begins a file, or goes on with the rows of an interrupted call; `None` where all of them are there. Checks that
    /// there is room for all rows. `differs` says what another file is, by the text of its header.
    ///
    /// # Errors
    /// [`DataError::Partial`] where what an earlier call has left is in the way, is of something else, or is being
    /// written, or if `path` is a pipe or a device; [`DataError::Io`] if there is no room or the file cannot be created.
    pub(super) fn open(
        path: &Path,
        plan: Plan,
        earlier: Earlier,
        differs: impl Fn(&[u8]) -> String,
    ) -> Result<Option<Self>, DataError> {
        if is_special(path) {
            return unfit(path, "it is a pipe or a device, and rows need a file");
        }
        let path = behind(path);
        let partial = with_suffix(&path, ".partial");
        // What was begun in place of a complete file is gone on with, also where that is the same.
        let begun = earlier.replace && partial.exists();
        match complete(&path, &plan)? {
            Left::Rows(rows) if earlier.go_on && !begun && rows == plan.rows => return Ok(None),
            Left::Nothing => {}
            _ if earlier.replace => {}
            Left::Other(header) if earlier.go_on => {
                return unfit(&path, differs(&header) + REPLACE);
            }
            _ => return unfit(&path, THERE),
        }
        let broken = |e: io::Error| DataError::io(&partial, "write", &e);
        let mut file = locked(&partial)?;
        let done = match left(&plan, &mut file).map_err(broken)? {
            Left::Rows(rows) if earlier.go_on => rows,
            Left::Other(header) if earlier.go_on => {
                return unfit(&partial, differs(&header) + "; begin anew with --force alone");
            }
            Left::Rows(1..) | Left::Other(_) if !earlier.replace => return unfit(&partial, LEFT),
            Left::Nothing | Left::Rows(_) | Left::Other(_) => 0,
        };
        let mut writer = Self { path, to: BufWriter::new(file), plan, done, partial };
        // Another call may have finished it in the meantime.
        if !earlier.replace && !matches!(complete(&writer.path, &writer.plan)?, Left::Nothing) {
            return unfit(&writer.path, THERE);
        }
        writer.begin().map_err(|e| DataError::io(&writer.partial, "write", &e))?;
        Ok(Some(writer))
    }

    /// Checks that there is room for all rows, and makes the file one of those that are kept.
    fn begin(&mut self) -> io::Result<()> {
        let Self { plan, to, done, partial, .. } = self;
        let (file, kept) = (to.get_mut(), if *done == 0 { 0 } else { plan.at(*done) });
        // What is begun anew makes room of what there was.
        file.set_len(kept)?;
        has_room(folder_of(partial), plan.at(plan.rows) - kept)?;
        file.seek(SeekFrom::Start(0))?;
        if *done == 0 {
            let labels: Vec<u8> = plan.labels.iter().flat_map(|n| n.to_le_bytes()).collect();
            file.write_all(&plan.header)?;
            return file.write_all(&labels);
        }
        let mut labels = vec![0; 4 * plan.labels.len()];
        file.seek(SeekFrom::Start(plan.header.len() as u64))?;
        file.read_exact(&mut labels)?;
        plan.labels = labels.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        file.seek(SeekFrom::End(0)).map(drop)
    }

    /// Number of rows that have been written.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Writes what is still in memory; returns the number of rows that the file has then.
    pub fn kept(&mut self) -> usize {
        let _ = self.to.flush();
        let length = self.to.get_ref().metadata().map_or(0, |found| found.len());
        let rows = length.saturating_sub(self.plan.start()) as usize / self.plan.row.max(1);
        rows.min(self.done)
    }

    /// The file that has the rows until all are written.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Drops all rows but the first `rows`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn cut(&mut self, rows: usize) -> Result<(), DataError> {
        self.done = self.done.min(rows);
        let end = self.plan.at(self.done);
        let cut = self.to.flush().and_then(|()| self.to.get_ref().set_len(end));
        let cut = cut.and_then(|()| self.to.seek(SeekFrom::Start(end)));
        cut.map(drop).map_err(|e| DataError::io(&self.partial, "write", &e))
    }

    /// Appends whole rows, and sets the labels from number `first` on.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if there are parts of rows, not a label for each, or more than were
    /// planned.
    pub(super) fn push(
        &mut self,
        rows: &[u8],
        first: usize,
        labels: &[u32],
    ) -> Result<(), DataError> {
        let Plan { row, rows: most, labels: all, .. } = &self.plan;
        let (count, rest) = (rows.len() / row, rows.len() % row);
        let fits = self.done + count <= *most && first + labels.len() <= all.len();
        if rest > 0 || labels.len() != count || !fits {
            let expected =
                format!("{} rows of {row} bytes, {} labels", most - self.done, all.len());
            let found = format!("{} bytes, labels {first} to {}", rows.len(), first + labels.len());
            return Err(DataError::Shape { what: "rows to be written", expected, found });
        }
        let written = self.set_labels(first, labels).and_then(|()| self.to.write_all(rows));
        written.map_err(|e| DataError::io(&self.partial, "write", &e))?;
        self.done += count;
        Ok(())
    }

    fn set_labels(&mut self, first: usize, labels: &[u32]) -> io::Result<()> {
        let planned = &mut self.plan.labels[first..first + labels.len()];
        // Only where an image that cannot be read has another in its place.
        if planned == labels {
            return Ok(());
        }
        planned.copy_from_slice(labels);
        let bytes: Vec<u8> = labels.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.to.seek(SeekFrom::Start((self.plan.header.len() + 4 * first) as u64))?;
        self.to.write_all(&bytes)?;
        self.to.seek(SeekFrom::Start(self.plan.at(self.done))).map(drop)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if rows are missing.
    pub fn finish(mut self) -> Result<(), DataError> {
        let (expected, found) = (self.plan.rows, self.done);
        if expected != found {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(DataError::Shape { what: "rows to be written", expected, found });
        }
        let put = self.to.flush();
        let put = put.and_then(|()| put_over(self.to.get_ref(), &self.partial, &self.path));
        put.map_err(|e| DataError::io(&self.path, "write", &e))
    }
}

impl Drop for RowsWriter {
    fn drop(&mut self) {
        // Not those of another call: the file is locked. One that is finished has another name.
        if self.done == 0 {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Opens the file of an unfinished call, or a new one, and keeps others from writing it.
fn locked(partial: &Path) -> Result<File, DataError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(partial);
    let file = file.map_err(|e| DataError::io(partial, "write", &e))?;
    // One that has another name by now has just been finished.
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !is_at(&file, partial) {
        return unfit(partial, "another `sar` writes it; wait until it has ended");
    }
    Ok(file)
}

/// Whether an open file is the one at a path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let place = |found: io::Result<std::fs::Metadata>| found.ok().map(|f| (f.dev(), f.ino()));
    place(file.metadata()) == place(std::fs::metadata(path))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Whether so many bytes fit, tried on a file of their own: a failure may leave that one larger than before.
fn has_room(folder: &Path, bytes: u64) -> io::Result<()> {
    let Ok(trial) = tempfile::tempfile_in(folder) else { return Ok(()) };
    match fs4::FileExt::allocate(&trial, bytes) {
        Err(e) if NO_ROOM.contains(&e.kind()) => Err(e),
        // A file system that cannot reserve space reports an error later, when it is full.
        _ => Ok(()),
    }
}

/// Reads what is under a file's own name. An empty file is nothing.
fn complete(path: &Path, plan: &Plan) -> Result<Left, DataError> {
    let broken = |e: io::Error| DataError::io(path, "read", &e);
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Left::Nothing),
        Err(e) => Err(broken(e)),
        Ok(mut file) if file.metadata().map_err(broken)?.len() > 0 => {
            Ok(match left(plan, &mut file).map_err(broken)? {
                // A part of a header is no file of this program's.
                Left::Nothing => Left::Other(Vec::new()),
                found => found,
            })
        }
        Ok(_) => Ok(Left::Nothing),
    }
}

/// Reads what an earlier call has left in a file.
fn left(plan: &Plan, file: &mut File) -> io::Result<Left> {
    let length = file.metadata()?.len();
    let mut beginning = Vec::new();
    io::Read::take(&mut *file, plan.header.len() as u64).read_to_end(&mut beginning)?;
    if !plan.header.starts_with(&beginning) {
        file.seek(SeekFrom::Start(0))?;
        return Ok(Left::Other(header::read(file).unwrap_or_default()));
    }
    Ok(length.checked_sub(plan.start()).map_or(Left::Nothing, |bytes| {
        Left::Rows(((bytes / plan.row.max(1) as u64) as usize).min(plan.rows))
    }))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
