//! Safetensors files that are written row by row, and gone on with after an interruption.
//!
//! The labels come first, then the rows. Until it has all rows, a file is called `NAME.partial`, and its length says how
//! many there are: rows are only ever appended.

pub(crate) mod header;

use super::DataError;
use crate::files::{behind, is_special, put_over};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Errors that mean that there is no room for a file of this size, whatever the file system.
const NO_ROOM: [ErrorKind; 3] =
    [ErrorKind::StorageFull, ErrorKind::FileTooLarge, ErrorKind::QuotaExceeded];

/// Advice where a complete file is something else.
const REPLACE: &str = "; replace it with --force, or choose another --out";
/// What a file says that is left from an interrupted call.
const LEFT: &str = "an interrupted call has left its rows here; go on after them with --resume, or begin anew with --force";

/// What to do with the rows that an interrupted call has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing: they are not to be lost.
    Refuse,
    /// Go on after them.
    GoOn,
    /// Begin anew.
    Replace,
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
    /// No rows.
    Nothing,
    /// This number of rows of the same file.
    Rows(usize),
    /// Rows of another file, which has this header.
    Other(Vec<u8>),
}

/// A file of rows being written.
pub(super) struct RowsWriter {
    path: PathBuf,
    partial: PathBuf,
    to: BufWriter<File>,
    plan: Plan,
    done: usize,
}

impl RowsWriter {
    /// Begins a file, or goes on with the rows of an interrupted call; `None` where that has written all of them. Checks
    /// that there is room for all rows. `differs` says what another file is, by the text of its header.
    ///
    /// # Errors
    /// [`DataError::Partial`] where an earlier call's rows are in the way, are of something else, or are being written, or
    /// if `path` is a pipe or a device; [`DataError::Io`] if there is no room or the file cannot be created.
    pub(super) fn open(
        path: &Path,
        plan: Plan,
        earlier: Earlier,
        differs: impl Fn(&[u8]) -> String,
    ) -> Result<Option<Self>, DataError> {
        let unfit = |path: &Path, reason| Err(DataError::Partial { path: path.to_owned(), reason });
        if is_special(path) {
            return unfit(path, "it is a pipe or a device, and rows need a file".to_owned());
        }
        let path = behind(path);
        if let (Earlier::GoOn, Ok(mut file)) = (earlier, File::open(&path)) {
            return match left(&plan, &mut file).map_err(|e| DataError::io(&path, "read", &e))? {
                Left::Rows(rows) if rows == plan.rows => Ok(None),
                Left::Other(header) => unfit(&path, differs(&header) + REPLACE),
                _ => unfit(&path, format!("it is no file that could be gone on with{REPLACE}")),
            };
        }
        let partial = with_suffix(&path, ".partial");
        let broken = |e: io::Error| DataError::io(&partial, "write", &e);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(broken)?;
        // One that is not there any more has just got its name.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) || !partial.exists() {
            return unfit(&partial, "another `sar` writes it; wait until it has ended".to_owned());
        }
        let done = match (earlier, left(&plan, &mut file).map_err(broken)?) {
            (Earlier::Replace, _) | (_, Left::Nothing) => 0,
            (Earlier::GoOn, Left::Rows(rows)) => rows,
            (Earlier::GoOn, Left::Other(header)) => {
                return unfit(&partial, differs(&header) + "; begin anew with --force");
            }
            (Earlier::Refuse, _) => {
                return unfit(&partial, LEFT.to_owned());
            }
        };
        let mut writer = Self { path, to: BufWriter::new(file), plan, done, partial };
        writer.begin().map_err(|e| DataError::io(&writer.partial, "write", &e))?;
        Ok(Some(writer))
    }

    /// Checks that there is room for all rows, and makes the file one of those that are kept.
    fn begin(&mut self) -> io::Result<()> {
        let Self { plan, to, done, .. } = self;
        let file = to.get_mut();
        match fs4::FileExt::allocate(&*file, plan.at(plan.rows)) {
            Err(e) if NO_ROOM.contains(&e.kind()) => return Err(e),
            // A file system that cannot reserve space reports an error later, when it is full.
            _ => {}
        }
        // The length tells the number of rows, so nothing stays reserved.
        file.set_len(if *done == 0 { 0 } else { plan.at(*done) })?;
        file.seek(SeekFrom::Start(0))?;
        if *done == 0 {
            let labels: Vec<u8> = plan.labels.iter().flat_map(|n| n.to_le_bytes()).collect();
            file.write_all(&plan.header)?;
            return file.write_all(&labels);
        }
        let mut kept = vec![0; 4 * plan.labels.len()];
        file.seek(SeekFrom::Start(plan.header.len() as u64))?;
        file.read_exact(&mut kept)?;
        plan.labels = kept.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        file.seek(SeekFrom::End(0)).map(drop)
    }

    /// Number of rows that have been written.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    /// The file that has the rows until all are written.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Drops all rows but the first `rows`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(super) fn cut(&mut self, rows: usize) -> Result<(), DataError> {
        self.done = self.done.min(rows);
        let end = self.plan.at(self.done);
        let cut = self.to.flush().and_then(|()| self.to.get_ref().set_len(end));
        let cut = cut.and_then(|()| self.to.seek(SeekFrom::Start(end)));
        cut.map(drop).map_err(|e| DataError::io(&self.partial, "write", &e))
    }

    /// Appends whole rows, and sets the labels from number `first` on.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Shape`] if there are parts of rows, or more rows or labels than were planned.
    pub(super) fn push(
        &mut self,
        rows: &[u8],
        first: usize,
        labels: &[u32],
    ) -> Result<(), DataError> {
        let Plan { row, rows: most, labels: all, .. } = &self.plan;
        let (count, rest) = (rows.len() / row, rows.len() % row);
        if rest > 0 || self.done + count > *most || first + labels.len() > all.len() {
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
    pub(super) fn finish(mut self) -> Result<(), DataError> {
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

/// Reads what an earlier call has left in a file.
fn left(plan: &Plan, file: &mut File) -> io::Result<Left> {
    let length = file.metadata()?.len();
    let mut beginning = Vec::new();
    io::Read::take(&mut *file, plan.header.len() as u64).read_to_end(&mut beginning)?;
    if plan.header.starts_with(&beginning) {
        let rows = length.saturating_sub(plan.start()) as usize / plan.row.max(1);
        return Ok(if rows == 0 { Left::Nothing } else { Left::Rows(rows.min(plan.rows)) });
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(Left::Other(header::read(file).unwrap_or_default()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
