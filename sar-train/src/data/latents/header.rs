//! The header of a file of latents.

use super::{Origin, Precision, Sizes};
use crate::data::DataError;
use crate::data::rows::header::{self, About, FORMAT};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::fs::File;
use std::path::Path;

/// Key in the metadata.
const KEY: &str = "sar.latents";

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

/// Returns the header of a file of such latents.
pub(super) fn encode(
    origin: &Origin,
    sizes: Sizes,
    precision: Precision,
) -> Result<Vec<u8>, String> {
    let [k, h, w] = sizes.latent;
    let values = match precision {
        Precision::F32 => Dtype::F32,
        Precision::F16 => Dtype::F16,
    };
    let tensors = [
        ("train_labels", Dtype::U32, vec![sizes.train]),
        ("validation_labels", Dtype::U32, vec![sizes.validation]),
        ("train", values, vec![sizes.views, sizes.train, k, h, w]),
        ("validation", values, vec![sizes.validation, k, h, w]),
    ];
    header::encode(&tensors, &[(KEY, &About::text(origin)?)])
}

/// Says what the file with the header `text` is, which is not to be gone on with as latents of `origin`.
pub(super) fn difference(text: &[u8], origin: &Origin) -> String {
    header::difference(
        text,
        KEY,
        origin,
        "latents",
        "--seed, --views, --half, --backend or --dtype",
    )
}

impl Header {
    /// Reads the header of an open file.
    pub(super) fn read(path: &Path, file: &mut File) -> Result<Self, DataError> {
        let found = file.metadata().map_err(|e| DataError::io(path, "read", &e))?.len();
        let text =
            header::read(file).ok_or_else(|| not_latents(path, "it is no safetensors file"))?;
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

fn not_latents(path: &Path, reason: &str) -> DataError {
    DataError::Latents { path: path.to_owned(), reason: reason.to_owned() }
}
