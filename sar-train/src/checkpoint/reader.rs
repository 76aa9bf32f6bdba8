//! A safetensors file that is open: its header is in memory, its tensors are on disk until they are asked for.

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
/// Bytes before the header, which say how long it is.
const PREFIX: usize = 8;
/// Bytes that are read at once: few calls, and nothing beside a model of gigabytes.
const PIECE: usize = 1 << 20;

/// A file whose header has been read and fits its length.
pub(super) struct Reader<'a> {
    path: &'a Path,
    file: File,
    metadata: Metadata,
    /// Where the tensors begin.
    data: u64,
}

impl<'a> Reader<'a> {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// It cannot be read, is not safetensors, or is of another length than its header says.
    pub(super) fn open(path: &'a Path) -> Result<Self, CheckpointError> {
        let read = |e| CheckpointError::read(path, e);
        let mut file = File::open(path).map_err(read)?;
        let found = file.metadata().map_err(read)?.len();
        // One byte more than the prefix tells text from a header.
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

    /// What the file says about itself; `None` where this program did not write it.
    ///
    /// # Errors
    /// It is of a newer format, or of another than the `kind` expected.
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

    /// Name and shape of every tensor.
    pub(super) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.metadata.tensors().into_iter().map(|(n, info)| (n, info.shape.clone())).collect()
    }

    /// Reads a tensor's values into `to`, which has as many; F16, BF16 and F64 become f32.
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

/// The next bytes of a file, so many or as many as there are.
fn at_most(file: &mut File, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How long the header is, by the first bytes of a file.
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
