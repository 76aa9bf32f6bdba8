//! The tokenizer's tensors under their published names, and its two chains.

use super::config::{TokenizerConfig, TokenizerConfigError};
use super::layer::{AttentionBlock, ConvLayer, Layer, ResidualBlock};
use super::network::{Gradients, Network};
use crate::params::Layout;
use sar_math::Real;
use sar_math::backend::{Buffers, Conv, GroupNorm, NORMALIZE_EPS, Slot};
use sar_math::philox::{Purpose, Stream};

/// Channels of an image: red, green, blue in [−1, 1].
pub const IMAGE_CHANNELS: usize = 3;
/// Under the root of the group norms, as published.
const GROUP_NORM_EPS: f64 = 1e-6;

/// A convolutional VQ tokenizer: where its parameters lie, and how they are applied.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    config: TokenizerConfig,
    layout: Layout,
    encoder: Network,
    decoder: Network,
    codebook: Slot,
}

impl Tokenizer {
    /// A tokenizer of this shape.
    ///
    /// # Errors
    /// [`TokenizerConfigError`] naming the field at fault.
    pub fn new(config: &TokenizerConfig) -> Result<Self, TokenizerConfigError> {
        config.validate()?;
        let mut build = Builder { layout: Layout::new(), groups: config.groups };
        let mut encoder = build.encoder(config);
        let mut decoder = build.decoder(config);
        let (k, z) = (config.latent_channels, config.z_channels);
        let codebook = build.layout.push("quantize.embedding.weight", &[config.vocab, k]);
        encoder.push(Layer::Conv(build.conv("quant_conv", z, k, 1)));
        decoder.insert(0, Layer::Conv(build.conv("post_quant_conv", k, z, 1)));
        Ok(Self {
            config: config.clone(),
            layout: build.layout,
            encoder: Network { layers: encoder, inputs: IMAGE_CHANNELS },
            decoder: Network { layers: decoder, inputs: k },
            codebook,
        })
    }

    /// The shape.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Names, shapes and places of the parameters. Checkpoints also hold a published buffer,
    /// `quantize.codebook_used`, which is no parameter.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Image `[b, 3, h, w]` to latent `[b, K, h/f, w/f]`, `quant_conv` included.
    pub fn encoder(&self) -> &Network {
        &self.encoder
    }

    /// Codes `[b, K, h, w]` to image `[b, 3, h·f, w·f]`, `post_quant_conv` included.
    pub fn decoder(&self) -> &Network {
        &self.decoder
    }

    /// The codebook `[V, K]`, as trained: its rows are normalised where they are used.
    pub fn codebook(&self) -> Slot {
        self.codebook
    }

    /// Pixels of an image side per position of the latent.
    pub fn downsample_factor(&self) -> usize {
        self.config.downsample_factor()
    }

    /// Side of the latent of an image side; what does not divide is cut off.
    pub fn latent_side(&self, image_side: usize) -> usize {
        image_side / self.downsample_factor()
    }

    /// Initial parameters of a seed: convolutions as PyTorch's default (weight and bias uniform in
    /// ±1/√fan_in), norms 1 and 0, codebook rows uniform directions.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0f32; self.layout.len()];
        let mut fan_in = 1;
        for (i, tensor) in self.layout.tensors().iter().enumerate() {
            let mut stream = Stream::new(seed, Purpose::Init, i as u64);
            let to = &mut values[tensor.slot.range()];
            if tensor.slot == self.codebook {
                directions(to, self.config.latent_channels, &mut stream);
            } else if let [_, inputs, rows, columns] = tensor.shape[..] {
                fan_in = inputs * rows * columns;
                uniform(to, fan_in, &mut stream);
            } else if tensor.name.contains("norm") {
                to.fill(if tensor.name.ends_with("weight") { 1.0 } else { 0.0 });
            } else {
                // A bias follows its weight.
                uniform(to, fan_in, &mut stream);
            }
        }
        values
    }

    /// Memory for the gradients of both chains.
    ///
    /// # Errors
    /// Out of memory.
    pub fn gradients<B: Buffers>(
        &self,
        backend: &B,
        batch: usize,
        height: usize,
        width: usize,
    ) -> Result<Gradients<B>, B::Error> {
        let f = self.downsample_factor();
        let len = (self.encoder.largest(batch, height, width)).max(self.decoder.largest(
            batch,
            height.div_ceil(f),
            width.div_ceil(f),
        ));
        let new = || backend.activation(len);
        let inner = [new()?, new()?, new()?, new()?];
        Ok(Gradients { current: new()?, other: new()?, inner })
    }

    /// The L2-normalised codebook `[V, K]`, as [`sar_math::backend::RolloutOps`] takes it.
    ///
    /// # Errors
    /// Out of memory; shape, where `params` are of another model.
    pub fn codebook_normalised<B: Buffers>(
        &self,
        backend: &B,
        params: &B::Params,
    ) -> Result<B::Accum, B::Error> {
        let mut rows = vec![B::Host::zero(); self.codebook.len];
        backend.download_params(params, self.codebook.offset, &mut rows)?;
        for row in rows.chunks_exact_mut(self.config.latent_channels) {
            normalise(row);
        }
        let mut codes = backend.accum(rows.len())?;
        backend.upload_accum(&rows, &mut codes, 0)?;
        Ok(codes)
    }
}

use num_traits::Zero;

/// Divides a row by its norm, or by [`NORMALIZE_EPS`] where that is larger.
pub(crate) fn normalise<T: Real>(row: &mut [T]) {
    let norm = row.iter().map(|&v| v * v).sum::<T>().sqrt();
    let norm = if norm < T::of(NORMALIZE_EPS) { T::of(NORMALIZE_EPS) } else { norm };
    for v in row {
        *v /= norm;
    }
}

fn uniform(to: &mut [f32], fan_in: usize, stream: &mut Stream) {
    let bound = (1.0 / fan_in as f64).sqrt();
    for v in to {
        *v = ((2.0 * stream.uniform() - 1.0) * bound) as f32;
    }
}

fn directions(to: &mut [f32], width: usize, stream: &mut Stream) {
    for row in to.chunks_exact_mut(width) {
        for v in row.iter_mut() {
            *v = stream.normal() as f32;
        }
        normalise(row);
    }
}

struct Builder {
    layout: Layout,
    groups: usize,
}

impl Builder {
    fn conv(&mut self, name: &str, inputs: usize, outputs: usize, kernel: usize) -> ConvLayer {
        let weight = self.layout.push(format!("{name}.weight"), &[outputs, inputs, kernel, kernel]);
        let bias = self.layout.push(format!("{name}.bias"), &[outputs]);
        let (slots, pad) = (Conv { weight, bias }, kernel / 2);
        ConvLayer { slots, inputs, outputs, kernel, stride: 1, pad_before: pad, pad_after: pad }
    }

    fn norm(&mut self, name: &str, channels: usize, silu: bool) -> GroupNorm {
        let weight = self.layout.push(format!("{name}.weight"), &[channels]);
        let bias = self.layout.push(format!("{name}.bias"), &[channels]);
        GroupNorm { weight, bias, groups: self.groups, eps: GROUP_NORM_EPS, silu }
    }

    fn residual(&mut self, name: &str, inputs: usize, outputs: usize) -> Layer {
        Layer::Residual(ResidualBlock {
            norm1: self.norm(&format!("{name}.norm1"), inputs, true),
            conv1: self.conv(&format!("{name}.conv1"), inputs, outputs, 3),
            norm2: self.norm(&format!("{name}.norm2"), outputs, true),
            conv2: self.conv(&format!("{name}.conv2"), outputs, outputs, 3),
            nin_shortcut: (inputs != outputs)
                .then(|| self.conv(&format!("{name}.nin_shortcut"), inputs, outputs, 1)),
        })
    }

    fn attention(&mut self, name: &str, channels: usize) -> Layer {
        Layer::Attention(AttentionBlock {
            norm: self.norm(&format!("{name}.norm"), channels, false),
            q: self.conv(&format!("{name}.q"), channels, channels, 1),
            k: self.conv(&format!("{name}.k"), channels, channels, 1),
            v: self.conv(&format!("{name}.v"), channels, channels, 1),
            proj_out: self.conv(&format!("{name}.proj_out"), channels, channels, 1),
        })
    }

    fn middle(&mut self, name: &str, channels: usize, layers: &mut Vec<Layer>) {
        layers.push(self.residual(&format!("{name}.mid.0"), channels, channels));
        layers.push(self.attention(&format!("{name}.mid.1"), channels));
        layers.push(self.residual(&format!("{name}.mid.2"), channels, channels));
    }

    /// `count` residual blocks, each followed by attention where asked for. The file holds all
    /// blocks before all attention layers.
    fn level(
        &mut self,
        name: &str,
        mut inputs: usize,
        outputs: usize,
        count: usize,
        attention: bool,
        layers: &mut Vec<Layer>,
    ) {
        let mut blocks = Vec::new();
        for j in 0..count {
            blocks.push(self.residual(&format!("{name}.res.{j}"), inputs, outputs));
            inputs = outputs;
        }
        for (j, block) in blocks.into_iter().enumerate() {
            layers.push(block);
            if attention {
                layers.push(self.attention(&format!("{name}.attn.{j}"), outputs));
            }
        }
    }

    fn encoder(&mut self, config: &TokenizerConfig) -> Vec<Layer> {
        let mut layers =
            vec![Layer::Conv(self.conv("encoder.conv_in", IMAGE_CHANNELS, config.ch, 3))];
        let (levels, mut width) = (config.ch_mult.len(), config.ch);
        for level in 0..levels {
            let (name, last) = (format!("encoder.conv_blocks.{level}"), level + 1 == levels);
            let outputs = config.channels(level);
            self.level(&name, width, outputs, config.num_res_blocks, last, &mut layers);
            width = outputs;
            if !last {
                let mut down = self.conv(&format!("{name}.downsample.conv"), width, width, 3);
                // As published: one row and one column of zeros, at the end only.
                (down.stride, down.pad_before, down.pad_after) = (2, 0, 1);
                layers.push(Layer::Conv(down));
            }
        }
        self.middle("encoder", width, &mut layers);
        let norm = self.norm("encoder.norm_out", width, true);
        layers.push(Layer::Out(norm, self.conv("encoder.conv_out", width, config.z_channels, 3)));
        layers
    }

    fn decoder(&mut self, config: &TokenizerConfig) -> Vec<Layer> {
        let levels = config.ch_mult.len();
        let mut width = config.channels(levels - 1);
        let conv_in = self.conv("decoder.conv_in", config.z_channels, width, 3);
        let mut layers = vec![Layer::Conv(conv_in)];
        self.middle("decoder", width, &mut layers);
        for i in 0..levels {
            let (name, outputs) =
                (format!("decoder.conv_blocks.{i}"), config.channels(levels - 1 - i));
            self.level(&name, width, outputs, config.num_res_blocks + 1, i == 0, &mut layers);
            width = outputs;
            if i + 1 < levels {
                let up = self.conv(&format!("{name}.upsample.conv"), width, width, 3);
                layers.push(Layer::Upsample(up));
            }
        }
        let norm = self.norm("decoder.norm_out", width, true);
        layers.push(Layer::Out(norm, self.conv("decoder.conv_out", width, IMAGE_CHANNELS, 3)));
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_shapes_and_order_are_the_published_ones() {
        // The file keeps its order; a map would not.
        let text = include_str!("../../../../golden/checkpoint_shapes.json");
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        let published = all["FlexVAE"].as_object().unwrap();
        let tokenizer = Tokenizer::new(&TokenizerConfig::published()).unwrap();
        let mut seen = 0;
        for tensor in tokenizer.layout().tensors() {
            let want: Vec<usize> = serde_json::from_value(published[&tensor.name].clone()).unwrap();
            assert_eq!(tensor.shape, want, "{}", tensor.name);
            seen += 1;
        }
        assert_eq!(seen + 1, published.len(), "all but the buffer quantize.codebook_used");
        assert!(published.contains_key("quantize.codebook_used"));
        assert_eq!(tokenizer.downsample_factor(), 16);
        assert_eq!(tokenizer.latent_side(256), 16);
        // 72 million, as the paper says.
        assert_eq!(tokenizer.layout().parameters() / 1_000_000, 72);
    }

    #[test]
    fn initial_values_depend_on_the_seed_alone() {
        let tokenizer = Tokenizer::new(&TokenizerConfig::default()).unwrap();
        let values = tokenizer.initial(3);
        assert_eq!(values, tokenizer.initial(3));
        assert_ne!(values, tokenizer.initial(4));
        let of = |name: &str| &values[tokenizer.layout().get(name).unwrap().slot.range()];
        assert!(of("encoder.norm_out.weight").iter().all(|&v| v == 1.0));
        assert!(of("encoder.norm_out.bias").iter().all(|&v| v == 0.0));
        let bound = (1.0f32 / (3.0 * 9.0)).sqrt();
        for name in ["encoder.conv_in.weight", "encoder.conv_in.bias"] {
            let largest = of(name).iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(largest <= bound && largest > 0.5 * bound, "{name}: {largest}");
        }
    }
}
