//! What a step and its optimiser do with their settings, in f64, against formulas written out once more.

mod ranks;
mod rollout;
mod settings;
mod update;

use super::{Batches, TrainError, Trainer};
use crate::config::{Config, Mode};
use crate::model::generator::{Generator, GeneratorShape, Head, PassInput, Recompute, Trace};
use crate::model::tokenizer::Quantizer;
use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::ScaleSchedule;
use sar_math::backend::{Buffers, CodeDims, Distance, MapDims, RolloutDims, RolloutOps, TokenSpan};
use sar_math::philox::{Purpose, Stream};

pub(super) type Cpu = CpuBackend<f64>;

/// The same sums in another order.
pub(super) const REORDERED: f64 = 1e-12;

/// Roundings of f64 in losses and gradients that are summed in another order.
pub(super) const SUMMED: f64 = 1e-9;
/// A million times that.
pub(super) const SHOWS: f64 = 1e-3;

pub(super) const CHANNELS: usize = 4;
pub(super) const VOCAB: usize = 11;
pub(super) const CLASSES: usize = 3;
pub(super) const SCHEDULE: &str = "1_2_3";
/// Side of the latents.
const SIDE: usize = 3;

/// A generator of two blocks, a codebook, and images to train on.
pub(super) struct World {
    pub backend: Cpu,
    pub generator: Generator,
    pub weights: Vec<f32>,
    pub quantizer: Quantizer<Cpu>,
    pub latents: Vec<f64>,
    pub labels: Vec<u32>,
}

/// The configuration of [`World`]'s runs: nothing dropped, nothing smoothed.
pub(super) fn config(mode: Mode) -> Config {
    let mut config = Config::default();
    let g = &mut config.generator;
    (g.depth, g.width, g.heads) = (2, 16, 2);
    (g.vocab, g.channels, g.classes) = (VOCAB, CHANNELS, CLASSES);
    g.schedule = SCHEDULE.parse().unwrap();
    g.pos_side = 4;
    g.resolve();
    let t = &mut config.train;
    (t.mode, t.batch, t.lr) = (mode, 4, Some(1e-2));
    (t.class_dropout, t.drop_path) = (0.0, Some(0.0));
    config.validate().unwrap();
    config
}

impl World {
    /// `images` of them.
    pub fn new(images: usize) -> Self {
        let backend = Cpu::new();
        let shape = GeneratorShape::from(&config(Mode::Teacher).generator);
        let generator = Generator::new(&shape).unwrap();
        let mut stream = Stream::new(3, Purpose::Test, 0);
        // Larger than published initialisation, so that every path carries a gradient that shows.
        let weights = (0..generator.layout().len()).map(|_| 0.3 * stream.normal() as f32).collect();
        let mut codebook: Vec<f64> =
            (0..VOCAB * CHANNELS).map(|_| f64::from(stream.normal() as f32)).collect();
        for row in codebook.chunks_mut(CHANNELS) {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter_mut().for_each(|v| *v /= norm);
        }
        let latents = (0..images * CHANNELS * SIDE * SIDE).map(|_| stream.normal()).collect();
        let labels = (0..images).map(|i| (i % CLASSES) as u32).collect();
        let quantizer = Quantizer::direct(&backend, &codebook, VOCAB).unwrap();
        Self { backend, generator, weights, quantizer, latents, labels }
    }

    pub fn trainer(&self, config: &Config) -> Trainer<'_, Cpu> {
        let (weights, quantizer) = (&self.weights, &self.quantizer);
        let generator = self.generator.clone();
        Trainer::new(&self.backend, generator, config, weights, quantizer, (SIDE, SIDE)).unwrap()
    }

    /// The images in turn, so many of them at a time.
    pub fn images(&self, batch: usize) -> Images<'_> {
        Images { world: self, batch, next: 0 }
    }

    /// Codes of images `0..batch` on every scale.
    pub fn codes(&self, batch: usize, schedule: &ScaleSchedule) -> Buffer<u32> {
        let (b, tokens) = (&self.backend, schedule.tokens());
        let mut latents = b.activation(self.latents.len()).unwrap();
        b.upload(&self.latents, &mut latents, 0).unwrap();
        let dims = MapDims { batch, channels: CHANNELS, height: SIDE, width: SIDE };
        let mut means = b.activation(batch * tokens * CHANNELS).unwrap();
        let span = TokenSpan::whole(schedule);
        b.area_tokens(dims, &span, &latents, &mut means).unwrap();
        let mut codes = b.ids(batch * tokens).unwrap();
        let book = self.quantizer.codebook();
        let dims = CodeDims { vocab: VOCAB, channels: CHANNELS, distance: Distance::Cosine };
        b.nearest_code(batch, &span, dims, &means, book, &mut codes).unwrap();
        codes
    }

    /// Logits `[b, T, v]` of a pass over a whole schedule whose inputs are `codes`; `labels` may be
    /// those of the images twice over.
    pub fn logits(
        &self,
        params: &Buffer<f64>,
        schedule: &ScaleSchedule,
        codes: &Buffer<u32>,
        labels: &[u32],
        images: usize,
    ) -> Vec<f64> {
        let (b, g, tokens) = (&self.backend, &self.generator, schedule.tokens());
        let batch = labels.len();
        let mut inputs = b.activation(images * tokens * CHANNELS).unwrap();
        let dims = RolloutDims {
            batch: images,
            schedule: *schedule,
            scales: 1..schedule.len(),
            channels: CHANNELS,
            vocab: VOCAB,
        };
        b.rollout_inputs(&dims, codes, self.quantizer.codebook(), &mut inputs).unwrap();
        let mut ids = b.ids(batch).unwrap();
        b.upload_ids(labels, &mut ids, 0).unwrap();
        let mut trace = Trace::new(b, g, batch, tokens, Recompute::default()).unwrap();
        let input = PassInput {
            batch,
            schedule: *schedule,
            labels: &ids,
            inputs: &inputs,
            input_batch: images,
            with_start: true,
            keep: None,
        };
        g.forward(b, params, &input, &mut trace).unwrap();
        let mut head = Head::new(b, g, batch * tokens).unwrap();
        let all = 0..batch;
        let all = std::slice::from_ref(&all);
        g.head(b, params, tokens, trace.output(), all, &mut head).unwrap();
        head.logits.as_slice()[..batch * tokens * VOCAB].to_vec()
    }
}

/// Images of a [`World`], from the first on and around.
pub(super) struct Images<'w> {
    world: &'w World,
    batch: usize,
    next: usize,
}

impl Batches<Cpu> for Images<'_> {
    fn next(&mut self, b: &Cpu, latents: &mut Buffer<f64>) -> Result<Vec<u32>, TrainError> {
        let each = CHANNELS * SIDE * SIDE;
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..self.batch {
            let i = self.next % self.world.labels.len();
            pixels.extend_from_slice(&self.world.latents[i * each..][..each]);
            labels.push(self.world.labels[i]);
            self.next += 1;
        }
        b.upload(&pixels, latents, 0)?;
        Ok(labels)
    }
}

/// Cross-entropy of a row of logits, smoothed by ε: `lse − (1−ε)·l_target − ε·mean`.
pub(super) fn cross_entropy(logits: &[f64], target: u32, smoothing: f64) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln();
    let mean = logits.iter().sum::<f64>() / logits.len() as f64;
    lse - (1.0 - smoothing) * logits[target as usize] - smoothing * mean
}

pub(super) fn near(found: f64, expected: f64, tolerance: f64) {
    let room = tolerance * expected.abs().max(1.0);
    assert!((found - expected).abs() <= room, "{found} is not {expected}");
}
