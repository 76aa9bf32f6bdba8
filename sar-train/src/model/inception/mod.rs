//! The Inception network with which published Fréchet distances and scores are measured: the one of
//! 2015-12-05 (Szegedy et al. 2015, trained on ImageNet, 1,008 outputs), which differs from
//! torchvision's.
//!
//! Weights are read from `pt_inception-2015-12-05-6726825d.pth`, a conversion of the TensorFlow
//! network that pytorch-fid distributes; torch-fidelity has the same file as
//! `weights-inception-2015-12-05-6726825d.pth`. Images are resized as in TensorFlow 1. Runs on the
//! CPU, in f32.

mod forward;
mod network;
mod resize;
#[cfg(test)]
mod tests;

use crate::checkpoint::{CheckpointError, RawTensor, arrange, read_pth};
use forward::{Pass, SPATIAL_CHANNELS, SPATIAL_SIDE, mean_of_positions};
use network::{NORM, Network, Node};
use sar_backend_cpu::{Buffer, CpuBackend, CpuError};
use sar_math::backend::{Buffers, Linear, LinearDims, TransformerOps};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Published name of the file that holds the weights.
pub const WEIGHTS: &str = "pt_inception-2015-12-05-6726825d.pth";

/// ε under the root of every batch norm, as published.
const NORM_EPS: f64 = 1e-3;

/// Why the network cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InceptionError {
    /// The file cannot be read, or tensors are missing.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The file does not hold this Inception network.
    #[error(
        "{}: {found}; published numbers are of the network of 2015-12-05, which has 1008 outputs: \
         give {WEIGHTS}, as pytorch-fid offers it (torch-fidelity: weights-inception-2015-12-05-6726825d.pth)", path.display()
    )]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The backend failed.
    #[error("inception: {0}")]
    Backend(#[from] CpuError),
    /// A number of values that is not a whole number of images or rows.
    #[error("inception: {what}: expected a multiple of {expected}, found {found}")]
    Shape {
        /// Which values.
        what: &'static str,
        /// Number of values of an image or row.
        expected: usize,
        /// What was given.
        found: usize,
    },
}

/// Features of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The pooled features, `[b, 2048]`.
    pub features: Vec<f32>,
    /// Spatial features: 7 channels of an inner 17×17 map, `[b, 2023]`, in the published order.
    pub spatial: Vec<f32>,
}

/// The network with its weights.
#[derive(Debug)]
pub struct Inception {
    network: Network,
    params: Buffer<f32>,
}

impl Inception {
    /// Reads the published weights, or those of a network whose channels are all reduced by the
    /// same factor. No numbers are published for the latter; it is for trying things out.
    ///
    /// # Errors
    /// [`InceptionError::OtherNetwork`] for another network, such as torchvision's;
    /// [`InceptionError::Weights`].
    pub fn load(path: &Path) -> Result<Self, InceptionError> {
        let mut tensors = read_pth(path)?;
        let network = Network::new(narrowed(&tensors));
        check_network(path, &network, &tensors)?;
        // A counter of training batches, not needed here; in some files it is a floating-point
        // number.
        tensors.retain(|name, _| !name.ends_with(".num_batches_tracked"));
        Self::of(path, network, &tensors)
    }

    fn of(
        path: &Path,
        network: Network,
        tensors: &BTreeMap<String, RawTensor>,
    ) -> Result<Self, InceptionError> {
        let published = arrange(path, &network.published, tensors)?;
        let mut folded = vec![0.0; network.folded.len()];
        fold(&network, &network.root, &published, &mut folded);
        if let Some(from) = network.published.get("fc.weight") {
            folded[network.classes.range()].copy_from_slice(&published[from.slot.range()]);
        }
        let backend = CpuBackend::<f32>::new();
        let mut params = backend.params(folded.len())?;
        backend.upload_params(&folded, &mut params, 0)?;
        Ok(Self { network, params })
    }

    /// Number of pooled features of an image.
    pub fn feature_dims(&self) -> usize {
        self.network.features
    }

    /// Number of spatial features of an image.
    pub fn spatial_dims(&self) -> usize {
        SPATIAL_CHANNELS * SPATIAL_SIDE * SPATIAL_SIDE
    }

    /// Number of classes of the network.
    pub fn classes(&self) -> usize {
        self.network.class_count
    }

    /// Returns the features of images of bytes, `[b, height, width, 3]`. Each image's features are
    /// independent of the other images.
    ///
    /// # Errors
    /// The values are not whole images, or memory runs out.
    pub fn see(&self, images: &[u8], height: usize, width: usize) -> Result<Seen, InceptionError> {
        let expected = height * width * 3;
        let found = images.len();
        if expected == 0 || !found.is_multiple_of(expected) {
            return Err(InceptionError::Shape { what: "images", expected, found });
        }
        let mut pass = Pass { params: &self.params, spatial: Vec::new() };
        let input = resize::network_input(images, height, width);
        let last = pass.run(&self.network.root, &input)?;
        Ok(Seen { features: mean_of_positions(&last), spatial: pass.spatial })
    }

    /// Returns class probabilities `[b, classes]` of features `[b, 2048]`, without the last layer's
    /// bias, as in the published Inception Scores.
    ///
    /// # Errors
    /// The values are not whole rows, or memory runs out.
    pub fn probabilities(&self, features: &[f32]) -> Result<Vec<f64>, InceptionError> {
        let (inputs, outputs) = (self.feature_dims(), self.classes());
        let found = features.len();
        if !found.is_multiple_of(inputs) {
            return Err(InceptionError::Shape { what: "features", expected: inputs, found });
        }
        let rows = found / inputs;
        let backend = CpuBackend::<f32>::new();
        let mut x = backend.activation(found)?;
        let mut y = backend.activation(rows * outputs)?;
        backend.upload(features, &mut x, 0)?;
        let layer = Linear { weight: self.network.classes, bias: None };
        let dims = LinearDims { rows, inputs, outputs };
        backend.linear(dims, &x, &self.params, layer, &mut y)?;
        Ok(y.as_slice().chunks_exact(outputs).flat_map(softmax).collect())
    }
}

/// Returns the factor by which a network's channels are reduced, judged by its first convolution; 1
/// if unknown.
fn narrowed(tensors: &BTreeMap<String, RawTensor>) -> usize {
    const FIRST: usize = 32;
    let outputs = tensors.get("Conv2d_1a_3x3.conv.weight").and_then(|t| t.shape.first());
    let narrowed = outputs.and_then(|&outputs| FIRST.checked_div(outputs));
    narrowed.filter(|n| [1, 2, 4, 8, 16].contains(n)).unwrap_or(1)
}

/// Refuses files that hold no Inception network, or torchvision's.
fn check_network(
    path: &Path,
    network: &Network,
    tensors: &BTreeMap<String, RawTensor>,
) -> Result<(), InceptionError> {
    let outputs = tensors.get("fc.weight").and_then(|t| t.shape.first());
    let auxiliary = tensors.keys().any(|name| name.starts_with("AuxLogits."));
    let found = match (outputs, tensors.keys().next()) {
        (Some(&outputs), _) if auxiliary || outputs != network.class_count => {
            format!("an Inception network of {outputs} outputs, torchvision's")
        }
        (Some(_), _) => return Ok(()),
        (None, Some(first)) => format!("no Inception network (its first tensor is `{first}`)"),
        (None, None) => "no Inception network".to_owned(),
    };
    Err(InceptionError::OtherNetwork { path: path.to_owned(), found })
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&v| f64::from(v - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// Folds every batch norm into the convolution before it. The folded weights are
/// `[outputs, rows, columns, inputs]`, so that the values of a window are contiguous.
fn fold(network: &Network, node: &Node, published: &[f32], folded: &mut [f32]) {
    let conv = match node {
        Node::Conv(conv) => conv,
        Node::Chain(nodes) | Node::Join(nodes) => {
            nodes.iter().for_each(|node| fold(network, node, published, folded));
            return;
        }
        Node::Max { .. } | Node::Mean => return,
    };
    let tensor = |name: &str| -> &[f32] {
        let found = network.published.get(&format!("{}.{name}", conv.name));
        found.map_or(&[], |tensor| &published[tensor.slot.range()])
    };
    let weight = tensor("conv.weight");
    let [gain, shift, mean, variance] = NORM.map(|part| tensor(&format!("bn.{part}")));
    let (inputs, taps, terms) = (conv.inputs, conv.kernel.0 * conv.kernel.1, conv.terms());
    for o in 0..conv.outputs {
        let scale = f64::from(gain[o]) / (f64::from(variance[o]) + NORM_EPS).sqrt();
        let bias = f64::from(shift[o]) - f64::from(mean[o]) * scale;
        folded[conv.bias.offset + o] = bias as f32;
        let to = &mut folded[conv.weight.offset + o * terms..][..terms];
        for (tap, to) in to.chunks_exact_mut(inputs).enumerate() {
            for (c, to) in to.iter_mut().enumerate() {
                *to = (f64::from(weight[o * terms + c * taps + tap]) * scale) as f32;
            }
        }
    }
}
