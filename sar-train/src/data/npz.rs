//! Images as the array that published evaluators read: `arr_0`, uint8 `[n, h, w, 3]`, in an `.npz`
//! file.

mod reader;

pub(crate) use reader::MOST_NUMBERS;
pub use reader::{IMAGES, ImageArray, NpzReader};

use super::DataError;
use super::grid::{Images, pixels};
use crate::files;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// An archive of arrays that is written under a temporary name until it is complete.
struct Arrays {
    /// Never dropped while unfinished: dropping would try to finish the file and print a message on
    /// failure.
    archive: ManuallyDrop<ZipWriter<BufWriter<File>>>,
    /// The file that the archive is written to; removed unless it is put in place.
    file: NamedTempFile,
}

impl Arrays {
    fn create(path: &Path) -> io::Result<Self> {
        if files::is_special(path) {
            // The directory of an archive comes last and refers to what came before.
            return Err(io::Error::other("an archive is not written to a pipe or a device"));
        }
        let file = files::beside(path)?;
        let archive = ZipWriter::new(BufWriter::new(file.as_file().try_clone()?));
        Ok(Self { archive: ManuallyDrop::new(archive), file })
    }

    /// Begins the array `name` of elements of a kind, whose bytes are written next.
    fn begin(&mut self, name: &str, kind: &str, shape: &[usize]) -> io::Result<()> {
        // Neither pixels nor features compress well, and the published evaluators' own files are
        // stored uncompressed, too.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        self.archive.start_file(format!("{name}.npy"), options)?;
        self.archive.write_all(&header(kind, shape))
    }

    /// Completes the archive and puts it in place.
    fn put(mut self, path: &Path) -> io::Result<()> {
        // Flushing first detects a full disk while the unfinished archive will not be dropped.
        self.archive.flush()?;
        let archive = ManuallyDrop::into_inner(self.archive);
        archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        files::put(self.file, path, true)
    }
}

/// Writes an array of images batch by batch, under a temporary name until it is complete.
pub struct NpzWriter {
    path: PathBuf,
    arrays: Arrays,
    /// Number of bytes of the array still to be written.
    left: u64,
}

impl NpzWriter {
    /// Begins the file `path` of `count` images of `height`×`width`.
    ///
    /// # Errors
    /// [`DataError::Io`]; likewise below.
    pub fn create(
        path: &Path,
        count: usize,
        (height, width): (usize, usize),
    ) -> Result<Self, DataError> {
        let begin = || {
            let mut arrays = Arrays::create(path)?;
            arrays.begin("arr_0", "|u1", &[count, height, width, 3])?;
            Ok(arrays)
        };
        let arrays = begin().map_err(failed(path))?;
        let left = [height, width, 3].iter().fold(count as u64, |n, &d| n.saturating_mul(d as u64));
        Ok(Self { path: path.to_owned(), arrays, left })
    }

    /// Adds images of the size given to [`NpzWriter::create`].
    ///
    /// # Errors
    /// [`DataError::Shape`] if there are more images than announced.
    pub fn write(&mut self, images: Images<'_>) -> Result<(), DataError> {
        let plane = images.height * images.width;
        let values = images.images_b3hw;
        if values.len() as u64 > self.left {
            return Err(DataError::Shape {
                what: "npz",
                expected: format!("at most {} values more", self.left),
                found: values.len().to_string(),
            });
        }
        let mut bytes = Vec::with_capacity(values.len());
        for image in values.chunks_exact(3 * plane) {
            bytes.extend(pixels(image, plane));
        }
        self.left -= bytes.len() as u64;
        self.arrays.archive.write_all(&bytes).map_err(failed(&self.path))
    }

    /// Completes the file and puts it in place.
    ///
    /// # Errors
    /// [`DataError::Shape`] if images are missing; nothing is left behind then.
    pub fn finish(self) -> Result<(), DataError> {
        if self.left > 0 {
            let expected = format!("{} values more", self.left);
            return Err(DataError::Shape { what: "npz", expected, found: "0".into() });
        }
        self.arrays.put(&self.path).map_err(failed(&self.path))
    }
}

/// An array of numbers for [`save_numbers`].
#[derive(Clone, Debug)]
pub struct Numbers<'a> {
    /// Name, without `.npy`.
    pub name: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, row by row.
    pub values: &'a [f64],
    /// Whether they are written as f32, the type they were computed in.
    pub narrow: bool,
}

/// Writes arrays of numbers to a file that NumPy and [`NpzReader`] can read.
///
/// # Errors
/// [`DataError::Io`]; nothing is left behind then.
pub fn save_numbers(path: &Path, arrays: &[Numbers<'_>]) -> Result<(), DataError> {
    let write = || {
        let mut file = Arrays::create(path)?;
        for Numbers { name, shape, values, narrow } in arrays {
            file.begin(name, if *narrow { "<f4" } else { "<f8" }, shape)?;
            for piece in values.chunks(1 << 16) {
                let bytes: Vec<u8> = match narrow {
                    true => piece.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
                    false => piece.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                file.archive.write_all(&bytes)?;
            }
        }
        file.put(path)
    };
    write().map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> DataError + '_ {
    |e| DataError::io(path, "write", &e)
}

/// Returns the header before the elements of an array: NumPy's format 1.0, padded to a multiple of
/// 64 bytes.
fn header(kind: &str, shape: &[usize]) -> Vec<u8> {
    // A tuple of one element needs a comma, too.
    let shape: String = match shape {
        [one] => format!("{one},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}");
    // The magic bytes, the version and the length come before the text, a line break after it.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<width$}\n", width = length - 1).into_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::grid::to_u8;
    use std::io::Read as _;

    #[test]
    fn the_array_is_as_numpy_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        // Two images of 1×2, written in two batches.
        let values: Vec<f32> = (0..12).map(|i| i as f32 / 6.0 - 1.0).collect();
        let mut file = NpzWriter::create(&path, 2, (1, 2)).unwrap();
        for image in values.chunks(6) {
            file.write(Images { images_b3hw: image, height: 1, width: 2 }).unwrap();
        }
        let more = Images { images_b3hw: &values[..6], height: 1, width: 2 };
        assert!(file.write(more).is_err(), "more than it was begun for");
        file.finish().unwrap();

        let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        let mut bytes = Vec::new();
        archive.by_name("arr_0.npy").unwrap().read_to_end(&mut bytes).unwrap();
        let (head, pixels) = bytes.split_at(128);
        assert_eq!(&head[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&head[10..]).unwrap();
        let expected = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 3), }";
        assert_eq!(text.trim_end(), expected);
        assert!(text.ends_with(" \n"));
        // Planes become interleaved pixels.
        let of = |i: usize| to_u8(values[i]);
        assert_eq!(pixels, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11].map(of));
    }

    #[test]
    fn a_file_that_lacks_images_is_not_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let file = NpzWriter::create(&path, 2, (1, 1)).unwrap();
        assert!(file.finish().is_err());
        drop(NpzWriter::create(&path, 2, (1, 1)).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(NpzWriter::create(&folder.path().join("no/a.npz"), 1, (1, 1)).is_err());
        assert!(NpzWriter::create(Path::new("/dev/null"), 1, (1, 1)).is_err());
    }
}
