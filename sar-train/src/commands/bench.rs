//! `sar bench`: an optimiser step or a sampled batch, timed; one JSON line with the keys of the
//! PyTorch comparison script, so that both can be run in turn on the same work.

use super::roofline;
use super::room::affordable;
use crate::backend::Compute;
use crate::cli::{BenchArgs, BenchWhat, Dtype, GlobalArgs, StepMode};
use crate::config::{Config, Decode};
use crate::model::generator::{Generator, GeneratorShape};
use crate::model::tokenizer::{Quantizer, directions};
use crate::sample::{Decoding, Model, Sampler};
use crate::train::{Batches, TrainError, Trainer};
use sar_math::backend::{Choice, DrawKeys, Filter};
use sar_math::guidance::Guidance;
use sar_math::philox::{Purpose, Stream};
use serde::Serialize;
use std::time::Instant;

/// The line that is printed.
#[derive(Serialize)]
struct Line {
    peer: String,
    what: &'static str,
    mode: &'static str,
    depth: usize,
    width: usize,
    batch: usize,
    dtype: String,
    device: String,
    compile: bool,
    parameters: usize,
    median_s: f64,
    min_s: f64,
    images_per_s: f64,
    peak_bytes: u64,
}

/// Random latents and labels, made anew for every step and outside its time.
struct RandomBatches {
    latents: Vec<f32>,
    labels: Vec<u32>,
}

impl RandomBatches {
    fn draw(&mut self, args: &BenchArgs, step: u64) {
        let mut stream = Stream::new(0, Purpose::Evaluation, step);
        let last = args.schedule.last().tokens();
        self.latents =
            (0..args.batch * args.channels * last).map(|_| stream.normal() as f32).collect();
        self.labels = (0..args.batch).map(|_| stream.below(args.classes) as u32).collect();
    }
}

impl<B: Compute> Batches<B> for RandomBatches {
    fn next(&mut self, backend: &B, latents: &mut B::Activation) -> Result<Vec<u32>, TrainError> {
        backend.upload(&self.latents, latents, 0)?;
        Ok(self.labels.clone())
    }
}

/// Runs the benchmark and prints its line.
///
/// # Errors
/// A shape that no generator has; out of memory.
pub fn run<B: Compute>(backend: &B, args: &BenchArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    anyhow::ensure!(args.steps >= 1, "--steps is 0: nothing would be timed; give at least 1");
    let storage = if global.dtype() == Dtype::Bf16 { 2 } else { 4 };
    let config = configuration(args)?;
    affordable(&config.generator)?;
    let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
    let weights = generator.initial(0);
    let mut codes = vec![0.0; args.vocab * args.channels];
    directions(&mut codes, args.channels, &mut Stream::new(0, Purpose::Codebook, 0));
    let quantizer = Quantizer::direct(backend, &codes, args.vocab)?;
    let parameters = generator.layout().parameters();
    let mut times = match args.what {
        BenchWhat::Step => time_steps(backend, args, &config, generator, &weights, &quantizer)?,
        BenchWhat::Sample => time_samples(backend, args, &generator, &weights, &quantizer)?,
        BenchWhat::Ceilings => {
            if !global.quiet {
                eprintln!("timing large copies and products; on a CPU this takes a minute");
            }
            println!("{}", serde_json::to_string(&roofline::ceilings(backend, storage)?)?);
            return Ok(());
        }
    };
    times.sort_by(f64::total_cmp);
    let median = median(&times);
    let line = Line {
        peer: format!("sar {}", env!("CARGO_PKG_VERSION")),
        what: if args.what == BenchWhat::Step { "step" } else { "sample" },
        mode: match args.mode {
            StepMode::Tf => "tf",
            StepMode::SarAll => "sar-all",
            StepMode::SarLast => "sar-last",
        },
        depth: args.depth,
        width: config.generator.width,
        batch: args.batch,
        dtype: global.dtype().to_string(),
        device: global.backend.to_string(),
        compile: false,
        parameters,
        median_s: rounded(median, 4),
        min_s: rounded(times.first().copied().unwrap_or(f64::NAN), 4),
        images_per_s: rounded(args.batch as f64 / median, 3),
        peak_bytes: backend.peak_bytes().unwrap_or(0),
    };
    println!("{}", serde_json::to_string(&line)?);
    if args.profile {
        let tallies = backend.end_profile()?;
        for note in backend.product_notes() {
            eprintln!("note: {note}");
        }
        let ceilings = roofline::ceilings(backend, storage)?;
        eprint!("{}", roofline::table(&tallies, args.steps, ceilings));
    }
    Ok(())
}

/// The middle of times in ascending order, or between the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}

/// The comparison script's settings: argmax rollout, σ 0.01, no dropout of any kind.
fn configuration(args: &BenchArgs) -> anyhow::Result<Config> {
    let mut config = Config::default();
    let g = &mut config.generator;
    (g.depth, g.width, g.heads) = (args.depth, args.width, args.heads);
    (g.vocab, g.channels, g.classes) = (args.vocab, args.channels, args.classes);
    g.schedule = args.schedule;
    g.resolve();
    let t = &mut config.train;
    t.batch = args.batch;
    t.lr = Some(1e-4);
    t.class_dropout = 0.0;
    t.drop_path = Some(0.0);
    args.mode.choose(&mut config);
    (config.sar.decode, config.sar.guidance) = (Decode::Argmax, 0.0);
    config.sar.sigma = 0.01;
    config.validate()?;
    Ok(config)
}

fn time_steps<B: Compute>(
    backend: &B,
    args: &BenchArgs,
    config: &Config,
    generator: Generator,
    weights: &[f32],
    quantizer: &Quantizer<B>,
) -> anyhow::Result<Vec<f64>> {
    let last = args.schedule.last();
    let size = (last.height, last.width);
    let mut trainer = Trainer::new(backend, generator, config, weights, quantizer, size)?;
    let mut batches = RandomBatches { latents: Vec::new(), labels: Vec::new() };
    let mut times = Vec::new();
    for step in 0..args.warmup + args.steps {
        batches.draw(args, step as u64);
        if args.profile && step == args.warmup {
            backend.begin_profile()?;
        }
        let start = Instant::now();
        trainer.step(&mut batches)?;
        backend.synchronize()?;
        if step >= args.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

fn time_samples<B: Compute>(
    backend: &B,
    args: &BenchArgs,
    generator: &Generator,
    weights: &[f32],
    quantizer: &Quantizer<B>,
) -> anyhow::Result<Vec<f64>> {
    let params = generator.frozen(backend, weights)?;
    let mut sampler =
        Sampler::new(backend, generator, quantizer, args.batch, &args.schedule, true)?;
    let mut batches = RandomBatches { latents: Vec::new(), labels: Vec::new() };
    let filter = Filter { top_k: args.vocab.min(900), top_p: 0.0 };
    let mut times = Vec::new();
    for step in 0..args.warmup + args.steps {
        batches.draw(args, step as u64);
        let keys = DrawKeys { seed: step as u64, first_image: 0 };
        let decoding = Decoding {
            guidance: Guidance::Sampling(1.5).ramp(args.schedule.len()),
            choice: Choice::Draw(filter, keys),
        };
        if args.profile && step == args.warmup {
            backend.begin_profile()?;
        }
        let start = Instant::now();
        let labels = &batches.labels;
        let model = Model { generator, params: &params, quantizer };
        sampler.run(backend, model, labels, &decoding, None)?;
        backend.synchronize()?;
        if step >= args.warmup {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(times)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(&[1.0]), 1.0);
        assert_eq!(median(&[1.0, 4.0]), 2.5);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert!(median(&[]).is_nan());
    }
}
