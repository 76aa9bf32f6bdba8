//! `sar eval`: measures a generator, prints the numbers, keeps them as JSON.

use super::models::{Cpu, LoadedGenerator, LoadedTokenizer};
use super::train::settings;
use crate::cli::{EvalArgs, GlobalArgs};
use crate::config::Config;
use crate::data::{self, DataConfig};
use crate::eval::{
    AnyError, EvalOptions, EvalReport, Evaluator, Generate, SamplerSettings, prepare,
};
use crate::model::classifier::{ClassifierOps, ClassifierTraining};
use crate::report::{summary, text};
use crate::run::Progress;
use crate::sample::Painter;
use crate::train::tokenizer::TokenizerTrainer;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use super::tokenizer::open_data;
use crate::cli::{EvalArgs, GlobalArgs};
use crate::config::Config;
use crate::data::Data;
use crate::eval::{AnyError, EvalOptions, EvalReport, SamplerSettings, prepare};
use crate::model::classifier::ClassifierTraining;
use crate::report::{summary, text};
use crate::run::Progress;
use crate::sample::{Painter, SampleSettings};
use crate::train::tokenizer::TokenizerTrainer;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use sar_math::backend::Filter;
use std::path::Path;

/// Name of the numbers in the generator's run folder, where `sar report` looks for them.
pub const EVAL_FILE: &str = "eval.json";

/// Measures the generator of `args` at every guidance value.
///
/// # Errors
/// Weights or data that cannot be used, or a file that cannot be written.
pub fn run(args: &EvalArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let backend = Cpu::new();
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    let tokenizer = generator.tokenizer(&backend, args.tokenizer.as_deref())?;
    let config = configuration(args, generator.run_config()?.unwrap_or_default())?;
    let data = data::open(&config.data)?;
    anyhow::ensure!(
        data.classes.len() == generator.section.classes,
        "the data has {} classes, the generator {}; measure it on the data it was trained on",
        data.classes.len(),
        generator.section.classes
    );
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let training = ClassifierTraining {
        steps: config.eval.classifier_steps,
        seed: config.train.seed,
        ..ClassifierTraining::default()
    };
    let mut progress = Progress::new("classifier", training.steps, 0, global.quiet);
    let evaluator = prepare(
        &backend,
        &data,
        &training,
        &options(&config, &schedule),
        |images| reconstruct(&backend, &tokenizer, &config, data.validation.side(), images),
        |step| progress.update(step, ""),
    )?;
    progress.finish("trained, floors measured");

    let params = generator.params(&backend)?;
    let (model, decoder) = (&generator.generator, tokenizer.decoder());
    let batch = config.sample.batch;
    let mut painter = Painter::new(&backend, model, decoder, &schedule, batch, true)?;
    let guidances = &config.eval.guidance;
    let total = guidances.len() as u64 * config.eval.seeds;
    let mut progress = Progress::new("sampling", total, 0, global.quiet);
    let mut done = 0;
    let mut generate = |labels: &[u32], seed: u64, guidance: f64| {
        let mut config = config.clone();
        config.sample.guidance = guidance;
        let settings = settings(&config, seed);
        let mut images = Vec::new();
        for (n, part) in labels.chunks(batch).enumerate() {
            let painted = painter.paint(&params, part, (n * batch) as u64, &settings, false)?;
            images.extend(painted.images);
        }
        done += 1;
        progress.update(done, &format!("guidance {guidance}"));
        Ok(images)
    };
    let own = generator.run.as_ref().map(|run| run.join(EVAL_FILE));
    let json = args.json.clone().or(own);
    sweep(&evaluator, &mut generate, guidances, json.as_deref(), false)?;
    if let Some(json) = json.filter(|_| !global.quiet) {
        eprintln!("the numbers are in {}", json.display());
    }
    Ok(())
}

fn configuration(args: &EvalArgs, mut config: Config) -> anyhow::Result<Config> {
    if let Some(source) = &args.data {
        let image_side = config.data.image_side;
        config.data = DataConfig { image_side, ..DataConfig::from_argument(source) };
    }
    if !args.guidance.is_empty() {
        config.eval.guidance.clone_from(&args.guidance);
    }
    config.eval.samples = args.samples.unwrap_or(config.eval.samples);
    config.eval.seeds = args.seeds.unwrap_or(config.eval.seeds);
    config.validate()?;
    Ok(config)
}

fn options(config: &Config, schedule: &ScaleSchedule) -> EvalOptions {
    let s = &config.sample;
    EvalOptions {
        count: config.eval.samples,
        seeds: (0..config.eval.seeds).map(|k| s.seed.wrapping_add(k)).collect(),
        sampler: SamplerSettings {
            ramp: s.ramp.formula().to_owned(),
            top_k: s.top_k,
            top_p: s.top_p,
            schedule: schedule.to_string(),
        },
    }
}

/// Images through the tokenizer and back.
fn reconstruct(
    backend: &Cpu,
    loaded: &LoadedTokenizer,
    config: &Config,
    side: usize,
    images: &[f32],
) -> Result<Vec<f32>, AnyError> {
    let settings = &config.tokenizer_train;
    let mut trainer = TokenizerTrainer::new(backend, &loaded.tokenizer, settings, (side, side))?;
    let zeros = vec![0.0; loaded.weights.len()];
    let progress = trainer.progress().clone();
    trainer.restore(&loaded.weights, [&zeros, &zeros], &progress)?;
    let grid = side / loaded.tokenizer.downsample_factor();
    Ok(trainer.reconstruct(images, (grid, grid))?)
}

/// Sweeps guidance, prints the result and writes it to `json`.
/// Sampling seeds, where none are asked for: the fewest that have a spread worth the name.
const SEEDS: u64 = 3;

/// Measures a generator over guidance.
///
/// The numbers go to `--json`, or to `eval.json` in the generator's run folder, where it has one.
///
/// # Errors
/// A checkpoint, tokenizer or data set that cannot be used together, or a file that cannot be
/// written.
pub fn run(args: &EvalArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let backend = Cpu::new();
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    let tokenizer = generator.tokenizer(&backend, args.tokenizer.as_deref())?;
    let config = generator.run_config()?;
    anyhow::ensure!(
        config.is_some() || args.data.is_some(),
        "the generator is a file of its own, so its images are not known; name them with --data"
    );
    let mut config = config.unwrap_or_default();
    config.tokenizer = tokenizer.tokenizer.config().clone();
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let data = open_data(args.data.as_deref(), &config)?;
    fits(&data, &generator, &tokenizer, &schedule)?;
    let options = options(args, &config, &data, &schedule);
    let training = ClassifierTraining { seed: config.train.seed, ..Default::default() };
    let mut progress = Progress::new("classifier", training.steps, 0, global.quiet);
    let reconstruct = |images: &[f32]| reconstructed(&backend, &tokenizer, &config, images);
    let evaluator = prepare(&backend, &data, &training, &options, reconstruct, |step| {
        progress.update(step, "");
    })?;
    let accuracy = 100.0 * evaluator.settings().extractor_accuracy;
    progress.finish(&format!("{accuracy:.1} % of validation images right"));

    let guidances = match args.guidance.as_slice() {
        [] => vec![config.sample.guidance],
        asked => asked.to_vec(),
    };
    let s = &config.sample;
    let params = generator.params(&backend)?;
    let model = &generator.generator;
    let batch = s.batch.min(options.count);
    let mut painter = Painter::new(&backend, model, tokenizer.decoder(), &schedule, batch, true)?;
    let total = (guidances.len() * options.seeds.len()) as u64;
    let mut progress = Progress::new("sampling", total, 0, global.quiet);
    let mut done = 0;
    let mut generate = |labels: &[u32], seed: u64, guidance: f64| {
        let filter = Filter { top_k: s.top_k, top_p: s.top_p };
        let settings = SampleSettings { guidance: s.ramp.guidance(guidance), filter, seed };
        let painted = painter.paint(&params, labels, 0, &settings, false);
        done += 1;
        progress.update(done, &format!("guidance {guidance}, seed {seed}"));
        painted.map(|p| p.images).map_err(|e| -> AnyError { Box::new(e) })
    };
    let report = evaluator.sweep(&mut generate, &guidances)?;
    progress.finish(&format!("{} images each", evaluator.labels().len()));
    print!("{}", text::evaluation(&report));
    let beside = generator.run.as_ref().map(|run| run.join(EVAL_FILE));
    match args.json.as_ref().or(beside.as_ref()) {
        Some(path) => write(&report, path),
        None => Ok(()),
    }
}

/// Checks that images, tokenizer and generator speak of the same sizes and classes.
fn fits(
    data: &Data,
    generator: &LoadedGenerator,
    tokenizer: &LoadedTokenizer,
    schedule: &ScaleSchedule,
) -> anyhow::Result<()> {
    let (classes, found) = (generator.section.classes, data.classes.len());
    anyhow::ensure!(
        classes == found,
        "the generator has {classes} classes, the data {found}; give --data the images that it was \
         trained on"
    );
    let factor = tokenizer.tokenizer.downsample_factor();
    let last = schedule.last();
    let (height, width) = (last.height * factor, last.width * factor);
    let side = data.validation.side();
    anyhow::ensure!(
        height == side && width == side,
        "schedule {schedule} makes images of {height}x{width} pixels, but the data are {side}x{side}; \
         set sample.schedule or data.image_side"
    );
    Ok(())
}

fn options(args: &EvalArgs, config: &Config, data: &Data, schedule: &ScaleSchedule) -> EvalOptions {
    let s = &config.sample;
    let ramp = serde_json::to_value(s.ramp).ok();
    EvalOptions {
        // As many as there are real ones, so that both sets are as noisy.
        count: args.samples.unwrap_or(data.validation.len()).max(1),
        seeds: (1..=args.seeds.unwrap_or(SEEDS).max(1)).collect(),
        sampler: SamplerSettings {
            ramp: ramp.and_then(|r| r.as_str().map(String::from)).unwrap_or_default(),
            top_k: s.top_k,
            top_p: s.top_p,
            schedule: schedule.to_string(),
        },
    }
}

/// Images through the tokenizer and back.
fn reconstructed(
    backend: &Cpu,
    loaded: &LoadedTokenizer,
    config: &Config,
    images: &[f32],
) -> Result<Vec<f32>, AnyError> {
    let side = config.data.image_side;
    let tokenizer = &loaded.tokenizer;
    let settings = &config.tokenizer_train;
    let mut trainer = TokenizerTrainer::new(backend, tokenizer, settings, (side, side))?;
    let zeros = vec![0.0; loaded.weights.len()];
    let progress = trainer.progress().clone();
    trainer.restore(&loaded.weights, [&zeros, &zeros], &progress)?;
    let grid = side / tokenizer.downsample_factor();
    Ok(trainer.reconstruct(images, (grid, grid))?)
}

fn write(report: &EvalReport, path: &Path) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    summary::write_whole(path, text.as_bytes()).with_context(|| format!("{}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
