//! SHA-256 sums, in hexadecimal, of weights, images and files.

use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Number of values or bytes hashed at a time.
const PIECE: usize = 1 << 16;

/// Returns the hash of numbers as they are stored: little-endian f32.
pub(crate) fn sha256_of(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for piece in values.chunks(PIECE) {
        hash.update(piece.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    }
    text(hash)
}

/// Returns the hash of bytes.
pub(crate) fn sha256_of_bytes(bytes: &[u8]) -> String {
    text(Sha256::new_with_prefix(bytes))
}

/// Returns the hash of a file.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn sha256_of_file(path: &Path) -> io::Result<String> {
    let (mut file, mut hash, mut piece) = (File::open(path)?, Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(text(hash)),
            read => hash.update(&piece[..read]),
        }
    }
}

fn text(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_have_the_published_sum_wherever_they_are() {
        // FIPS 180-2, B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of_bytes(b"abc"), abc);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert_eq!(sha256_of_file(file.path()).unwrap(), abc);
        let values: Vec<f32> = (0..PIECE + 3).map(|i| i as f32).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256_of(&values), sha256_of_bytes(&bytes));
    }
}
