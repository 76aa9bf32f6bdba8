//! Names and places of a generator's parameters.

use super::positions::PositionSlots;
use super::{GeneratorError, GeneratorShape};
use crate::params::Layout;
use sar_math::backend::{
    AttentionSlots, Buffers, EmbeddingSlots, Linear, Modulation, ShapeError, Slot,
};

/// Places of one block's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSlots {
    pub qkv: Linear,
    pub attention: AttentionSlots,
    pub proj: Linear,
    pub fc1: Linear,
    pub fc2: Linear,
}

/// A generator without its weights: its shape, and where each parameter lies in a flat buffer.
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
    /// Lays out the parameters of a generator of this shape.
    ///
    /// # Errors
    /// As for [`GeneratorShape::validate`].
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

    /// Returns the generator's shape.
    pub fn shape(&self) -> &GeneratorShape {
        &self.shape
    }

    /// Returns names, shapes and places of the parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of columns of the matrix of all modulation vectors: 6 C per block and 2 C for the
    /// head.
    pub(crate) fn ada_stride(&self) -> usize {
        (6 * self.shape.depth + 2) * self.shape.width
    }

    /// Column of the gate γ of a branch: attention of block `branch`/2 if `branch` is even, its FFN
    /// if odd.
    pub(crate) fn gate(&self, branch: usize) -> usize {
        (6 * (branch / 2) + branch % 2) * self.shape.width
    }

    /// Columns of scale and shift of norm `norm`: two norms per block, then the head's.
    pub(crate) fn modulation(&self, norm: usize) -> Modulation {
        let (c, stride) = (self.shape.width, self.ada_stride());
        let base = 6 * (norm / 2) * c;
        if norm == 2 * self.shape.depth {
            return Modulation { stride, scale: base, shift: base + c };
        }
        let j = norm % 2;
        Modulation { stride, scale: base + (2 + j) * c, shift: base + (4 + j) * c }
    }

    /// Returns the parameters of the token embedding, with or without `pos_start` on the class
    /// token.
    pub(crate) fn embedding(&self, with_start: bool) -> EmbeddingSlots {
        EmbeddingSlots { word: self.word, pos_start: with_start.then_some(self.pos_start) }
    }

    /// Returns the layers that are matrix products.
    fn layers(&self) -> impl Iterator<Item = Linear> {
        let blocks = self.blocks.iter().flat_map(|b| [b.qkv, b.proj, b.fc1, b.fc2]);
        blocks.chain([self.ada, self.head])
    }

    /// Returns the weights of the matrix products: nearly all parameters.
    pub(crate) fn weights_of_layers(&self) -> Vec<Slot> {
        self.layers().map(|layer| layer.weight).collect()
    }

    /// Returns the tensors that ops read in full precision: all but weights and biases of the
    /// matrix products.
    pub(crate) fn exact(&self) -> Vec<Slot> {
        let layers = self.layers();
        let narrow: Vec<Slot> =
            layers.flat_map(|layer| [layer.weight].into_iter().chain(layer.bias)).collect();
        let within = |slot: Slot| {
            narrow.iter().any(|all| all.offset <= slot.offset && slot.end() <= all.end())
        };
        let tensors = self.layout.tensors().iter().map(|tensor| tensor.slot);
        tensors.filter(|&slot| !within(slot)).collect()
    }

    /// Uploads weights for sampling only. On a GPU they are bf16 and take a third of the memory of
    /// trainable ones.
    ///
    /// # Errors
    /// Out of memory; shape, if the number of weights is not that of the layout.
    pub fn frozen<B: Buffers>(
        &self,
        backend: &B,
        weights: &[B::Host],
    ) -> Result<B::Params, B::Error> {
        ShapeError::equal("frozen_params", "weights", self.layout.len(), weights.len())?;
        backend.frozen_params(weights, &self.exact())
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

/// Returns the number of parameters of a generator; each tensor as published.
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

    /// Also for widths that are not a multiple of the alignment of tensors.
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

    /// Checks that this layout has exactly the tensors of a published model, with the same names
    /// and shapes.
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

    /// 1-D tensors, biases, `pos_1LC`, `pos_start` and `scale_mul` do not decay (`docs/method.md`,
    /// optimiser).
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
