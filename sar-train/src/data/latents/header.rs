//! The header of a file of latents.

use super::{Origin, Precision, Sizes};
use crate::data::DataError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Version of the file format: the one written, and the newest that is read.
const FORMAT: u32 = 1;
/// Key in the metadata.
const KEY: &str = "sar.latents";
/// Longest header that is read; those of this program have a few hundred bytes.
const LONGEST: u64 = 1 << 20;

/// [`Origin`] with the version of the file format.
#[derive(Serialize, Deserialize)]
struct About {
    format: u32,
    #[serde(flatten)]
    origin: Origin,
}

/// Contents of a file, and the byte at which each tensor begins.
pub(super) struct Header {
    pub origin: Origin,
    pub sizes: Sizes,
    pub precision: Precision,
    pub train: u64,
    pub validation: u64,
    pub train_labels: u64,
    pub validation_labels: u64,
}

/// Returns the header of a file of such latents, and the number of bytes that follow it.
pub(super) fn encode(
    origin: &Origin,
    sizes: Sizes,
    precision: Precision,
) -> Result<(Vec<u8>, usize), String> {
    let [k, h, w] = sizes.latent;
    let values = match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
    };
    let mut end = 0_usize;
    let mut tensor = |name: &str, dtype: Dtype, shape: Vec<usize>| {
        let bytes = shape.iter().try_fold(dtype.bitsize() / 8, |n, &side| n.checked_mul(side));
        let start = end;
        end = start.checked_add(bytes?)?;
        Some((name.to_owned(), TensorInfo { dtype, shape, data_offsets: (start, end) }))
    };
    let tensors: Option<Vec<_>> = [
        ("train", values, vec![sizes.views, sizes.train, k, h, w]),
        ("validation", values, vec![sizes.validation, k, h, w]),
        ("train_labels", Dtype::U32, vec![sizes.train]),
        ("validation_labels", Dtype::U32, vec![sizes.validation]),
    ]
    .into_iter()
    .map(|(name, dtype, shape)| tensor(name, dtype, shape))
    .collect();
    let tensors = tensors.ok_or("more latents than a file can hold")?;
    let about = About { format: FORMAT, origin: origin.clone() };
    let about = serde_json::to_string(&about).map_err(|e| e.to_string())?;
    let metadata = Metadata::new(Some([(KEY.to_owned(), about)].into()), tensors);
    let metadata = metadata.map_err(|e| e.to_string())?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| e.to_string())?;
    // Padding keeps the data aligned for readers that map the file.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok((bytes, end))
}

impl Header {
    /// Reads the header of an open file.
    pub(super) fn read(path: &Path, file: &mut File) -> Result<Self, DataError> {
        let found = file.metadata().map_err(|e| DataError::io(path, "read", &e))?.len();
        let text = beginning(file).ok_or_else(|| not_latents(path, "it is no safetensors file"))?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|e| not_latents(path, &format!("its header cannot be read: {e}")))?;
        let about = metadata.metadata().as_ref().and_then(|all| all.get(KEY));
        let Some(about) = about else {
            let tokens = metadata.info("ids").is_some();
            let hint = if tokens { "these are the tokens of one schedule" } else { "no latents" };
            return Err(not_latents(path, hint));
        };
        let about: About = serde_json::from_str(about)
            .map_err(|e| not_latents(path, &format!("its `{KEY}` cannot be read: {e}")))?;
        if about.format > FORMAT {
            let newer =
                format!("it has form {}, and this program reads up to {FORMAT}", about.format);
            return Err(not_latents(path, &newer));
        }
        let data = 8 + text.len() as u64;
        let expected = data + metadata.data_len() as u64;
        if found != expected {
            return Err(not_latents(path, &format!("it has {found} bytes, expected {expected}")));
        }
        Self::of(about.origin, &metadata, data)
            .ok_or_else(|| not_latents(path, "its tensors do not fit each other"))
    }

    fn of(origin: Origin, metadata: &Metadata, data: u64) -> Option<Self> {
        let [train, validation, train_labels, validation_labels] =
            ["train", "validation", "train_labels", "validation_labels"]
                .map(|name| metadata.info(name));
        let (train, validation) = (train?, validation?);
        let (train_labels, validation_labels) = (train_labels?, validation_labels?);
        let precision = match train.dtype {
            Dtype::F32 => Precision::F32,
            Dtype::F16 => Precision::F16,
            _ => return None,
        };
        let &[views, images, k, h, w] = train.shape.as_slice() else { return None };
        let latent = [k, h, w];
        let &[held_out, ..] = validation.shape.as_slice() else { return None };
        let fits = validation.dtype == train.dtype
            && validation.shape == [held_out, k, h, w]
            && (train_labels.dtype, validation_labels.dtype) == (Dtype::U32, Dtype::U32)
            && train_labels.shape == [images]
            && validation_labels.shape == [held_out]
            && views > 0;
        let at = |tensor: &TensorInfo| data + tensor.data_offsets.0 as u64;
        fits.then(|| Self {
            origin,
            sizes: Sizes { views, train: images, validation: held_out, latent },
            precision,
            train: at(train),
            validation: at(validation),
            train_labels: at(train_labels),
            validation_labels: at(validation_labels),
        })
    }
}

/// Reads the text of the header; `None` if there cannot be one.
fn beginning(file: &mut File) -> Option<Vec<u8>> {
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

fn not_latents(path: &Path, reason: &str) -> DataError {
    DataError::Latents { path: path.to_owned(), reason: reason.to_owned() }
}
