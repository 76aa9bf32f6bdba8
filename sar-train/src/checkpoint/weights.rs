//! A safetensors file of named tensors.

use super::reader::Reader;
use super::storage::{Sum, Summing};
use super::{CheckpointError, Facts, Header, Kind, RawTensor};
use crate::files::write_whole_by;
use crate::params::Layout;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Buffers that published files contain in addition to the parameters.
const BUFFERS: [&str; 5] =
    ["attn_bias_for_masking", "zero_k_bias", "codebook_used", "lvl_1L", "ema_vocab_hit_SV"];

/// Contents of a file of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The file's header; `None` for a file that this program did not write.
    pub header: Option<Header>,
    /// The parameters, in the layout's order.
    pub flat: Vec<f32>,
}

/// Writes the parameters `flat`, laid out by `layout`, as a safetensors file at `path`.
///
/// The file is written under a temporary name, synced and renamed: at any moment `path` is either
/// the old file or the complete new one.
///
/// # Errors
/// [`CheckpointError::Length`] if the buffer has another length, [`CheckpointError::Write`].
pub fn save_weights(
    path: &Path,
    header: &Header,
    layout: &Layout,
    flat: &[f32],
) -> Result<(), CheckpointError> {
    check_length("weights", layout, flat)?;
    write_whole_by(path, |sink| write_tensors(sink, header, layout, &[("", flat)]))
        .map(|_| ())
        .map_err(|e| CheckpointError::write(path, e, "nothing was changed"))
}

/// Reads the parameters of a model of this `kind` and `layout`.
///
/// Published buffers (`attn_bias_for_masking`, `zero_k_bias`, `codebook_used` and the like) are
/// ignored; F16, BF16 and F64 become f32.
///
/// # Errors
/// The file does not fit in some way; the error names the likely cause. See [`CheckpointError`].
pub fn load_weights(path: &Path, kind: Kind, layout: &Layout) -> Result<Weights, CheckpointError> {
    let file = Reader::open(path)?;
    let header = file.header(Some(kind))?;
    let flat = read_tensors(&file, layout, "")?;
    Ok(Weights { header, flat })
}

/// Reads a file's header; returns `None` if this program did not write the file.
///
/// # Errors
/// The file cannot be read, is not safetensors or has a newer format.
pub fn read_header(path: &Path) -> Result<Option<Header>, CheckpointError> {
    Reader::open(path)?.header(None)
}

/// Reads name and shape of every tensor except the published buffers.
///
/// # Errors
/// The file cannot be read or is not safetensors.
pub fn read_shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>, CheckpointError> {
    let mut shapes = Reader::open(path)?.shapes();
    shapes.retain(|name, _| !is_buffer(name));
    Ok(shapes)
}

/// Reads several sets of tensors of one layout (`first_moment.`, …) from a file.
pub(super) fn load_sets(
    path: &Path,
    layout: &Layout,
    prefixes: &[&str],
) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let file = Reader::open(path)?;
    file.header(None)?;
    prefixes.iter().map(|prefix| read_tensors(&file, layout, prefix)).collect()
}

/// Checks that a buffer has as many values as the layout.
pub(crate) fn check_length(
    what: &'static str,
    layout: &Layout,
    flat: &[f32],
) -> Result<(), CheckpointError> {
    if flat.len() == layout.len() {
        return Ok(());
    }
    Err(CheckpointError::Length { what, found: flat.len(), expected: layout.len() })
}

/// Writes the sets of tensors, each under its prefix, and returns length and checksum of what was
/// written.
pub(super) fn write_tensors(
    sink: &mut dyn Write,
    header: &Header,
    layout: &Layout,
    sets: &[(&str, &[f32])],
) -> io::Result<Sum> {
    let mut json = serde_json::Map::new();
    let about = serde_json::to_string(header)?;
    json.insert("__metadata__".into(), serde_json::json!({ "format": "pt", "sar": about }));
    let mut at = 0;
    for (prefix, _) in sets {
        for t in layout.tensors() {
            let end = at + 4 * t.slot.len;
            json.insert(
                format!("{prefix}{}", t.name),
                serde_json::json!({ "dtype": "F32", "shape": t.shape, "data_offsets": [at, end] }),
            );
            at = end;
        }
    }
    let mut text = serde_json::to_vec(&json)?;
    // Padding keeps the data aligned for readers that map the file.
    text.resize(text.len().next_multiple_of(8), b' ');

    let mut to = Summing::new(sink);
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    to.write_all(&text)?;
    for (_, flat) in sets {
        let mut bytes = Vec::with_capacity(4 * 4096);
        let tensors = layout.tensors().iter().map(|t| &flat[t.slot.range()]);
        for piece in tensors.flat_map(|values| values.chunks(4096)) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|v| v.to_le_bytes()));
            to.write_all(&bytes)?;
        }
    }
    Ok(to.sum())
}

fn is_buffer(name: &str) -> bool {
    BUFFERS.iter().any(|b| name == *b || name.strip_suffix(b).is_some_and(|p| p.ends_with('.')))
}

/// Reads the parameters of a layout, in its order, from the tensors whose names begin with
/// `prefix`.
fn read_tensors(
    file: &Reader<'_>,
    layout: &Layout,
    prefix: &str,
) -> Result<Vec<f32>, CheckpointError> {
    let shapes = file.shapes();
    let shapes = shapes.iter().filter_map(|(n, s)| Some((n.strip_prefix(prefix)?, s.as_slice())));
    compare(file.path(), layout, &shapes.filter(|(name, _)| !is_buffer(name)).collect())?;
    let mut flat = vec![0.0; layout.len()];
    for t in layout.tensors() {
        let to = &mut flat[t.slot.range()];
        file.read(&format!("{prefix}{}", t.name), to)?;
        check_finite(file.path(), &t.name, to)?;
    }
    Ok(flat)
}

/// Checks that names and shapes of a file are those of the layout.
fn compare(
    path: &Path,
    layout: &Layout,
    shapes: &BTreeMap<&str, &[usize]>,
) -> Result<(), CheckpointError> {
    let missing: Vec<&str> = layout
        .tensors()
        .iter()
        .map(|t| t.name.as_str())
        .filter(|n| !shapes.contains_key(n))
        .collect();
    let extra: Vec<&str> = shapes.keys().filter(|n| layout.get(n).is_none()).copied().collect();
    let reshaped = layout.tensors().iter().find_map(|t| {
        let found = *shapes.get(t.name.as_str())?;
        (found != t.shape).then(|| CheckpointError::Shape {
            path: path.to_owned(),
            name: t.name.clone(),
            found: found.to_vec(),
            expected: t.shape.clone(),
        })
    });
    let error = match (reshaped, missing.first(), extra.first()) {
        (Some(shape), _, _) => shape,
        (None, Some(first), _) => CheckpointError::Missing {
            path: path.to_owned(),
            first: (*first).to_owned(),
            count: missing.len(),
        },
        (None, None, Some(first)) => CheckpointError::Extra {
            path: path.to_owned(),
            first: (*first).to_owned(),
            count: extra.len(),
        },
        (None, None, None) => return Ok(()),
    };
    let file = Facts::of(shapes.iter().map(|(n, s)| (*n, *s)));
    let model = layout.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice()));
    let differences = file.differences(&Facts::of(model));
    if differences.is_empty() {
        return Err(error);
    }
    let prefix = path.display().to_string();
    let detail = error.to_string();
    let detail = detail.strip_prefix(&prefix).unwrap_or(&detail).trim_start_matches([':', ' ']);
    Err(CheckpointError::OtherModel {
        path: path.to_owned(),
        cause: differences.join("; "),
        detail: detail.to_owned(),
    })
}

/// Lays out tensors that were read from another format; published buffers are ignored.
///
/// # Errors
/// As for [`load_weights`], concerning names, shapes and values.
pub fn arrange(
    path: &Path,
    layout: &Layout,
    tensors: &BTreeMap<String, RawTensor>,
) -> Result<Vec<f32>, CheckpointError> {
    let tensors: BTreeMap<&str, &RawTensor> =
        tensors.iter().map(|(n, t)| (n.as_str(), t)).filter(|(n, _)| !is_buffer(n)).collect();
    compare(path, layout, &tensors.iter().map(|(n, t)| (*n, t.shape.as_slice())).collect())?;
    let mut flat = vec![0.0; layout.len()];
    for t in layout.tensors() {
        let (Some(from), Some(to)) =
            (tensors.get(t.name.as_str()), flat.get_mut(t.slot.offset..t.slot.end()))
        else {
            continue; // compared above
        };
        for (to, from) in to.iter_mut().zip(&from.values) {
            *to = *from;
        }
        check_finite(path, &t.name, to)?;
    }
    Ok(flat)
}

fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<(), CheckpointError> {
    let count = values.iter().filter(|v| !v.is_finite()).count();
    if count == 0 {
        return Ok(());
    }
    Err(CheckpointError::NonFinite { path: path.to_owned(), name: name.to_owned(), count })
}
