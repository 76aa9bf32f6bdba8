//! Headers of safetensors files that are written row by row.

use crate::data::Origin;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io::Read;

/// Version of the files' format: the one written, and the newest that is read.
pub(crate) const FORMAT: u32 = 1;
/// Longest header that is read; those of this program have a few hundred bytes.
const LONGEST: u64 = 1 << 20;

/// [`Origin`] with the version of the file format, as it stands in the metadata.
#[derive(Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) format: u32,
    #[serde(flatten)]
    pub(crate) origin: Origin,
}

impl About {
    /// Returns what a file made from `origin` has in its metadata.
    pub(crate) fn text(origin: &Origin) -> Result<String, String> {
        let about = Self { format: FORMAT, origin: origin.clone() };
        serde_json::to_string(&about).map_err(|e| e.to_string())
    }
}

/// Name, type and shape of a tensor.
pub(crate) type Tensor<'a> = (&'a str, Dtype, Vec<usize>);

/// Returns the header of a file of these tensors, which follow it in this order. The same header has the same bytes.
pub(crate) fn encode(tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let mut header = Map::new();
    let texts = metadata.iter().map(|&(key, text)| (key.to_owned(), text.into()));
    header.insert("__metadata__".to_owned(), Value::Object(texts.collect()));
    let mut end = 0_usize;
    for (name, dtype, shape) in tensors {
        let bytes = shape.iter().try_fold(dtype.bitsize() / 8, |n, &side| n.checked_mul(side));
        let start = end;
        end = bytes.and_then(|n| start.checked_add(n)).ok_or("more values than a file can hold")?;
        let info = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) };
        let info = serde_json::to_value(info).map_err(|e| e.to_string())?;
        header.insert((*name).to_owned(), info);
    }
    let mut text = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
    // Padding keeps the data aligned for readers that map the file.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok(bytes)
}

/// Says why a file with the header `text` is not one of `what` that a call writes, whose origin is `origin`: by the
/// [`About`] under `key`, or else because of `flags`.
pub(crate) fn difference(
    text: &[u8],
    key: &str,
    origin: &Origin,
    what: &str,
    flags: &str,
) -> String {
    let metadata: Option<Metadata> = serde_json::from_slice(text).ok();
    let about = metadata.as_ref().and_then(|m| m.metadata().as_ref()?.get(key));
    let Some(about) = about.and_then(|about| serde_json::from_str::<About>(about).ok()) else {
        return format!("it has no {what} of this program");
    };
    if about.origin.computed.is_empty() {
        return format!("its {what} are of an earlier version of the program");
    }
    let origins = about.origin.difference(origin, what, "this call");
    origins.unwrap_or_else(|| format!("its {what} were made with another {flags}"))
}

/// Reads the text of a header; `None` if there cannot be one.
pub(crate) fn read(file: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let header = u64::from_le_bytes(length);
    if header > LONGEST {
        return None;
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).ok()?;
    Some(text)
}
