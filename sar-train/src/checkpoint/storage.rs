//! Where checkpoints are written: an abstraction that lets tests simulate a full disk.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// An open file that can be made durable.
pub trait Sink: Write {
    /// Returns when everything written so far would survive a power failure.
    ///
    /// # Errors
    /// The disk reports an error, possibly one of an earlier write.
    fn sync(&mut self) -> io::Result<()>;
}

/// Creates new files.
pub trait Storage: Send + Sync {
    /// Creates a new, empty file.
    ///
    /// # Errors
    /// The file cannot be created.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        // Writes are large: tensors are converted in pieces of this size.
        Ok(Box::new(BufWriter::with_capacity(1 << 20, File::create(path)?)))
    }
}

impl Sink for BufWriter<File> {
    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.get_ref().sync_all()
    }
}

/// Length and CRC-32 of written data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// A writer that counts and sums what it passes on.
pub(super) struct Summing<'a> {
    to: &'a mut dyn Write,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl<'a> Summing<'a> {
    pub(super) fn new(to: &'a mut dyn Write) -> Self {
        Self { to, crc: crc32fast::Hasher::new(), bytes: 0 }
    }

    pub(super) fn sum(self) -> Sum {
        Sum { bytes: self.bytes, crc32: self.crc.finalize() }
    }
}

impl Write for Summing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.to.write(data)?;
        self.crc.update(data.get(..n).unwrap_or(data));
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Returns length and CRC-32 of an existing file.
pub(super) fn sum_of(path: &Path) -> io::Result<Sum> {
    let mut nowhere = io::sink();
    let mut summing = Summing::new(&mut nowhere);
    io::copy(&mut File::open(path)?, &mut summing)?;
    Ok(summing.sum())
}

/// Writes and syncs a file directly under `path`.
pub(super) fn write_synced<T>(
    storage: &dyn Storage,
    path: &Path,
    write: impl FnOnce(&mut dyn Sink) -> io::Result<T>,
) -> io::Result<T> {
    let mut sink = storage.create(path)?;
    let value = write(sink.as_mut())?;
    sink.sync()?;
    Ok(value)
}
