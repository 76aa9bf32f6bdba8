//! Memory of a generator's training in bytes, counted before anything is allocated: the buffers of
//! `Trainer` and `StepMemory`.

use super::memory::Needs;
use super::settings::StepSettings;
use crate::config::{Config, GeneratorSection, Positions};
use crate::model::generator::{Generator, GeneratorShape, parameters};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::sample::grid_labels;
use sar_math::{MAX_SCALES, ScaleSchedule};
use serde::Serialize;

/// Bytes of an element of statistics, gradients, moments, losses and master weights, and of an id.
const WIDE: u64 = 4;

/// Estimated bytes of a training run, by what they hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights, their narrow copy where activations are narrow, and their running average.
    pub weights: u64,
    /// Gradients.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// What the passes of one batch keep for their backward, and its scratch.
    pub activations: u64,
    /// Logits of a part of a batch, which become their own gradient, and the teacher's where they are
    /// a target.
    pub logits: u64,
    /// What a GPU's backend keeps for itself: space for matrix products and scratch memory of ops.
    pub backend: u64,
    /// Cache and activations of the pictures that are sampled while training.
    pub pictures: u64,
    /// The tokenizer's weights, and memory to encode images and decode pictures; `None` if the
    /// configuration's tokenizer has other codes than the generator.
    pub tokenizer: Option<u64>,
    /// The copies that a checkpoint is written from, if they are in the same memory: see
    /// [`MemoryPlan::saved_from_here`].
    pub saving: u64,
}

impl MemoryPlan {
    /// Counts a configuration with activations of `storage` bytes each (4 in f32, 2 in bf16), on a
    /// backend that keeps `own` bytes for itself.
    pub fn of(config: &Config, storage: u64, own: u64) -> Self {
        let needs = StepSettings::of(config).needs();
        let parameters = parameters(&GeneratorShape::from(&config.generator));
        let narrow = if storage < WIDE { storage } else { 0 };
        let average = if config.train.ema > 0.0 { WIDE } else { 0 };
        let (activations, wide) = elements(config, needs);
        let samples = config.train.batch as u64;
        let vocab = config.generator.vocab as u64;
        let kept = heads(needs) * head_rows(config, needs);
        let sampled = samples * largest(&config.generator.schedule) * u64::from(needs.sampler);
        Self {
            weights: (WIDE + narrow + average) * parameters,
            gradients: WIDE * parameters,
            moments: 2 * WIDE * parameters,
            activations: storage * activations + WIDE * wide,
            logits: storage * (kept + sampled) * vocab,
            backend: own,
            pictures: if config.train.sample_every > 0 {
                pictures(config, storage, painted(config))
            } else {
                0
            },
            tokenizer: tokenizer(config, storage, encoded(config), painted(config)),
            saving: 0,
        }
    }

    /// Returns the bytes for sampling `sample.batch` images at a time with weights that are not trained;
    /// arguments are as for [`MemoryPlan::of`]. The tokenizer is left out if its codes are not the generator's.
    pub fn of_sampling(config: &Config, storage: u64, own: u64) -> u64 {
        let images = config.sample.batch;
        let decoded = tokenizer(config, storage, 0, images).unwrap_or(0);
        frozen(config, storage) + pictures(config, storage, images) + decoded + own
    }

    /// Adds the copies that a checkpoint is written from: for the CPU, whose memory is the host's.
    pub fn saved_from_here(mut self, config: &Config) -> Self {
        // Gradients are as large as the weights, and so is the running average.
        let average = if config.train.ema > 0.0 { self.gradients } else { 0 };
        self.saving = self.gradients + self.moments + average;
        self
    }

    /// Returns the bytes that the steps take.
    pub fn steps(&self) -> u64 {
        let trained = self.weights + self.gradients + self.moments;
        trained + self.activations + self.logits + self.backend
    }

    /// Returns all bytes.
    pub fn total(&self) -> u64 {
        self.steps() + self.pictures + self.tokenizer.unwrap_or(0) + self.saving
    }
}

/// Bytes of a generator's weights that are not trained.
fn frozen(config: &Config, storage: u64) -> u64 {
    let shape = GeneratorShape::from(&config.generator);
    let all = parameters(&shape);
    if storage >= WIDE {
        return WIDE * all;
    }
    let exact = Generator::new(&shape)
        .map_or(0, |generator| generator.exact().iter().map(|tensor| tensor.len as u64).sum());
    storage * all + WIDE * exact
}

/// Number of images that are encoded at a time while a generator trains.
fn encoded(config: &Config) -> usize {
    if config.train.latents.is_some() { 0 } else { config.train.batch }
}

/// Number of images of the sampled grids that are painted at a time.
fn painted(config: &Config) -> usize {
    config.sample.batch.min(grid_labels(config.generator.classes).len())
}

/// The schedule of the sampled grids.
fn painted_schedule(config: &Config) -> ScaleSchedule {
    config.sample.schedule.unwrap_or(config.generator.schedule)
}

/// Bytes for sampling `images` images at a time, without weights and pixels.
fn pictures(config: &Config, storage: u64, images: usize) -> u64 {
    let (g, schedule) = (&config.generator, painted_schedule(config));
    let [c, k, d, v] = [g.width, g.channels, g.depth, g.vocab].map(|n| n as u64);
    let maps = maps(config, &schedule, images);
    let images = images as u64;
    let rows = images * (1 + u64::from(config.sample.guidance != 0.0));
    let conditions = rows * (2 + 6 * d + 2) * c;
    let ends = images * largest(&schedule) * (k + v);
    let stats = 2 * rows * largest(&schedule) + 2 * placed(g, &schedule);
    storage * (scales(g, &schedule, rows) + conditions + ends + maps) + WIDE * stats
}

/// Bytes of the configuration's tokenizer, to encode `encoded` images at a time and decode
/// `decoded`; `None` if it cannot be the generator's.
fn tokenizer(config: &Config, storage: u64, encoded: usize, decoded: usize) -> Option<u64> {
    let (t, g) = (&config.tokenizer, &config.generator);
    if (t.vocab, t.latent_channels) != (g.vocab, g.channels) {
        return None;
    }
    let tokenizer = Tokenizer::new(t).ok()?;
    let (side, last) = (config.data.image_side, painted_schedule(config).last());
    let (narrow, wide) =
        tokenizer.memory_elements((encoded, (side, side)), (decoded, (last.height, last.width)));
    let copy = if storage < WIDE { storage } else { 0 };
    let weights = (WIDE + copy) * tokenizer.layout().len() as u64;
    let codes = quantizer(t, WIDE + copy);
    Some(weights + codes + storage * narrow + WIDE * wide)
}

/// Bytes of a quantizer: the codebook and, where scales add up, the table that codes are looked up
/// in and two copies of the convolutions.
fn quantizer(t: &TokenizerConfig, weight: u64) -> u64 {
    let [v, k, phis] = [t.vocab, t.latent_channels, t.residual].map(|n| n as u64);
    let lifted = if phis > 0 { v * (k + 1) } else { 0 };
    WIDE * (v * k + lifted) + weight * 2 * phis * (9 * k * k + k)
}

/// Elements of the maps that the scales of `images` images add up in; 0 where scales stand for themselves.
fn maps(config: &Config, schedule: &ScaleSchedule, images: usize) -> u64 {
    let (k, residual) = (config.generator.channels, config.tokenizer.residual > 0);
    if residual { (3 * images * k * schedule.last().tokens()) as u64 } else { 0 }
}

/// Number of vectors of the model's width that positions take in addition to a table: one per token, if any.
fn placed(g: &GeneratorSection, schedule: &ScaleSchedule) -> u64 {
    if g.positions == Positions::Levels { schedule.tokens() as u64 } else { 0 }
}

/// Tokens of the largest scale.
fn largest(schedule: &ScaleSchedule) -> u64 {
    schedule.scales().iter().map(|scale| scale.tokens() as u64).max().unwrap_or(0)
}

/// Elements that a sampler of `rows` rows keeps: keys and values of every block, positions, and the
/// tensors that one scale goes through.
fn scales(g: &GeneratorSection, schedule: &ScaleSchedule, rows: u64) -> u64 {
    let [c, d] = [g.width, g.depth].map(|n| n as u64);
    let tokens = schedule.tokens() as u64;
    let scale = rows * largest(schedule) * c * (4 + (g.mlp_ratio.max(3) + g.mlp_ratio) as u64);
    tokens * c * (2 * d * rows + 1) + placed(g, schedule) * c + scale
}

/// Number of tokens whose logits there is room for.
fn head_rows(config: &Config, needs: Needs) -> u64 {
    needs.head_rows(config.train.batch, config.generator.schedule.tokens()) as u64
}

/// Number of logits buffers: the model's own, and its teacher's if they are a target.
fn heads(needs: Needs) -> u64 {
    1 + u64::from(needs.soft)
}

/// Numbers of elements stored as activations and as wide numbers, without logits and parameters.
fn elements(config: &Config, needs: Needs) -> (u64, u64) {
    let g = &config.generator;
    let [c, k, d, h] = [g.width, g.channels, g.depth, g.heads].map(|n| n as u64);
    let (batch, rows) = (config.train.batch as u64, needs.rows(config.train.batch) as u64);
    let (tokens, mlp) = (g.schedule.tokens() as u64, g.mlp_ratio as u64);
    let count = needs.recompute.counts(g.depth);
    let [blocks, sums, branches, normed, activated] =
        [count.blocks, count.sums, count.branches, count.normed, count.activated].map(|n| n as u64);
    // Tensors of a token's width that a pass keeps: q, k, v, attention's output, the hidden layer.
    let kept = blocks * (3 + 1 + mlp) + sums + branches + normed + mlp * activated;
    // GELU's output or, in the backward, the gradient of the hidden layer or of q, k and v.
    let kept = kept + mlp.max(3);
    let forward = rows * tokens * c * kept;
    // What logits are made from, and the same for a teacher's whole batch.
    let soft = batch * tokens * u64::from(needs.soft);
    let head = (heads(needs) * head_rows(config, needs) + soft) * c;
    // Three gradients of the model's width.
    let backward = batch * tokens * c * 3;
    // Class vectors and all modulation vectors, and their gradients.
    let modulation = (rows + batch) * (6 * d + 2) * c + (2 * rows + batch) * c;
    let positions = (2 * tokens + placed(g, &g.schedule)) * c;
    // Where scales add up, they are looked up one at a time.
    let adds_up = config.tokenizer.residual > 0;
    let looked_up = if adds_up { largest(&g.schedule) } else { tokens };
    let images = batch * (looked_up + tokens + g.schedule.last().tokens() as u64) * k;
    let maps = maps(config, &g.schedule, config.train.batch);
    let sampler = if needs.sampler { scales(g, &g.schedule, batch) + maps } else { 0 };
    let norms = rows * tokens * (2 * (2 * d + 1) + blocks * 3 * h);
    // Losses of each token, and the sums of every pass of the step (and of held-out images).
    let losses = 2 * 4 * batch * tokens + 4 * MAX_SCALES as u64 * (needs.accumulate as u64 + 1);
    let ids = 3 * batch * tokens + 2 * placed(g, &g.schedule);
    let narrow = forward + head + backward + modulation + positions + images + maps + sampler;
    (narrow, norms + losses + ids)
}
