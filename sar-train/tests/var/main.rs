//! VAR's tokenizer and generator beside what the published implementation (`FoundationVision/VAR`) computes.
//!
//! `vae.pth` and `var.pth` are state dictionaries of small models that its code made, their numbers random;
//! `reference.safetensors` is what it computes with them in f64: codes and sums of all scales, inputs, logits,
//! loss and gradients, and greedy samples by guidance. `shapes.json` has the tensors of the released models.

#![allow(clippy::unwrap_used)]

use safetensors::SafeTensors;
use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::backend::{
    Buffers, Choice, DrawKeys, Filter, LossDims, LossOps, MapDims, TargetRows, TokenLoss,
};
use sar_math::guidance::Guidance;
use sar_math::{MAX_SCALES, ScaleSchedule};
use sar_train::checkpoint::{arrange, read_pth};
use sar_train::model::generator::{
    Generator, GeneratorShape, Gradients, Head, PassInput, Recompute, Trace,
};
use sar_train::model::tokenizer::{Quantizer, Tokenizer, TokenizerConfig};
use sar_train::params::Layout;
use sar_train::sample::{Decoding, Given, Mask, Model, Sampler};
use sar_train::train::tokenizer::Reconstructor;
use std::path::{Path, PathBuf};

type Cpu = CpuBackend<f64>;

/// Roundings of f64 in sums of up to a few hundred terms, in another order; relative to the largest.
const VALUE: f64 = 1e-12;
/// The same through both chains of the tokenizer, group norms among them.
const CHAINED: f64 = 1e-11;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/var").join(name)
}

/// The recorded numbers.
struct Reference(Vec<u8>);

impl Reference {
    fn open() -> Self {
        Self(std::fs::read(file("reference.safetensors")).unwrap())
    }

    fn f64(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = tensors.tensor(name).unwrap();
        bytes.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = tensors.tensor(name).unwrap();
        let wide = bytes.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
        wide.map(|id| u32::try_from(id).unwrap()).collect()
    }
}

fn near(name: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = tolerance * largest;
        assert!((found - expected).abs() <= allowed, "{name}[{i}]: {found} for {expected}");
    }
}

const CHANNELS: usize = 4;
const VOCAB: usize = 24;
/// Side of the images and of their latents.
const SIDE: usize = 10;
const GRID: usize = 5;

fn schedule() -> ScaleSchedule {
    ScaleSchedule::from_sides(&[1, 2, 3, 4, 5]).unwrap()
}

fn weights(name: &str, layout: &Layout) -> Vec<f64> {
    let path = file(name);
    let flat = arrange(&path, layout, &read_pth(&path).unwrap()).unwrap();
    flat.into_iter().map(f64::from).collect()
}

/// The small models on the CPU.
struct Models {
    backend: Cpu,
    tokenizer: Tokenizer,
    coder: Buffer<f64>,
    quantizer: Quantizer<Cpu>,
    generator: Generator,
    params: Buffer<f64>,
    reference: Reference,
}

impl Models {
    fn open() -> Self {
        let backend = Cpu::new();
        let tokenizer = Tokenizer::new(&TokenizerConfig {
            ch: 32,
            ch_mult: vec![1, 1],
            num_res_blocks: 1,
            z_channels: CHANNELS,
            latent_channels: CHANNELS,
            vocab: VOCAB,
            groups: 32,
            residual: 4,
        })
        .unwrap();
        let generator = Generator::new(&GeneratorShape {
            width: 16,
            heads: 2,
            levels: Some(schedule()),
            ..GeneratorShape::of_depth(2, VOCAB, CHANNELS, 3)
        })
        .unwrap();
        let put = |values: &[f64]| {
            let mut params = backend.params(values.len()).unwrap();
            backend.upload_params(values, &mut params, 0).unwrap();
            params
        };
        let coder = put(&weights("vae.pth", tokenizer.layout()));
        let params = put(&weights("var.pth", generator.layout()));
        let quantizer = tokenizer.quantizer(&backend, &coder).unwrap();
        let reference = Reference::open();
        Self { backend, tokenizer, coder, quantizer, generator, params, reference }
    }

    fn put(&self, values: &[f64]) -> Buffer<f64> {
        let mut buffer = self.backend.activation(values.len()).unwrap();
        self.backend.upload(values, &mut buffer, 0).unwrap();
        buffer
    }

    fn put_ids(&self, values: &[u32]) -> Buffer<u32> {
        let mut buffer = self.backend.ids(values.len()).unwrap();
        self.backend.upload_ids(values, &mut buffer, 0).unwrap();
        buffer
    }

    /// Sums `[b, k, h, w]` after every scale of codes, one behind the other, and what they decode to.
    fn sums(&self, ids: &[u32]) -> (Vec<f64>, Vec<f64>) {
        let (b, schedule, batch) = (&self.backend, schedule(), ids.len() / 55);
        let mut memory = self.quantizer.memory(b, batch, &schedule).unwrap();
        let mut pixels = self.tokenizer.decoder_memory(b, batch, (GRID, GRID)).unwrap();
        let ids = self.put_ids(ids);
        let (mut sums, mut images) = (Vec::new(), Vec::new());
        for scale in 0..schedule.len() {
            assert_eq!(self.quantizer.grid(&schedule, scale), (GRID, GRID));
            let map = pixels.codes_mut();
            self.quantizer.map(b, &mut memory, batch, &schedule, scale, &ids, map).unwrap();
            sums.extend_from_slice(&map.as_slice()[..batch * CHANNELS * GRID * GRID]);
            let mut decoded = vec![0.0; batch * 3 * SIDE * SIDE];
            let grid = (GRID, GRID);
            self.tokenizer.decode(b, &self.coder, &mut pixels, batch, grid, &mut decoded).unwrap();
            images.extend(decoded);
        }
        (sums, images)
    }
}

#[test]
fn latents_codes_and_reconstructions_are_the_published_ones() {
    let m = Models::open();
    let (b, batch, size) = (&m.backend, 2, (SIDE, SIDE));
    let mut memory = m.tokenizer.encoder_memory(b, batch, size).unwrap();
    let mut latents = b.activation(batch * CHANNELS * GRID * GRID).unwrap();
    let images = m.reference.f64("images");
    m.tokenizer.encode(b, &m.coder, &mut memory, &images, size, &mut latents).unwrap();
    near("latents", latents.as_slice(), &m.reference.f64("latents"), CHAINED);

    let mut memory = m.quantizer.memory(b, batch, &schedule()).unwrap();
    let mut ids = b.ids(batch * 55).unwrap();
    let dims = MapDims { batch, channels: CHANNELS, height: GRID, width: GRID };
    let latents = m.put(&m.reference.f64("latents"));
    m.quantizer.codes(b, &mut memory, dims, &schedule(), &latents, &mut ids).unwrap();
    let expected = m.reference.ids("ids");
    assert_eq!(ids.as_slice(), expected);

    let (sums, images) = m.sums(&expected);
    near("fhat", &sums, &m.reference.f64("fhat"), VALUE);
    near("reconstructions", &images, &m.reference.f64("reconstructions"), CHAINED);
    // The same by what measures a tokenizer, which does not clamp; and not without the quantizer.
    let new = || Reconstructor::new(b, &m.tokenizer, batch, size).unwrap();
    let mut through = new().adding(&m.quantizer, &schedule()).unwrap();
    for (side, of_scale) in [1, 2, 3, 4, 5].into_iter().zip(images.chunks(batch * 300)) {
        let pictures = m.reference.f64("images");
        let mut found = through.reconstruct(&m.coder, &pictures, (side, side)).unwrap();
        found.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
        near("reconstructed", &found, of_scale, CHAINED);
        assert!(new().reconstruct(&m.coder, &pictures, (side, side)).is_err());
    }
    let mut inputs = b.activation(batch * 54 * CHANNELS).unwrap();
    m.quantizer.inputs(b, &mut memory, batch, &schedule(), 1..5, &ids, &mut inputs).unwrap();
    near("inputs", inputs.as_slice(), &m.reference.f64("inputs"), VALUE);
    // Those of some scales alone are the same.
    let mut some = b.activation(batch * 25 * CHANNELS).unwrap();
    m.quantizer.inputs(b, &mut memory, batch, &schedule(), 3..4, &ids, &mut some).unwrap();
    let columns = 13 * CHANNELS..29 * CHANNELS;
    let of_both = inputs.as_slice().chunks(54 * CHANNELS).flat_map(|row| &row[columns.clone()]);
    assert!(some.as_slice()[..batch * 16 * CHANNELS].iter().eq(of_both));
}

#[test]
fn logits_loss_and_gradients_are_the_published_ones() {
    let m = Models::open();
    let (b, g, batch, schedule) = (&m.backend, &m.generator, 2, schedule());
    let (labels, inputs) =
        (m.put_ids(&m.reference.ids("labels")), m.put(&m.reference.f64("inputs")));
    let input = PassInput {
        batch,
        schedule,
        labels: &labels,
        inputs: &inputs,
        input_batch: batch,
        with_start: true,
        keep: None,
    };
    let (t, rows) = (schedule.tokens(), batch * schedule.tokens());
    let mut trace = Trace::new(b, g, batch, t, Recompute::default()).unwrap();
    let mut grads = Gradients::new(b, g, batch, t).unwrap();
    let mut head = Head::new(b, g, rows).unwrap();
    g.forward(b, &m.params, &input, &mut trace).unwrap();
    let samples = 0..batch;
    let all = std::slice::from_ref(&samples);
    g.head(b, &m.params, t, trace.output(), all, &mut head).unwrap();
    near("logits", &head.logits.as_slice()[..rows * VOCAB], &m.reference.f64("logits"), VALUE);

    let mut weights = [0.0; MAX_SCALES];
    weights[..schedule.len()].fill(1.0 / rows as f64);
    let targets = TargetRows::beside(&schedule);
    let (first_sample, vocab, smoothing) = (0, VOCAB, 0.0);
    let dims = LossDims { batch, first_sample, schedule, vocab, smoothing, weights, targets };
    let ids = m.put_ids(&m.reference.ids("ids"));
    let mut loss = TokenLoss::new(b, rows).unwrap();
    b.cross_entropy(&dims, &head.logits, &ids, &mut loss).unwrap();
    let mean = loss.loss_bl.as_slice()[..rows].iter().sum::<f64>() / rows as f64;
    near("loss", &[mean], &m.reference.f64("loss"), VALUE);
    b.cross_entropy_backward(&dims, &mut head.logits, &ids, &loss).unwrap();
    g.head_backward(b, &m.params, t, samples.clone(), &head, &mut grads).unwrap();
    g.backward(b, &m.params, &input, batch, &mut trace, &mut grads).unwrap();
    for tensor in g.layout().tensors() {
        let name = format!("grad.{}", tensor.name);
        let expected = m.reference.f64(&name);
        near(&name, &grads.params.as_slice()[tensor.slot.range()], &expected, CHAINED);
    }
}

#[test]
fn greedy_samples_are_the_published_ones() {
    let m = Models::open();
    let (b, labels, schedule) = (&m.backend, m.reference.ids("sample_labels"), schedule());
    for guidance in ["0.0", "1.5", "3.0"] {
        let t = Guidance::Sampling(guidance.parse().unwrap()).ramp(schedule.len());
        let decoding = Decoding { guidance: t, choice: Choice::Argmax };
        // All at once, and one at a time in the memory of two.
        for room in [3, 2] {
            let (g, q) = (&m.generator, &m.quantizer);
            let mut sampler = Sampler::new(b, g, q, room, &schedule, true).unwrap();
            let mut found = Vec::new();
            for labels in labels.chunks(if room == 3 { 3 } else { 1 }) {
                let model = Model { generator: g, params: &m.params, quantizer: q };
                sampler.run(b, model, labels, &decoding, None).unwrap();
                found.extend_from_slice(&sampler.ids.as_slice()[..labels.len() * 55]);
            }
            assert_eq!(found, m.reference.ids(&format!("greedy_ids.{guidance}")), "{guidance}");
        }
        let (sums, images) = m.sums(&m.reference.ids(&format!("greedy_ids.{guidance}")));
        let last = |all: &[f64]| all[all.len() / 5 * 4..].to_vec();
        let [fhat, pictures] =
            ["fhat", "images"].map(|what| m.reference.f64(&format!("greedy_{what}.{guidance}")));
        near("fhat", &last(&sums), &fhat, VALUE);
        near("images", &last(&images), &pictures, CHAINED);
    }
}

/// What is known of an image stays while the rest is drawn, though codes of coarse grids are drawn anew.
#[test]
fn known_codes_are_looked_up_in_what_drawn_ones_left() {
    let m = Models::open();
    let (b, s, q) = (&m.backend, schedule(), &m.quantizer);
    let latents = m.put(&m.reference.f64("latents"));
    let dims = MapDims { batch: 2, channels: CHANNELS, height: GRID, width: GRID };
    let own = m.put_ids(&m.reference.ids("ids"));
    let labels = [2, 0];
    let draw = |kept: &[u32], looked_up: bool| {
        let filter = Filter { top_k: 0, top_p: 0.0 };
        let choice = Choice::Draw(filter, DrawKeys { seed: 3, first_image: 0 });
        let decoding = Decoding { guidance: None, choice };
        let kept = m.put_ids(&kept.repeat(2));
        let given = Given {
            ids: &own,
            scales: [false; MAX_SCALES],
            kept: Some(&kept),
            latents: looked_up.then_some((&latents, dims)),
        };
        let mut sampler = Sampler::new(b, &m.generator, q, 2, &s, false).unwrap();
        let given = Some(&given);
        let model = Model { generator: &m.generator, params: &m.params, quantizer: q };
        sampler.run(b, model, &labels, &decoding, given).unwrap();
        sampler.ids.as_slice().to_vec()
    };
    let all = vec![1; s.tokens()];
    assert_eq!(draw(&all, true), own.as_slice(), "all of the image's own codes");

    // The left two columns of cells are known.
    let masked = (0..SIDE * SIDE).map(|i| i % SIDE >= 4).collect();
    let kept = Mask::new(SIDE, SIDE, masked).unwrap().kept(&s, 0.0);
    let off = |ids: &[u32]| {
        let sum = m.sums(ids).0.split_off(4 * 2 * CHANNELS * GRID * GRID);
        let latents = m.reference.f64("latents");
        let known = (0..sum.len()).filter(|i| i % GRID < 2);
        known.map(|i| (sum[i] - latents[i]).powi(2)).sum::<f64>()
    };
    let (own, looked_up, as_they_were) =
        (off(own.as_slice()), off(&draw(&kept, true)), off(&draw(&kept, false)));
    // 24 codes leave much of a latent; of what is off beyond that, less than half (0.41 was seen).
    assert!(looked_up - own < 0.5 * (as_they_were - own), "{own}, {looked_up}, {as_they_were}");
}
