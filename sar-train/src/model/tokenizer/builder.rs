//! The tokenizer's layers in the order of the published files.

use super::config::TokenizerConfig;
use super::layer::{AttentionBlock, ConvLayer, Layer, ResidualBlock};
use super::layout::IMAGE_CHANNELS;
use crate::params::Layout;
use sar_math::backend::{Conv, GroupNorm, Slot};

/// ε under the root of the group norms, as published.
const GROUP_NORM_EPS: f64 = 1e-6;

/// How a published tokenizer names its layers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    FlexVar,
    Var,
}

/// Appends layers to a layout under their published names.
pub(super) struct Builder {
    pub(super) layout: Layout,
    groups: usize,
    names: Names,
}

impl Builder {
    pub(super) fn new(config: &TokenizerConfig) -> Self {
        let names = if config.residual > 0 { Names::Var } else { Names::FlexVar };
        Self { layout: Layout::new(), groups: config.groups, names }
    }

    pub(super) fn conv(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        kernel: usize,
    ) -> ConvLayer {
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
            qkv: match self.names {
                Names::FlexVar => ["q", "k", "v"]
                    .map(|part| self.conv(&format!("{name}.{part}"), channels, channels, 1)),
                Names::Var => self.thirds(&format!("{name}.qkv"), channels),
            },
            proj_out: self.conv(&format!("{name}.proj_out"), channels, channels, 1),
        })
    }

    /// Returns the three 1×1 convolutions that the file stores as one.
    fn thirds(&mut self, name: &str, channels: usize) -> [ConvLayer; 3] {
        let whole = self.conv(name, channels, 3 * channels, 1);
        [0, 1, 2].map(|third| {
            let of = |slot: Slot| {
                let len = slot.len / 3;
                Slot { offset: slot.offset + third * len, len }
            };
            let slots = Conv { weight: of(whole.slots.weight), bias: of(whole.slots.bias) };
            ConvLayer { slots, outputs: channels, ..whole }
        })
    }

    fn middle(&mut self, name: &str, channels: usize, layers: &mut Vec<Layer>) {
        let [first, attention, second] = match self.names {
            Names::FlexVar => ["0", "1", "2"],
            Names::Var => ["block_1", "attn_1", "block_2"],
        };
        layers.push(self.residual(&format!("{name}.mid.{first}"), channels, channels));
        layers.push(self.attention(&format!("{name}.mid.{attention}"), channels));
        layers.push(self.residual(&format!("{name}.mid.{second}"), channels, channels));
    }

    /// Appends `count` residual blocks, each followed by attention where asked for. In the file,
    /// all blocks come before all attention layers.
    fn level(
        &mut self,
        name: &str,
        mut inputs: usize,
        outputs: usize,
        count: usize,
        attention: bool,
        layers: &mut Vec<Layer>,
    ) {
        let block = match self.names {
            Names::FlexVar => "res",
            Names::Var => "block",
        };
        let mut blocks = Vec::new();
        for j in 0..count {
            blocks.push(self.residual(&format!("{name}.{block}.{j}"), inputs, outputs));
            inputs = outputs;
        }
        for (j, block) in blocks.into_iter().enumerate() {
            layers.push(block);
            if attention {
                layers.push(self.attention(&format!("{name}.attn.{j}"), outputs));
            }
        }
    }

    pub(super) fn encoder(&mut self, config: &TokenizerConfig) -> Vec<Layer> {
        let mut layers =
            vec![Layer::Conv(self.conv("encoder.conv_in", IMAGE_CHANNELS, config.ch, 3))];
        let (levels, mut width) = (config.ch_mult.len(), config.ch);
        for level in 0..levels {
            let last = level + 1 == levels;
            let name = match self.names {
                Names::FlexVar => format!("encoder.conv_blocks.{level}"),
                Names::Var => format!("encoder.down.{level}"),
            };
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

    pub(super) fn decoder(&mut self, config: &TokenizerConfig) -> Vec<Layer> {
        let levels = config.ch_mult.len();
        let mut width = config.channels(levels - 1);
        let conv_in = self.conv("decoder.conv_in", config.z_channels, width, 3);
        let mut layers = vec![Layer::Conv(conv_in)];
        self.middle("decoder", width, &mut layers);
        for i in 0..levels {
            let level = levels - 1 - i;
            let outputs = config.channels(level);
            // VAR numbers decoder levels from full resolution, too.
            let name = match self.names {
                Names::FlexVar => format!("decoder.conv_blocks.{i}"),
                Names::Var => format!("decoder.up.{level}"),
            };
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
