//! The Inception network that published Fréchet distances and scores are measured with: the one of
//! 2015-12-05 (Szegedy et al. 2015, trained on ImageNet, 1,008 outputs), which differs from torchvision's.
//!
//! Weights are read from `pt_inception-2015-12-05-6726825d.pth`, the same network taken from TensorFlow, as
//! pytorch-fid offers it; torch-fidelity has the same file as `weights-inception-2015-12-05-6726825d.pth`. Images
//! are scaled as TensorFlow 1 does. Runs on the CPU, in f32.

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

/// The file that holds the weights, as it is offered.
pub const WEIGHTS: &str = "pt_inception-2015-12-05-6726825d.pth";

/// Under the root of every batch norm, as published.
const NORM_EPS: f64 = 1e-3;

/// Why the network cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InceptionError {
    /// The file cannot be read or lacks tensors.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// Another Inception network.
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
    /// Values that are not whole images or rows.
    #[error("inception: {what}: expected a multiple of {expected}, found {found}")]
    Shape {
        /// Which values.
        what: &'static str,
        /// Values of an image or row.
        expected: usize,
        /// What was given.
        found: usize,
    },
}

/// What the network makes of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The pooled features, `[b, 2048]`.
    pub features: Vec<f32>,
    /// The spatial features: 7 channels of an inner map of 17×17, `[b, 2023]`, in the published order.
    pub spatial: Vec<f32>,
}

/// The network with its weights.
#[derive(Debug)]
pub struct Inception {
    network: Network,
    params: Buffer<f32>,
}

impl Inception {
    /// Reads the published weights; or those of a network whose channels are all fewer by the same factor, of
    /// whose numbers nothing is published, to try things with.
    ///
    /// # Errors
    /// [`InceptionError::OtherNetwork`] for torchvision's; [`InceptionError::Weights`].
    pub fn load(path: &Path) -> Result<Self, InceptionError> {
        let mut tensors = read_pth(path)?;
        let network = Network::new(narrowed(&tensors));
        check_network(path, &network, &tensors)?;
        // Counts batches of its training; a number of no use, in some files one of floating point.
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

    /// Pooled features of an image.
    pub fn feature_dims(&self) -> usize {
        self.network.features
    }

    /// Spatial features of an image.
    pub fn spatial_dims(&self) -> usize {
        SPATIAL_CHANNELS * SPATIAL_SIDE * SPATIAL_SIDE
    }

    /// Classes that the network tells apart.
    pub fn classes(&self) -> usize {
        self.network.class_count
    }

    /// Features of images `[b, height, width, 3]` of bytes. An image's do not depend on the others.
    ///
    /// # Errors
    /// Values that are not whole images; no memory.
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

    /// Class probabilities `[b, classes]` of features `[b, 2048]`: without the last layer's bias, as the
    /// published Inception Scores have it.
    ///
    /// # Errors
    /// Values that are not whole rows; no memory.
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

/// By what the channels of a network are divided, by its first convolution; 1 where that is none.
fn narrowed(tensors: &BTreeMap<String, RawTensor>) -> usize {
    const FIRST: usize = 32;
    let outputs = tensors.get("Conv2d_1a_3x3.conv.weight").and_then(|t| t.shape.first());
    let narrowed = outputs.and_then(|&outputs| FIRST.checked_div(outputs));
    narrowed.filter(|n| [1, 2, 4, 8, 16].contains(n)).unwrap_or(1)
}

/// Refuses what is no Inception network, or torchvision's.
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

/// Takes every batch norm into the convolution before it, whose weights are then `[outputs, rows, columns,
/// inputs]`: what a window holds lies in one piece.
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
