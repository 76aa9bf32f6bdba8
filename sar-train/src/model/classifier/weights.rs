//! A classifier as a safetensors file: flat named tensors, its shape in the metadata.

use super::{Classifier, ClassifierConfig, ClassifierError, ClassifierOps};
use crate::files::write_whole;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sar_math::Real as _;
use std::collections::HashMap;
use std::path::Path;

/// Metadata key of the network's shape, as JSON.
const CONFIG_KEY: &str = "sar_classifier";

impl<B: ClassifierOps> Classifier<B> {
    /// Writes the weights in f32, through a temporary name.
    ///
    /// # Errors
    /// The file cannot be written, or the backend's.
    pub fn save(&self, backend: &B, path: &Path) -> Result<(), ClassifierError> {
        let weights: Vec<u8> =
            self.weights(backend)?.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        let failed = |problem: String| ClassifierError::File { path: path.into(), problem };
        let config = serde_json::to_string(self.config()).map_err(|e| failed(e.to_string()))?;
        let mut views = Vec::new();
        for tensor in self.layout().tensors() {
            let bytes = &weights[tensor.slot.offset * 4..tensor.slot.end() * 4];
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
            views.push((&tensor.name, view.map_err(|e| failed(e.to_string()))?));
        }
        let metadata = HashMap::from([(CONFIG_KEY.to_owned(), config)]);
        let bytes =
            safetensors::serialize(views, Some(metadata)).map_err(|e| failed(e.to_string()))?;
        write_whole(path, &bytes).map_err(|e| failed(e.to_string()))
    }

    /// Reads a classifier that [`Classifier::save`] wrote.
    ///
    /// # Errors
    /// A file that is missing, truncated, of something else, or whose tensors do not fit.
    pub fn load(backend: &B, path: &Path) -> Result<Self, ClassifierError> {
        let failed = |problem: String| ClassifierError::File { path: path.into(), problem };
        let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
        let damaged =
            |e| failed(format!("not a whole safetensors file ({e}); train the classifier again"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let text = header.metadata().as_ref().and_then(|m| m.get(CONFIG_KEY)).ok_or_else(|| {
            failed(format!("no '{CONFIG_KEY}' in its metadata: not a classifier of this program"))
        })?;
        let config: ClassifierConfig = serde_json::from_str(text)
            .map_err(|e| failed(format!("unreadable classifier shape: {e}")))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let mut classifier = Self::new(backend, config, 0)?;
        let mut host = vec![B::Host::default(); classifier.layout().len()];
        for tensor in classifier.layout().tensors() {
            let view = tensors.tensor(&tensor.name).map_err(|e| failed(e.to_string()))?;
            if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
                return Err(failed(format!(
                    "tensor {}: expected F32 {:?}, found {:?} {:?}",
                    tensor.name,
                    tensor.shape,
                    view.dtype(),
                    view.shape()
                )));
            }
            let values = view.data().chunks_exact(4);
            for (to, from) in host[tensor.slot.range()].iter_mut().zip(values) {
                *to = B::Host::of(f64::from(f32::from_le_bytes([
                    from[0], from[1], from[2], from[3],
                ])));
            }
        }
        backend
            .upload_params(&host, &mut classifier.params, 0)
            .map_err(ClassifierError::backend)?;
        Ok(classifier)
    }
}
