//! An open safetensors file: its header is in memory, its tensors stay on disk until they are
//! requested.

use super::pth::otherwise;
use super::{CheckpointError, Header, Kind, check_format};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Longest header that is read; the safetensors format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;
/// Number of bytes before the header, which give its length.
const PREFIX: usize = 8;
/// Number of bytes read at once: few calls, and little memory compared with a model of gigabytes.
const PIECE: usize = 1 << 20;

/// A file whose header has been read and agrees with its length.
pub(super) struct Reader<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    /// Offset at which the tensors begin.
    data: u64,
}

impl<'a> Reader<'a> {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, is not safetensors, or does not have the length that its header
    /// implies.
    pub(super) fn open(path: &'a Path) -> Result<Self, CheckpointError> {
        let read = |e| CheckpointError::read(path, e);
        let mut file = File::open(path).map_err(read)?;
        let found = file.metadata().map_err(read)?.len();
        // One byte more than the prefix distinguishes text from a header.
        let start = at_most(&mut file, PREFIX as u64 + 1).map_err(read)?;
        let length = header_length(path, &start).or_else(|error| {
            let mut head = start.clone();
            head.extend(at_most(&mut file, 64).map_err(read)?);
            let other = otherwise(&head);
            Err(other.map_or(error, |other| not_safetensors(path, &format!("it is {other}"))))
        })?;
        let mut header = start.get(PREFIX..).unwrap_or(&[]).to_vec();
        let rest = length.saturating_sub(header.len() as u64);
        header.extend(at_most(&mut file, rest).map_err(read)?);
        let data = PREFIX as u64 + length;
        let truncated =
            |expected| CheckpointError::Truncated { path: path.into(), found, expected };
        if (header.len() as u64) < length {
            return Err(truncated(data));
        }
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| not_safetensors(path, &format!("its header cannot be used: {e}")))?;
        let expected = data.saturating_add(metadata.data_len() as u64);
        match found {
            _ if found < expected => Err(truncated(expected)),
            _ if found > expected => {
                Err(CheckpointError::TooLong { path: path.into(), found, expected })
            }
            _ => Ok(Self { path, file, metadata, data }),
        }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Returns the file's header; `None` if this program did not write the file.
    ///
    /// # Errors
    /// The file has a newer format, or is of another kind than the expected `kind`.
    pub(super) fn header(&self, kind: Option<Kind>) -> Result<Option<Header>, CheckpointError> {
        let Some(text) = self.metadata.metadata().as_ref().and_then(|m| m.get("sar")) else {
            return Ok(None);
        };
        let path = self.path.to_owned();
        let state = |e: serde_json::Error| CheckpointError::State {
            path: path.clone(),
            reason: format!("its `sar` header cannot be read: {e}"),
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(state)?;
        check_format(&path, &value)?;
        let header: Header = serde_json::from_value(value).map_err(state)?;
        match kind {
            Some(expected) if header.kind != expected => {
                Err(CheckpointError::WrongKind { path, found: header.kind, expected })
            }
            _ => Ok(Some(header)),
        }
    }

    /// Returns name and shape of every tensor.
    pub(super) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.metadata.tensors().into_iter().map(|(n, info)| (n, info.shape.clone())).collect()
    }

    /// Reads a tensor's values into `to`, which has the same length; F16, BF16 and F64 become f32.
    ///
    /// # Errors
    /// [`CheckpointError::Missing`], [`CheckpointError::Dtype`], or the file cannot be read.
    pub(super) fn read(&self, name: &str, to: &mut [f32]) -> Result<(), CheckpointError> {
        let path = || self.path.to_owned();
        let Some(info) = self.metadata.info(name) else {
            return Err(CheckpointError::Missing { path: path(), first: name.into(), count: 1 });
        };
        let read = match info.dtype {
            Dtype::F32 => self.values(info, to, f32::from_le_bytes),
            Dtype::F16 => self.values(info, to, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.values(info, to, |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => self.values(info, to, |b| f64::from_le_bytes(b) as f32),
            other => {
                let found = format!("{other:?}");
                return Err(CheckpointError::Dtype { path: path(), name: name.into(), found });
            }
        };
        read.map_err(|e| CheckpointError::read(self.path, e))
    }

    /// Reads values of `N` bytes each, a piece at a time.
    fn values<const N: usize>(
        &self,
        info: &TensorInfo,
        to: &mut [f32],
        value: impl Fn([u8; N]) -> f32,
    ) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data + info.data_offsets.0 as u64))?;
        let mut bytes = vec![0; PIECE.min(N * to.len())];
        for piece in to.chunks_mut(PIECE / N) {
            let bytes = &mut bytes[..N * piece.len()];
            file.read_exact(bytes)?;
            for (v, bytes) in piece.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *v = value(*bytes);
            }
        }
        Ok(())
    }
}

/// Reads the next `count` bytes of a file, or fewer at its end.
fn at_most(file: &mut File, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the length of the header, given the first bytes of a file.
fn header_length(path: &Path, start: &[u8]) -> Result<u64, CheckpointError> {
    if start.is_empty() {
        return Err(not_safetensors(path, "it is empty"));
    }
    if start.starts_with(b"PK") {
        let reason = "it looks like a PyTorch file; run `sar convert` on it first";
        return Err(not_safetensors(path, reason));
    }
    let Some((length, header)) = start.split_first_chunk::<PREFIX>() else {
        let reason = format!("it has {} bytes, a header alone has more", start.len());
        return Err(not_safetensors(path, &reason));
    };
    match u64::from_le_bytes(*length) {
        length if length <= LONGEST_HEADER && header.starts_with(b"{") => Ok(length),
        _ => Err(not_safetensors(path, "it does not begin with a safetensors header")),
    }
}

fn not_safetensors(path: &Path, reason: &str) -> CheckpointError {
    CheckpointError::NotSafetensors { path: path.to_owned(), reason: reason.to_owned() }
}
