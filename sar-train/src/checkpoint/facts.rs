//! What the shapes of a model's tensors reveal about it, in the configuration's terms.

use std::collections::BTreeMap;

/// Dimensions inferred from tensor shapes; `None` if the tensor that shows it is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Number of transformer blocks.
    pub depth: Option<usize>,
    /// Width of a token.
    pub width: Option<usize>,
    /// Number of attention heads.
    pub heads: Option<usize>,
    /// Codebook size, of a generator or a tokenizer.
    pub vocab: Option<usize>,
    /// Number of latent channels, of a generator or a tokenizer.
    pub channels: Option<usize>,
    /// Number of classes, without the unconditional one.
    pub classes: Option<usize>,
    /// Side of the position table, if a generator has one.
    pub pos_side: Option<usize>,
    /// Number of tokens and scales with positions of their own, if a generator has such positions.
    pub levels: Option<(usize, usize)>,
    /// Ratio of the FFN's width to the model's.
    pub mlp_ratio: Option<usize>,
    /// Base channels of a tokenizer.
    pub base_channels: Option<usize>,
    /// Number of resolution levels of a tokenizer.
    pub halvings: Option<usize>,
}

impl Facts {
    /// Infers the facts from named shapes.
    pub fn of<'a>(shapes: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Self {
        let shapes: BTreeMap<&str, &[usize]> = shapes.into_iter().collect();
        let dim = |name: &str, axis: usize| shapes.get(name).and_then(|s| s.get(axis)).copied();
        let count = |prefix: &str| {
            shapes
                .keys()
                .filter_map(|name| name.strip_prefix(prefix)?.split('.').next()?.parse().ok())
                .max()
                .map(|last: usize| last.saturating_add(1))
        };
        Self {
            depth: count("blocks."),
            width: dim("pos_start", 2),
            heads: dim("blocks.0.attn.scale_mul_1H11", 1),
            vocab: dim("head.weight", 0).or_else(|| dim("quantize.embedding.weight", 0)),
            channels: dim("word_embed.weight", 1).or_else(|| dim("quantize.embedding.weight", 1)),
            classes: dim("class_emb.weight", 0).map(|rows| rows.saturating_sub(1)),
            pos_side: dim("pos_1LC", 3),
            levels: dim("pos_1LC", 1).zip(dim("lvl_embed.weight", 0)),
            mlp_ratio: dim("blocks.0.ffn.fc1.weight", 0)
                .zip(dim("blocks.0.ffn.fc1.weight", 1))
                .and_then(|(wide, width)| wide.checked_div(width)),
            base_channels: dim("encoder.conv_in.weight", 0),
            halvings: count("encoder.conv_blocks.").or_else(|| count("encoder.down.")),
        }
    }

    /// Number of tokens with positions of their own; 0 if positions come from a table that is
    /// resized.
    fn tokens(&self) -> Option<usize> {
        self.levels.map(|(tokens, _)| tokens).or(self.pos_side.map(|_| 0))
    }

    fn scales(&self) -> Option<usize> {
        self.levels.map(|(_, scales)| scales).or(self.pos_side.map(|_| 0))
    }

    /// Describes all differences: "this file is depth 6, the configuration says depth 4".
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        [
            ("depth", self.depth, expected.depth),
            ("width", self.width, expected.width),
            ("heads", self.heads, expected.heads),
            ("vocabulary", self.vocab, expected.vocab),
            ("latent channels", self.channels, expected.channels),
            ("classes", self.classes, expected.classes),
            ("position table side", self.pos_side, expected.pos_side),
            ("FFN ratio", self.mlp_ratio, expected.mlp_ratio),
            ("base channels", self.base_channels, expected.base_channels),
            ("levels", self.halvings, expected.halvings),
            ("table of positions for tokens", self.tokens(), expected.tokens()),
            ("table of positions for scales", self.scales(), expected.scales()),
        ]
        .iter()
        .filter_map(|&(what, file, config)| match (file, config) {
            (Some(file), Some(config)) if file != config => {
                Some(format!("this file is {what} {file}, the configuration says {what} {config}"))
            }
            _ => None,
        })
        .collect()
    }
}
