//! The tokenizer's tensors under their published names, and its encoder and decoder chains.

use super::builder::Builder;
use super::config::{TokenizerConfig, TokenizerConfigError};
use super::layer::Layer;
use super::network::{Gradients, Network};
use crate::params::Layout;
use sar_math::Real;
use sar_math::backend::{Buffers, Conv, MapDims, NORMALIZE_EPS, Slot};
use sar_math::philox::{Purpose, Stream};

/// Channels of an image: red, green, blue in [−1, 1].
pub const IMAGE_CHANNELS: usize = 3;

/// A convolutional VQ tokenizer: the places of its parameters, and how they are applied.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    config: TokenizerConfig,
    layout: Layout,
    encoder: Network,
    decoder: Network,
    codebook: Slot,
    phis: Vec<Conv>,
}

impl Tokenizer {
    /// Creates a tokenizer of this shape.
    ///
    /// # Errors
    /// [`TokenizerConfigError`], which names the invalid field.
    pub fn new(config: &TokenizerConfig) -> Result<Self, TokenizerConfigError> {
        config.validate()?;
        let mut build = Builder::new(config);
        let mut encoder = build.encoder(config);
        let mut decoder = build.decoder(config);
        let (k, z) = (config.latent_channels, config.z_channels);
        let codebook = build.layout.push("quantize.embedding.weight", &[config.vocab, k]);
        // VAR uses 3×3 convolutions around the quantizer.
        let kernel = if config.residual > 0 { 3 } else { 1 };
        encoder.push(Layer::Conv(build.conv("quant_conv", z, k, kernel)));
        decoder.insert(0, Layer::Conv(build.conv("post_quant_conv", k, z, kernel)));
        let phi = |i| build.conv(&format!("quantize.quant_resi.qresi_ls.{i}"), k, k, 3).slots;
        let phis = (0..config.residual).map(phi).collect();
        Ok(Self {
            config: config.clone(),
            layout: build.layout,
            encoder: Network { layers: encoder, inputs: IMAGE_CHANNELS },
            decoder: Network { layers: decoder, inputs: k },
            codebook,
            phis,
        })
    }

    /// Returns the tokenizer's shape.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Returns names, shapes and places of the parameters. Checkpoints also hold a published
    /// buffer, `quantize.codebook_used` (VAR: `quantize.ema_vocab_hit_SV`), which is not a
    /// parameter.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the chain from image `[b, 3, h, w]` to latent `[b, K, h/f, w/f]`, including
    /// `quant_conv`.
    pub fn encoder(&self) -> &Network {
        &self.encoder
    }

    /// Returns the chain from codes `[b, K, h, w]` to image `[b, 3, h·f, w·f]`, including
    /// `post_quant_conv`.
    pub fn decoder(&self) -> &Network {
        &self.decoder
    }

    /// Returns the codebook `[V, K]` as trained: its rows are normalised on use, unless scales add
    /// up.
    pub fn codebook(&self) -> Slot {
        self.codebook
    }

    /// Returns the convolutions `[K, K, 3, 3]` through which the maps of the scales add up; empty
    /// if they do not.
    pub(super) fn phis(&self) -> &[Conv] {
        &self.phis
    }

    /// Pixels along an image side per position of the latent.
    pub fn downsample_factor(&self) -> usize {
        self.config.downsample_factor()
    }

    /// Side of the latent for an image side; a remainder is cut off.
    pub fn latent_side(&self, image_side: usize) -> usize {
        image_side / self.downsample_factor()
    }

    /// Dimensions of the latents of `batch` images with this side.
    pub fn latents(&self, batch: usize, image_side: usize) -> MapDims {
        let side = self.latent_side(image_side);
        MapDims { batch, channels: self.config().latent_channels, height: side, width: side }
    }

    /// Returns initial parameters for a seed: convolutions as PyTorch's default (weight and bias
    /// uniform in ±1/√fan_in), norms 1 and 0, codebook rows uniform directions.
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
                // A bias follows its weight and has the same fan-in.
                uniform(to, fan_in, &mut stream);
            }
        }
        values
    }

    /// Allocates memory for the gradients of both chains.
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
}

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

/// Fills rows with uniformly distributed directions of length 1.
pub(crate) fn directions(to: &mut [f32], width: usize, stream: &mut Stream) {
    for row in to.chunks_exact_mut(width) {
        for v in row.iter_mut() {
            *v = stream.normal() as f32;
        }
        normalise(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_shapes_and_order_are_the_published_ones() {
        // The order of tensors in the file matters; a map would lose it.
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
        assert_eq!(tokenizer.latents(3, 256), tokenizer.encoder().output(3, 256, 256));
        // 72 million, as the paper says.
        assert_eq!(tokenizer.layout().parameters() / 1_000_000, 72);
    }

    #[test]
    fn names_and_shapes_of_var_are_the_published_ones() {
        let text = include_str!("../../../tests/var/shapes.json");
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        let published = all["VAR-vae"].as_object().unwrap();
        let tokenizer = Tokenizer::new(&TokenizerConfig::published_var()).unwrap();
        for tensor in tokenizer.layout().tensors() {
            let want: Vec<usize> = serde_json::from_value(published[&tensor.name].clone()).unwrap();
            assert_eq!(tensor.shape, want, "{}", tensor.name);
        }
        let buffer = "quantize.ema_vocab_hit_SV";
        assert!(published.contains_key(buffer));
        assert_eq!(tokenizer.layout().tensors().len() + 1, published.len(), "all but {buffer}");
        let count = all["VAR-vae:parameters"].as_u64().unwrap();
        assert_eq!(tokenizer.layout().parameters() as u64, count);
        assert_eq!(tokenizer.downsample_factor(), 16);
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
