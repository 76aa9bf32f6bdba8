//! Reads arrays of an `.npz` file: images as bytes, piece by piece, and statistics as numbers.

use crate::data::DataError;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use zip::ZipArchive;
use zip::read::ZipFile;

/// Name of the array of images in published files.
pub const IMAGES: &str = "arr_0";

/// Longest array header that is read; NumPy's own have about a hundred bytes.
const LONGEST_HEADER: usize = 1 << 16;

/// Maximum number of elements of an array of statistics: a covariance of 2,048 features has 4
/// million, the features of 50,000 images have 102 million.
pub(crate) const MOST_NUMBERS: usize = 1 << 27;

/// The arrays in a file.
pub struct NpzReader {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl NpzReader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be read, [`DataError::Npz`] if it is not such an
    /// archive.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, "read", &e))?;
        let archive = ZipArchive::new(BufReader::new(file))
            .map_err(|e| bad(path, format!("it is not a whole ZIP archive: {e}")))?;
        Ok(Self { path: path.to_owned(), archive })
    }

    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.archive.index_for_name(&member(name)).is_some()
    }

    /// Opens the images, `arr_0`: uint8 `[n, h, w, 3]`.
    ///
    /// # Errors
    /// [`DataError::Npz`] if there are none, or they have another type or shape.
    pub fn images(&mut self) -> Result<ImageArray<'_>, DataError> {
        let array = self.array(IMAGES)?;
        let Array { path, header, data } = array;
        let &[count, height, width, 3] = header.shape.as_slice() else {
            let found =
                format!("{IMAGES} has shape {:?}, expected images [n, h, w, 3]", header.shape);
            return Err(bad(path, found));
        };
        if header.kind != "|u1" {
            let found = format!("{IMAGES} is of {}, expected bytes (uint8)", header.kind);
            return Err(bad(path, found));
        }
        if header.fortran {
            let found =
                format!("{IMAGES} lies column by column (Fortran's order), expected row by row");
            return Err(bad(path, found));
        }
        let image = [height, width, 3].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match image {
            Some(bytes @ 1..) if count > 0 => {
                Ok(ImageArray { path, data, count, height, width, bytes, left: count })
            }
            None => Err(bad(path, format!("{IMAGES} of shape {:?} is too large", header.shape))),
            _ => Err(bad(path, format!("{IMAGES} of shape {:?} has no images", header.shape))),
        }
    }

    /// Reads the numbers of an array, as f64 and row-major, and its shape.
    ///
    /// # Errors
    /// [`DataError::Npz`] if there is no such array, or it has another type or is truncated.
    pub fn numbers(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f64>), DataError> {
        let Array { path, header, mut data } = self.array(name)?;
        let width = match header.kind.as_str() {
            "<f8" => 8,
            "<f4" => 4,
            kind => {
                let found =
                    format!("{name} is of {kind}, expected little-endian f64 or f32 (<f8, <f4)");
                return Err(bad(path, found));
            }
        };
        // The order does not matter for a covariance, which is its own transpose.
        let symmetric =
            header.shape.len() < 2 || header.shape.iter().all(|d| *d == header.shape[0]);
        if header.fortran && !symmetric {
            return Err(bad(path, format!("{name} lies column by column, expected row by row")));
        }
        let count = header.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let Some(count) = count.filter(|&n| n <= MOST_NUMBERS) else {
            return Err(bad(path, format!("{name} of shape {:?} is too large", header.shape)));
        };
        let (mut bytes, wanted) = (Vec::new(), count * width);
        let read = (&mut data).take(wanted as u64).read_to_end(&mut bytes);
        let read = read.map_err(|e| bad(path, format!("{name}: {e}")))?;
        if read < wanted {
            return Err(bad(path, format!("{name} ends after {read} of {wanted} bytes")));
        }
        check_end(path, name, &mut data)?;
        let values: Vec<f64> = match width {
            8 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(bad(path, format!("{name}: element {at} is not a finite number")));
        }
        Ok((header.shape, values))
    }

    fn array(&mut self, name: &str) -> Result<Array<'_>, DataError> {
        let path = self.path.as_path();
        if self.archive.index_for_name(&member(name)).is_none() {
            let names: Vec<_> = self.archive.file_names().flatten().take(5).collect();
            let names = names.join(", ");
            return Err(bad(path, format!("it has no array {name}; there is {names}")));
        }
        let mut data =
            self.archive.by_name(&member(name)).map_err(|e| bad(path, format!("{name}: {e}")))?;
        let header = Header::read(&mut data).map_err(|e| bad(path, format!("{name}: {e}")))?;
        Ok(Array { path, header, data })
    }
}

fn member(name: &str) -> String {
    format!("{name}.npy")
}

/// Checks that an array ends here. Reading to the end also makes the archive check its checksum.
fn check_end(path: &Path, name: &str, data: &mut impl Read) -> Result<(), DataError> {
    match data.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(bad(path, format!("{name} goes on after its last element"))),
        Err(e) => Err(bad(path, format!("{name}: {e}"))),
    }
}

fn bad(path: &Path, reason: String) -> DataError {
    DataError::Npz { path: path.to_owned(), reason }
}

/// An array whose elements have not been read yet.
struct Array<'a> {
    path: &'a Path,
    header: Header,
    data: ZipFile<'a, BufReader<File>>,
}

/// Images that are read piece by piece.
pub struct ImageArray<'a> {
    path: &'a Path,
    data: ZipFile<'a, BufReader<File>>,
    count: usize,
    height: usize,
    width: usize,
    /// Number of bytes of an image.
    bytes: usize,
    left: usize,
}

impl ImageArray<'_> {
    /// Total number of images.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the number of rows and columns of an image.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Reads up to `most` further images, `[b, h, w, 3]`; none after the last.
    ///
    /// # Errors
    /// [`DataError::Npz`] if they are truncated or damaged.
    pub fn next(&mut self, most: usize) -> Result<Vec<u8>, DataError> {
        let count = self.left.min(most);
        let mut images = Vec::new();
        let wanted = (count as u64).saturating_mul(self.bytes as u64);
        // The buffer grows with what is actually read, so a forged header cannot make it allocate
        // memory.
        let read = (&mut self.data).take(wanted).read_to_end(&mut images);
        let read = read.map_err(|e| bad(self.path, format!("{IMAGES}: {e}")))?;
        if (read as u64) < wanted {
            let whole = self.count - self.left + read / self.bytes;
            let of = self.count;
            return Err(bad(self.path, format!("{IMAGES} ends after {whole} of {of} images")));
        }
        self.left -= count;
        if self.left == 0 && count > 0 {
            check_end(self.path, IMAGES, &mut self.data)?;
        }
        Ok(images)
    }
}

/// The header of an array.
#[derive(Debug, PartialEq)]
struct Header {
    /// NumPy's name of the number type: `|u1`, `<f8`.
    kind: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads the header in front of the elements.
    fn read(from: &mut impl Read) -> Result<Self, String> {
        let text = |e: std::io::Error| e.to_string();
        let mut begin = [0; 8];
        from.read_exact(&mut begin).map_err(text)?;
        if begin[..6] != *b"\x93NUMPY" {
            return Err("it is no array of NumPy's".into());
        }
        let length = match begin[6] {
            1 => {
                let mut length = [0; 2];
                from.read_exact(&mut length).map_err(text)?;
                usize::from(u16::from_le_bytes(length))
            }
            2 | 3 => {
                let mut length = [0; 4];
                from.read_exact(&mut length).map_err(text)?;
                u32::from_le_bytes(length) as usize
            }
            version => return Err(format!("version {version} of the format is not known")),
        };
        if length > LONGEST_HEADER {
            return Err(format!("a description of {length} bytes"));
        }
        let mut description = vec![0; length];
        from.read_exact(&mut description).map_err(text)?;
        let description = String::from_utf8_lossy(&description).into_owned();
        Self::parse(&description).ok_or_else(|| format!("described as {}", description.trim_end()))
    }

    /// Parses a text such as `{'descr': '|u1', 'fortran_order': False, 'shape': (2, 1, 2, 3), }`.
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
        let kind = value("descr")?.strip_prefix('\'')?.split('\'').next()?.to_owned();
        let fortran = match value("fortran_order")? {
            rest if rest.starts_with("True") => true,
            rest if rest.starts_with("False") => false,
            _ => return None,
        };
        let shape = value("shape")?.strip_prefix('(')?.split_once(')')?.0;
        let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty());
        let shape = sides.map(|side| side.parse().ok()).collect::<Option<_>>()?;
        Some(Self { kind, fortran, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::grid::Images;
    use crate::data::npz::NpzWriter;
    use std::io::Write as _;
    use zip::CompressionMethod::{Deflated, Stored};
    use zip::write::SimpleFileOptions;

    /// Returns an array file as NumPy writes it, in version 1 or 2 of the format.
    fn array(kind: &str, shape: &str, version: u8, data: &[u8]) -> Vec<u8> {
        let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        match version {
            1 => bytes.extend((text.len() as u16).to_le_bytes()),
            _ => bytes.extend((text.len() as u32).to_le_bytes()),
        }
        bytes.extend(text.into_bytes());
        bytes.extend(data);
        bytes
    }

    fn file(path: &Path, arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) {
        let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
        for (name, bytes) in arrays {
            let options = SimpleFileOptions::default().compression_method(method);
            archive.start_file(member(name), options).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let values: Vec<f32> = (0..36).map(|i| i as f32 / 18.0 - 1.0).collect();
        let mut file = NpzWriter::create(&path, 3, (2, 2)).unwrap();
        file.write(Images { images_b3hw: &values, height: 2, width: 2 }).unwrap();
        file.finish().unwrap();
        let mut reader = NpzReader::open(&path).unwrap();
        assert!(reader.has("arr_0") && !reader.has("mu"));
        let mut images = reader.images().unwrap();
        assert_eq!((images.count(), images.size()), (3, (2, 2)));
        let pieces = [2, 2, 2].map(|most| images.next(most).unwrap());
        assert_eq!(pieces.each_ref().map(Vec::len), [24, 12, 0]);
        // The first pixel takes one value from each of the three planes.
        let of = |i: usize| crate::data::grid::to_u8(values[i]);
        assert_eq!(pieces[0][..3], [of(0), of(4), of(8)]);
        assert_eq!(pieces[1][11], of(35));
    }

    #[test]
    fn statistics_are_read_stored_and_compressed_in_both_widths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let wide: Vec<u8> =
            [1.5f64, -2.0, 0.25, 8.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let narrow: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let arrays =
            [("sigma", array("<f8", "(2, 2)", 1, &wide)), ("mu", array("<f4", "(2,)", 2, &narrow))];
        for method in [Stored, Deflated] {
            file(&path, &arrays, method);
            let mut reader = NpzReader::open(&path).unwrap();
            assert_eq!(reader.numbers("sigma").unwrap(), (vec![2, 2], vec![1.5, -2.0, 0.25, 8.0]));
            assert_eq!(reader.numbers("mu").unwrap(), (vec![2], vec![1.5, -2.0]));
        }
    }

    #[test]
    fn what_is_no_such_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let told = |arrays: &[(&str, Vec<u8>)]| {
            file(&path, arrays, Stored);
            let mut reader = NpzReader::open(&path).unwrap();
            let all = reader.images().and_then(|mut images| images.next(usize::MAX >> 8));
            all.unwrap_err().to_string()
        };
        let is = |said: String, expected: &str| assert!(said.contains(expected), "{said}");
        is(told(&[("mu", vec![])]), "no array arr_0; there is mu.npy");
        is(told(&[("arr_0", b"no array at all".to_vec())]), "no array of NumPy's");
        is(
            told(&[("arr_0", array("|u1", "(2, 2, 3)", 1, &[0; 12]))]),
            "expected images [n, h, w, 3]",
        );
        is(told(&[("arr_0", array("<f4", "(1, 1, 1, 3)", 1, &[0; 12]))]), "expected bytes");
        is(told(&[("arr_0", array("|u1", "(0, 1, 1, 3)", 1, &[]))]), "no images");
        is(told(&[("arr_0", array("|u1", "(1, 0, 1, 3)", 1, &[]))]), "no images");
        is(told(&[("arr_0", array("|u1", "(3, 1, 1, 3)", 1, &[0; 7]))]), "ends after 2 of 3");
        is(told(&[("arr_0", array("|u1", "(1, 1, 1, 3)", 1, &[0; 7]))]), "goes on after its last");
        is(told(&[("arr_0", array("|u1", "(x, 1, 1, 3)", 1, &[]))]), "described as");
        is(told(&[("arr_0", array("|u1", "(1, 1, 1, 3)", 7, &[0; 3]))]), "version 7");
        // A header that claims more than can exist does not make the reader allocate memory.
        let huge = "(9000000000000, 9000, 9000, 3)";
        assert!(!told(&[("arr_0", array("|u1", huge, 1, &[0; 3]))]).is_empty());

        // A changed byte is detected, because the checksum is compared at the end.
        file(&path, &[("arr_0", array("|u1", "(1, 9, 9, 3)", 1, &[7; 243]))], Stored);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(9).position(|w| w == [7; 9]).unwrap();
        bytes[at + 5] = 8;
        std::fs::write(&path, bytes).unwrap();
        let mut reader = NpzReader::open(&path).unwrap();
        is(reader.images().unwrap().next(1).unwrap_err().to_string(), "checksum");

        std::fs::write(&path, b"PK but no archive").unwrap();
        assert!(matches!(NpzReader::open(&path), Err(DataError::Npz { .. })));
        assert!(matches!(
            NpzReader::open(&folder.path().join("b")),
            Err(DataError::Missing { .. })
        ));
    }
}
