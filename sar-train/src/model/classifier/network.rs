//! The network: layout, forward and backward, built from the backend's ops.

use super::{ClassifierConfig, ClassifierError, ClassifierOps, FEATURES};
use crate::params::Layout;
use sar_math::Real as _;
use sar_math::backend::{Conv, ConvDims, GroupNorm, Linear, LinearDims, MapDims, Slot, Write};
use sar_math::philox::{Purpose, Stream};

const KERNEL: usize = 3;
const NORM_EPS: f64 = 1e-6;

/// One convolution with its norm and SiLU; dimensions are of one sample.
#[derive(Clone, Copy, Debug)]
struct Layer {
    conv: ConvDims,
    slots: Conv,
    norm: GroupNorm,
    map: MapDims,
}

impl Layer {
    fn conv(&self, batch: usize) -> ConvDims {
        ConvDims { batch, ..self.conv }
    }

    fn map(&self, batch: usize) -> MapDims {
        MapDims { batch, ..self.map }
    }
}

/// The network's structure, without weights.
#[derive(Clone, Debug)]
pub struct Network {
    config: ClassifierConfig,
    layout: Layout,
    layers: Vec<Layer>,
    last: MapDims,
    head: Linear,
}

impl Network {
    /// Lays out the network.
    ///
    /// # Errors
    /// [`ClassifierConfig::validate`].
    pub fn new(config: ClassifierConfig) -> Result<Self, ClassifierError> {
        config.validate()?;
        let mut layout = Layout::new();
        let mut layers = Vec::new();
        let mut map = MapDims {
            batch: 1,
            channels: config.channels,
            height: config.height,
            width: config.width,
        };
        for (stage, &channels) in config.stages.iter().enumerate() {
            for (index, stride) in [2, 1].into_iter().enumerate() {
                let name = format!("stages.{stage}.{index}");
                let layer = layer(&mut layout, &name, map, channels, stride, config.groups);
                map = layer.map;
                layers.push(layer);
            }
        }
        let weight = layout.push("head.weight", &[config.classes, map.channels]);
        let bias = Some(layout.push("head.bias", &[config.classes]));
        Ok(Self { config, layout, layers, last: map, head: Linear { weight, bias } })
    }

    /// Shape of images and network.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// Names, shapes and places of the weights.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Width of the features before the last layer; [`FEATURES`] unless configured otherwise.
    pub fn feature_dims(&self) -> usize {
        self.last.channels
    }

    /// Initial weights: He et al. (2015) for convolutions, unit norms, a small head.
    pub fn initial(&self, seed: u64) -> Vec<f64> {
        let mut weights = vec![0.0; self.layout.len()];
        for (index, tensor) in self.layout.tensors().iter().enumerate() {
            let Some(values) = weights.get_mut(tensor.slot.range()) else { continue };
            if tensor.name.ends_with("norm.weight") {
                values.fill(1.0);
            } else if tensor.shape.len() > 1 {
                let fan_in: usize = tensor.shape.iter().skip(1).product();
                let gain = if tensor.name == "head.weight" { 1.0f64 } else { 2.0 };
                let sigma = (gain / fan_in as f64).sqrt();
                let mut stream = Stream::new(seed, Purpose::Init, index as u64);
                values.iter_mut().for_each(|v| *v = sigma * stream.normal());
            }
        }
        weights
    }

    /// Runs the network from the images in `space` to features and logits, which are left there.
    ///
    /// # Errors
    /// The backend failed; likewise below.
    pub(super) fn forward<B: ClassifierOps>(
        &self,
        backend: &B,
        batch: usize,
        params: &B::Params,
        space: &mut Workspace<B>,
    ) -> Result<(), B::Error> {
        for (i, layer) in self.layers.iter().enumerate() {
            let (before, after) = space.maps.split_at_mut(i + 1);
            let (x, y) = (&before[i], &mut after[0]);
            let hidden = &mut space.convolved[i];
            backend.conv2d(layer.conv(batch), x, params, layer.slots, hidden)?;
            let stats = &mut space.stats[i];
            backend.group_norm(layer.map(batch), hidden, params, layer.norm, y, stats)?;
        }
        let last = MapDims { batch, ..self.last };
        backend.area_resize(last, 1, 1, &space.maps[self.layers.len()], &mut space.features)?;
        backend.linear(self.head_dims(batch), &space.features, params, self.head, &mut space.logits)
    }

    /// Computes parameter gradients from the gradient of the logits, which is expected in
    /// `space.logits`.
    pub(super) fn backward<B: ClassifierOps>(
        &self,
        backend: &B,
        batch: usize,
        params: &B::Params,
        space: &mut Workspace<B>,
        grads: &mut B::Accum,
    ) -> Result<(), B::Error> {
        let (dims, d_logits) = (self.head_dims(batch), &space.logits);
        backend.linear_backward_input(dims, d_logits, params, self.head, &mut space.d_features)?;
        backend.linear_backward_weight(
            dims,
            d_logits,
            &space.features,
            self.head,
            Write::Accumulate,
            grads,
        )?;
        let last = MapDims { batch, ..self.last };
        let (dy, dx) = (&mut space.d_map, &mut space.d_convolved);
        backend.area_resize_backward(last, 1, 1, &space.d_features, dy)?;
        for (i, layer) in self.layers.iter().enumerate().rev() {
            backend.group_norm_backward(
                layer.map(batch),
                dy,
                &space.convolved[i],
                &space.stats[i],
                params,
                layer.norm,
                Write::Overwrite,
                dx,
                grads,
            )?;
            // The images need no gradient.
            let into = if i == 0 { None } else { Some(&mut *dy) };
            let (dims, x) = (layer.conv(batch), &space.maps[i]);
            backend.conv2d_backward(dims, dx, x, params, layer.slots, into, grads)?;
        }
        Ok(())
    }

    /// Uploads a batch, runs it and appends its features and logits.
    ///
    /// Features are sums over n positions divided by √n, not by n: means would have variances far
    /// below 1, and distances would have many leading zeros.
    pub(super) fn extract<B: ClassifierOps>(
        &self,
        backend: &B,
        params: &B::Params,
        images: &[f32],
        space: &mut Workspace<B>,
        features: &mut Vec<f64>,
        logits: &mut Vec<f64>,
    ) -> Result<(), B::Error> {
        let batch = images.len() / self.config.image_len();
        space.upload(backend, images)?;
        self.forward(backend, batch, params, space)?;
        let mut host = vec![B::Host::default(); batch * self.feature_dims()];
        backend.download(&space.features, 0, &mut host)?;
        let scale = ((self.last.height * self.last.width) as f64).sqrt();
        features.extend(host.iter().map(|v| scale * v.wide()));
        let mut host = vec![B::Host::default(); batch * self.config.classes];
        backend.download(&space.logits, 0, &mut host)?;
        logits.extend(host.iter().map(|v| v.wide()));
        Ok(())
    }

    fn head_dims(&self, batch: usize) -> LinearDims {
        LinearDims { rows: batch, inputs: self.last.channels, outputs: self.config.classes }
    }

    /// Number of elements of the largest convolution output, per sample.
    fn largest_map(&self) -> usize {
        self.layers.iter().map(|l| l.map.len()).max().unwrap_or(FEATURES)
    }
}

fn layer(
    layout: &mut Layout,
    name: &str,
    input: MapDims,
    outputs: usize,
    stride: usize,
    groups: usize,
) -> Layer {
    let shape = [outputs, input.channels, KERNEL, KERNEL];
    let slots = Conv {
        weight: layout.push(format!("{name}.conv.weight"), &shape),
        bias: layout.push(format!("{name}.conv.bias"), &[outputs]),
    };
    let mut vector =
        |what: &str| -> Slot { layout.push(format!("{name}.norm.{what}"), &[outputs]) };
    let (weight, bias) = (vector("weight"), vector("bias"));
    let norm = GroupNorm { weight, bias, groups, eps: NORM_EPS, silu: true };
    let conv = ConvDims {
        batch: 1,
        inputs: input.channels,
        outputs,
        height: input.height,
        width: input.width,
        kernel: KERNEL,
        stride,
        pad_before: 1,
        pad_after: 1,
    };
    let (height, width) = conv.output();
    Layer { conv, slots, norm, map: MapDims { batch: 1, channels: outputs, height, width } }
}

/// Buffers for one batch, reused from batch to batch.
pub struct Workspace<B: ClassifierOps> {
    /// The images, then the output of each layer.
    maps: Vec<B::Activation>,
    /// Output of each convolution, before its norm.
    convolved: Vec<B::Activation>,
    stats: Vec<B::Accum>,
    pub(super) features: B::Activation,
    pub(super) logits: B::Activation,
    d_features: B::Activation,
    d_map: B::Activation,
    d_convolved: B::Activation,
    staging: Vec<B::Host>,
}

impl<B: ClassifierOps> Workspace<B> {
    /// Allocates buffers for `batch` images.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, network: &Network, batch: usize) -> Result<Self, B::Error> {
        let mut maps = vec![backend.activation(batch * network.config.image_len())?];
        let (mut convolved, mut stats) = (Vec::new(), Vec::new());
        for layer in &network.layers {
            maps.push(backend.activation(layer.map(batch).len())?);
            convolved.push(backend.activation(layer.map(batch).len())?);
            stats.push(backend.accum(batch * layer.norm.groups * 2)?);
        }
        let largest = batch * network.largest_map();
        Ok(Self {
            maps,
            convolved,
            stats,
            features: backend.activation(batch * network.feature_dims())?,
            logits: backend.activation(batch * network.config.classes)?,
            d_features: backend.activation(batch * network.feature_dims())?,
            d_map: backend.activation(largest)?,
            d_convolved: backend.activation(largest)?,
            staging: Vec::new(),
        })
    }

    /// Copies images to the device.
    pub(super) fn upload(&mut self, backend: &B, images: &[f32]) -> Result<(), B::Error> {
        self.staging.clear();
        self.staging.extend(images.iter().map(|&v| B::Host::of(f64::from(v))));
        backend.upload(&self.staging, &mut self.maps[0], 0)
    }
}
