//! Names, places and initial values of a generator's parameters.

use super::positions::PositionSlots;
use super::{GeneratorError, GeneratorShape};
use crate::params::Layout;
use rayon::prelude::*;
use sar_math::backend::{AttentionSlots, Buffers, EmbeddingSlots, Linear, Modulation, Slot};
use sar_math::philox::{Purpose, Stream};

/// Places of one block's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSlots {
    pub qkv: Linear,
    pub attention: AttentionSlots,
    pub proj: Linear,
    pub fc1: Linear,
    pub fc2: Linear,
}

/// Places of all parameters of a generator.
///
/// The ada-linear layers of all blocks and of the head lie next to each other, weights first, so that
/// the whole model's modulation is one matrix product of a batch's class vectors.
#[derive(Clone, Debug)]
pub struct Generator {
    shape: GeneratorShape,
    layout: Layout,
    pub(crate) ada: Linear,
    pub(crate) blocks: Vec<BlockSlots>,
    pub(crate) head: Linear,
    pub(crate) class_emb: Slot,
    pub(crate) positions: PositionSlots,
    pub(crate) word: Linear,
    pub(crate) pos_start: Slot,
}

impl Generator {
    /// Lays out the parameters of a generator.
    ///
    /// # Errors
    /// [`GeneratorError`], as [`GeneratorShape::validate`].
    pub fn new(shape: &GeneratorShape) -> Result<Self, GeneratorError> {
        shape.validate()?;
        let (d, c) = (shape.depth, shape.width);
        let mut layout = Layout::new();
        let ada = ada_linears(&mut layout, d, c);
        let pos_start = layout.push("pos_start", &[1, 1, c]);
        let positions = PositionSlots::lay_out(&mut layout, shape);
        let word = linear(&mut layout, "word_embed", c, shape.channels);
        let class_emb = layout.push("class_emb.weight", &[shape.classes + 1, c]);
        let blocks = (0..d).map(|i| block(&mut layout, i, shape)).collect();
        let head = linear(&mut layout, "head", shape.vocab, c);
        let shape = shape.clone();
        Ok(Self { shape, layout, ada, blocks, head, class_emb, positions, word, pos_start })
    }

    /// Its shape.
    pub fn shape(&self) -> &GeneratorShape {
        &self.shape
    }

    /// Names and places.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Columns of the matrix of all modulation vectors: 6 per block, 2 of the head, each C.
    pub(crate) fn ada_stride(&self) -> usize {
        (6 * self.shape.depth + 2) * self.shape.width
    }

    /// Column of the gate γ of norm `n`'s branch: attention of block n/2 for even n, else its FFN.
    pub(crate) fn gate(&self, branch: usize) -> usize {
        (6 * (branch / 2) + branch % 2) * self.shape.width
    }

    /// Columns of scale and shift of norm `n`: two per block, then the head's.
    pub(crate) fn modulation(&self, norm: usize) -> Modulation {
        let (c, stride) = (self.shape.width, self.ada_stride());
        let base = 6 * (norm / 2) * c;
        if norm == 2 * self.shape.depth {
            return Modulation { stride, scale: base, shift: base + c };
        }
        let j = norm % 2;
        Modulation { stride, scale: base + (2 + j) * c, shift: base + (4 + j) * c }
    }

    /// Parameters of the token embedding, with or without `pos_start` on the class token.
    pub(crate) fn embedding(&self, with_start: bool) -> EmbeddingSlots {
        EmbeddingSlots { word: self.word, pos_start: with_start.then_some(self.pos_start) }
    }

    /// Tensors that ops read as wide as they are trained: all but those of the layers that are matrix products.
    fn exact(&self) -> Vec<Slot> {
        let blocks = self.blocks.iter().flat_map(|b| [b.qkv, b.proj, b.fc1, b.fc2]);
        let products = blocks.chain([self.ada, self.head]);
        let narrow: Vec<Slot> =
            products.flat_map(|layer| [layer.weight].into_iter().chain(layer.bias)).collect();
        let within = |slot: Slot| {
            narrow.iter().any(|all| all.offset <= slot.offset && slot.end() <= all.end())
        };
        let tensors = self.layout.tensors().iter().map(|tensor| tensor.slot);
        tensors.filter(|&slot| !within(slot)).collect()
    }

    /// Weights on a backend to sample with, which are not trained: on a GPU a third of what those take that are,
    /// in bf16.
    ///
    /// # Errors
    /// Out of memory; shape, where there are fewer than the layout's.
    pub fn frozen<B: Buffers>(
        &self,
        backend: &B,
        weights: &[B::Host],
    ) -> Result<B::Params, B::Error> {
        backend.frozen_params(weights, &self.exact())
    }

    /// Initial parameters, as published (`docs/method.md`, initialisation), from a seed.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0f32; self.layout.len()];
        let mut rest = values.as_mut_slice();
        let mut at = 0;
        // Tensors in the order of their slots, each with its own part of the values.
        let parts = self.layout.tensors().iter().enumerate().map(|(index, t)| {
            let (_, from_slot) = std::mem::take(&mut rest).split_at_mut(t.slot.offset - at);
            let (out, after) = from_slot.split_at_mut(t.slot.len);
            (rest, at) = (after, t.slot.end());
            (index, t.name.as_str(), out)
        });
        let parts: Vec<_> = parts.collect();
        // A stream for each tensor: the same bits, however many threads there are.
        parts.into_par_iter().for_each(|(index, name, out)| self.fill(seed, index, name, out));
        values
    }

    /// Initial values of one tensor.
    fn fill(&self, seed: u64, index: usize, name: &str, out: &mut [f32]) {
        let c = self.shape.width;
        let sigma = (1.0 / (3.0 * c as f64)).sqrt();
        if name == "pos_1LC" && self.shape.levels.is_none() {
            sine_positions(out, c, self.shape.pos_side);
        } else if name.contains("scale_mul") {
            out.fill(4f32.ln());
        } else if !name.ends_with("bias") {
            let mut stream = Stream::new(seed, Purpose::Init, index as u64);
            out.iter_mut().for_each(|v| *v = stream.truncated_normal(sigma) as f32);
            self.rescale(name, out);
        }
    }

    /// The factors that published initialisation puts on some layers.
    fn rescale(&self, name: &str, out: &mut [f32]) {
        let c = self.shape.width;
        let scale = |out: &mut [f32], by: f64| out.iter_mut().for_each(|v| *v *= by as f32);
        if name == "head.weight" {
            scale(out, 0.02);
        } else if name == "head_nm.ada_lin.1.weight" {
            scale(out, 0.5);
        } else if name.ends_with("ada_lin.1.weight") {
            let (gates, others) = out.split_at_mut(2 * c * c);
            scale(gates, self.shape.alng);
            scale(others, 0.5);
        } else if name.ends_with("attn.proj.weight") || name.ends_with("ffn.fc2.weight") {
            scale(out, 1.0 / (2.0 * self.shape.depth as f64).sqrt());
        }
    }
}

/// Channel 2j is sin(y·10000^(−2j/C)), channel 2j+1 is cos(x·10000^(−2j/C)).
fn sine_positions(out: &mut [f32], width: usize, side: usize) {
    for channel in 0..width {
        let even = channel & !1;
        let frequency = (-(10000f64.ln()) * even as f64 / width as f64).exp();
        for y in 0..side {
            for x in 0..side {
                let value = if channel % 2 == 0 {
                    (y as f64 * frequency).sin()
                } else {
                    (x as f64 * frequency).cos()
                };
                out[(channel * side + y) * side + x] = value as f32;
            }
        }
    }
}

fn linear(layout: &mut Layout, name: &str, outputs: usize, inputs: usize) -> Linear {
    let weight = layout.push(format!("{name}.weight"), &[outputs, inputs]);
    Linear { weight, bias: Some(layout.push(format!("{name}.bias"), &[outputs])) }
}

fn ada_linears(layout: &mut Layout, depth: usize, c: usize) -> Linear {
    let names = |i: usize| {
        if i < depth { format!("blocks.{i}.ada_lin.1") } else { "head_nm.ada_lin.1".to_owned() }
    };
    let rows = |i: usize| if i < depth { 6 * c } else { 2 * c };
    let weight = (0..=depth).map(|i| (format!("{}.weight", names(i)), vec![rows(i), c]));
    let weight = layout.push_together(weight);
    let bias = (0..=depth).map(|i| (format!("{}.bias", names(i)), vec![rows(i)]));
    Linear { weight, bias: Some(layout.push_together(bias)) }
}

fn block(layout: &mut Layout, i: usize, shape: &GeneratorShape) -> BlockSlots {
    let (c, heads, wide) = (shape.width, shape.heads, shape.mlp_ratio * shape.width);
    let name = |rest: &str| format!("blocks.{i}.{rest}");
    let scale_mul = layout.push(name("attn.scale_mul_1H11"), &[1, heads, 1, 1]);
    let q_bias = layout.push(name("attn.q_bias"), &[c]);
    let v_bias = layout.push(name("attn.v_bias"), &[c]);
    let qkv = Linear { weight: layout.push(name("attn.mat_qkv.weight"), &[3 * c, c]), bias: None };
    let proj = linear(layout, &name("attn.proj"), c, c);
    let fc1 = linear(layout, &name("ffn.fc1"), wide, c);
    let fc2 = linear(layout, &name("ffn.fc2"), c, wide);
    let attention = AttentionSlots { q_bias, v_bias, scale_mul };
    BlockSlots { qkv, attention, proj, fc1, fc2 }
}

/// Parameters of a generator; each tensor as published.
pub fn parameters(g: &GeneratorShape) -> u64 {
    let [c, k, v, h] = [g.width, g.channels, g.vocab, g.heads].map(|n| n as u64);
    let positions = c + match &g.levels {
        None => c * (g.pos_side as u64).pow(2),
        Some(levels) => c * (levels.tokens() + levels.len()) as u64,
    };
    let embeddings = c * k + c + (g.classes as u64 + 1) * c;
    let attention = h + 2 * c + 3 * c * c + c * c + c;
    let wide = g.mlp_ratio as u64 * c;
    let feed_forward = wide * c + wide + c * wide + c;
    let modulation = 6 * c * c + 6 * c;
    let head = 2 * c * c + 2 * c + v * c + v;
    positions + embeddings + g.depth as u64 * (attention + feed_forward + modulation) + head
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::ScaleSchedule;

    /// A rounding to f32 of numbers up to 1, and of what their sine is taken of.
    const STORED: f64 = 1e-6;
    /// Four deviations of a standard deviation of n samples, 4/√(2n): of ten thousand and more,
    const OF_MANY: f64 = 0.03;
    /// of 1,024 and 1,408,
    const OF_A_THOUSAND: f64 = 0.09;
    /// and of 128.
    const OF_A_HUNDRED: f64 = 0.25;

    /// Of widths that are no multiple of what tensors are aligned to as well.
    #[test]
    fn modulation_is_one_matrix_without_gaps() {
        for width in [4, 20, 36, 64] {
            let shape = GeneratorShape { heads: 2, ..GeneratorShape::of_depth(3, 8, 4, 2) };
            let generator = Generator::new(&GeneratorShape { width, ..shape }).unwrap();
            for (slot, kind) in
                [(generator.ada.weight, "weight"), (generator.ada.bias.unwrap(), "bias")]
            {
                let mut end = slot.offset;
                let tensors = generator.layout().tensors().iter();
                for t in tensors.filter(|t| t.name.contains("ada_lin") && t.name.ends_with(kind)) {
                    assert_eq!(t.slot.offset, end, "{} at width {width}", t.name);
                    end = t.slot.end();
                }
                assert_eq!(end, slot.end(), "{kind} at width {width}");
            }
        }
    }

    #[test]
    fn names_and_shapes_are_the_published_ones() {
        let text = include_str!("../../../../golden/checkpoint_shapes.json");
        let published: serde_json::Value = serde_json::from_str(text).unwrap();
        for depth in [16, 20, 24] {
            let generator =
                Generator::new(&GeneratorShape::of_depth(depth, 8912, 32, 1000)).unwrap();
            compare(&generator, &published, &format!("FlexVAR-d{depth}"));
        }
    }

    /// Every tensor of a published model has its name and shape here, and there are no others.
    fn compare(generator: &Generator, published: &serde_json::Value, model: &str) {
        let buffer = |n: &str| {
            ["attn_bias_for_masking", "lvl_1L"].contains(&n) || n.ends_with("attn.zero_k_bias")
        };
        let mut seen = 0;
        for (name, shape) in
            published[model].as_object().unwrap().iter().filter(|(n, _)| !buffer(n))
        {
            let ours = generator.layout().get(name).unwrap_or_else(|| panic!("{name}"));
            let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
            assert_eq!(ours.shape, shape, "{name}");
            seen += 1;
        }
        assert_eq!(seen, generator.layout().tensors().len());
        let count = published[format!("{model}:parameters")].as_u64().unwrap();
        assert_eq!(generator.layout().parameters() as u64, count);
        assert_eq!(parameters(generator.shape()), count);
    }

    #[test]
    fn names_and_shapes_of_var_are_the_published_ones() {
        let text = include_str!("../../../tests/var/shapes.json");
        let published: serde_json::Value = serde_json::from_str(text).unwrap();
        for depth in [16, 20, 24, 30] {
            let levels = Some(ScaleSchedule::published_256());
            let shape = GeneratorShape::of_depth(depth, 4096, 32, 1000);
            let generator = Generator::new(&GeneratorShape { levels, ..shape }).unwrap();
            compare(&generator, &published, &format!("VAR-d{depth}"));
        }
    }

    #[test]
    fn initial_values_follow_the_published_recipe() {
        let generator = Generator::new(&GeneratorShape::of_depth(2, 50, 8, 10)).unwrap();
        let values = generator.initial(1);
        assert_eq!(values, generator.initial(1));
        assert_ne!(values, generator.initial(2));
        let of = |name: &str| &values[generator.layout().get(name).unwrap().slot.range()];
        let deviation = |v: &[f32]| {
            (v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / v.len() as f64).sqrt()
        };
        let spread = |name: &str| deviation(of(name));
        let sigma = (1.0f64 / (3.0 * 128.0)).sqrt();
        // 16k samples and more: the sample deviation lies within 3 % of the true one.
        for (name, factor) in [
            ("blocks.0.attn.mat_qkv.weight", 1.0),
            ("blocks.1.attn.proj.weight", 0.5),
            ("blocks.1.ffn.fc2.weight", 0.5),
            ("head_nm.ada_lin.1.weight", 0.5),
            ("blocks.0.ffn.fc1.weight", 1.0),
            ("head.weight", 0.02),
        ] {
            assert!((spread(name) / (sigma * factor) - 1.0).abs() < OF_MANY, "{name}");
        }
        for name in ["class_emb.weight", "word_embed.weight"] {
            assert!((spread(name) / sigma - 1.0).abs() < OF_A_THOUSAND, "{name}");
        }
        assert!((spread("pos_start") / sigma - 1.0).abs() < OF_A_HUNDRED);
        // γ1 and γ2 first, then scales and shifts.
        let (gates, others) = of("blocks.1.ada_lin.1.weight").split_at(2 * 128 * 128);
        assert!((deviation(gates) / (sigma * 1e-3) - 1.0).abs() < OF_MANY);
        assert!((deviation(others) / (sigma * 0.5) - 1.0).abs() < OF_MANY);
        assert!(of("blocks.1.attn.scale_mul_1H11").iter().all(|&s| s == 4f32.ln()));
        for tensor in generator.layout().tensors().iter().filter(|t| t.name.ends_with("bias")) {
            assert_eq!(spread(&tensor.name), 0.0, "{}", tensor.name);
        }
    }

    /// Channel 2j is sin(y·10000^(−2j/C)), channel 2j+1 cos(x·10000^(−2j/C)).
    #[test]
    fn positions_begin_as_sines_of_rows_and_cosines_of_columns() {
        let shape = GeneratorShape { width: 8, heads: 2, ..GeneratorShape::of_depth(1, 5, 3, 2) };
        let generator = Generator::new(&shape).unwrap();
        let values = generator.initial(1);
        let table = &values[generator.layout().get("pos_1LC").unwrap().slot.range()];
        for (channel, y, x, expected) in [
            (0, 5, 9, 5f64.sin()),
            (1, 5, 9, 9f64.cos()),
            (2, 31, 0, 3.1f64.sin()),
            (3, 0, 7, 0.7f64.cos()),
            (6, 30, 1, 0.03f64.sin()),
            (7, 1, 30, 0.03f64.cos()),
        ] {
            let found = f64::from(table[(channel * 32 + y) * 32 + x]);
            assert!((found - expected).abs() < STORED, "channel {channel}: {found}, {expected}");
        }
    }

    /// None of 1-D tensors, biases, `pos_1LC`, `pos_start`, `scale_mul` (`docs/method.md`, optimiser).
    #[test]
    fn weights_decay_but_for_positions_scales_and_biases() {
        let generator = Generator::new(&GeneratorShape::of_depth(1, 50, 8, 10)).unwrap();
        let names = |decay: bool| -> Vec<&str> {
            let tensors = generator.layout().tensors().iter();
            tensors.filter(|t| t.decay == decay).map(|t| t.name.as_str()).collect()
        };
        let mut decayed = names(true);
        decayed.sort_unstable();
        let expected = [
            "blocks.0.ada_lin.1.weight",
            "blocks.0.attn.mat_qkv.weight",
            "blocks.0.attn.proj.weight",
            "blocks.0.ffn.fc1.weight",
            "blocks.0.ffn.fc2.weight",
            "class_emb.weight",
            "head.weight",
            "head_nm.ada_lin.1.weight",
            "word_embed.weight",
        ];
        assert_eq!(decayed, expected);
        assert!(
            ["pos_1LC", "pos_start", "blocks.0.attn.scale_mul_1H11", "blocks.0.attn.q_bias"]
                .iter()
                .all(|name| names(false).contains(name))
        );
    }
}
