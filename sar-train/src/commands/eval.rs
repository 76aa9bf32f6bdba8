//! `sar eval`: measures a generator, prints the numbers, keeps them as JSON.

use super::models::{LoadedGenerator, LoadedTokenizer, absolute, run_data};
use super::output;
use super::train::settings;
use crate::backend::Compute;
use crate::cli::{EvalArgs, GlobalArgs};
use crate::config::Config;
use crate::data::Data;
use crate::eval::{
    AnyError, EvalOptions, EvalReport, Evaluator, Generate, NEIGHBOURS, SamplerSettings, prepare,
};
use crate::model::classifier::{ClassifierOps, ClassifierTraining};
use crate::report::{summary, text};
use crate::run::Progress;
use crate::sample::Painter;
use crate::train::tokenizer::TokenizerTrainer;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Name of the numbers in the generator's run folder, where `sar report` looks for them.
pub const EVAL_FILE: &str = "eval.json";

/// Measures the generator of `args` at every guidance value.
///
/// # Errors
/// Weights or data that cannot be used, or a file that cannot be written.
pub fn run<B: Compute>(backend: &B, args: &EvalArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let generator = LoadedGenerator::open(&args.generator, args.ema)?;
    // Of a run, where the report looks for them; of other weights or images they are not the run's.
    let whole = |run: &&PathBuf| {
        let own = args.data.is_none() && args.tokenizer.is_none();
        own && same_folder(run, &args.generator)
    };
    let own = generator.run.as_ref().filter(whole).map(|run| run.join(EVAL_FILE));
    let json = args.json.clone().or(own);
    let _place = json.as_deref().map(output::ready).transpose()?;
    let tokenizer = generator.tokenizer(backend, args.tokenizer.as_deref())?;
    let config = configuration(args, generator.run_config()?.unwrap_or_default())?;
    let data = run_data(&config, generator.run.as_deref().filter(|_| args.data.is_none()))?;
    anyhow::ensure!(
        data.classes.len() == generator.section.classes,
        "the data has {} classes, the generator {}; measure it on the data it was trained on",
        data.classes.len(),
        generator.section.classes
    );
    let schedule = config.sample.schedule.unwrap_or(generator.section.schedule);
    let (last, factor) = (schedule.last(), tokenizer.tokenizer.downsample_factor());
    let side = data.validation.side();
    anyhow::ensure!(
        (last.height * factor, last.width * factor) == (side, side),
        "samples are {}×{} px, the images to compare with {side}×{side}; choose data.image_side and \
         generator.schedule so that they agree",
        last.height * factor,
        last.width * factor
    );
    let shown: BTreeSet<u32> = data.validation.labels().into_iter().collect();
    if shown.len() < data.classes.len() {
        output::note(format_args!(
            "note: {} of the {} classes have no held-out image, and are sampled all the same: the \
             distance counts what they add",
            data.classes.len() - shown.len(),
            data.classes.len()
        ));
    }
    let held_out = data.validation.len();
    anyhow::ensure!(
        held_out > NEIGHBOURS,
        "{held_out} images are held out for validation, too few to measure with; name \
         more images with --data, or train with a larger data.val_fraction"
    );
    let training = ClassifierTraining {
        steps: config.eval.classifier_steps,
        seed: config.train.seed,
        ..ClassifierTraining::default()
    };
    let mut progress = Progress::new("classifier", training.steps, 0, global.quiet);
    let evaluator = prepare(
        backend,
        &data,
        &training,
        &options(&config, &data, &generator, &schedule, args.ema),
        |images| reconstruct(backend, &tokenizer, &config, data.validation.side(), images),
        |step| progress.update(step, ""),
    )?;
    progress.finish("trained, floors measured");

    let params = generator.params(backend)?;
    let (model, decoder) = (&generator.generator, tokenizer.decoder());
    let batch = config.sample.batch;
    let mut painter = Painter::new(backend, model, decoder, &schedule, batch, true)?;
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
    sweep(&evaluator, &mut generate, guidances, json.as_deref(), false)?;
    match json {
        _ if global.quiet => {}
        Some(json) => eprintln!("the numbers are in {}", json.display()),
        None => eprintln!("the numbers are not kept; --json FILE does that"),
    }
    Ok(())
}

fn configuration(args: &EvalArgs, mut config: Config) -> anyhow::Result<Config> {
    if let Some(source) = &args.data {
        config.data = config.data.with_source(source);
    }
    if !args.guidance.is_empty() {
        config.eval.guidance.clone_from(&args.guidance);
    }
    config.eval.samples = args.samples.unwrap_or(config.eval.samples);
    config.eval.seeds = args.seeds.unwrap_or(config.eval.seeds);
    config.data.skip_bad_images |= args.skip_bad_images;
    config.validate()?;
    Ok(config)
}

fn same_folder(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(a).is_some_and(|a| real(b) == Some(a))
}

fn options(
    config: &Config,
    data: &Data,
    generator: &LoadedGenerator,
    schedule: &ScaleSchedule,
    ema: bool,
) -> EvalOptions {
    let s = &config.sample;
    EvalOptions {
        count: config.eval.samples,
        seeds: (0..config.eval.seeds).map(|k| s.seed.wrapping_add(k)).collect(),
        data: data.summary.clone(),
        sampler: SamplerSettings {
            weights: absolute(&generator.file).display().to_string(),
            step: generator.step,
            ramp: s.ramp.formula().to_owned(),
            top_k: s.top_k,
            top_p: s.top_p,
            schedule: schedule.to_string(),
            ema,
        },
    }
}

/// Images through the tokenizer and back.
fn reconstruct<B: Compute>(
    backend: &B,
    loaded: &LoadedTokenizer<B>,
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
///
/// # Errors
/// The generator's, or a file that cannot be written.
pub fn sweep<B: ClassifierOps>(
    evaluator: &Evaluator<'_, B>,
    generator: &mut impl Generate,
    guidances: &[f64],
    json: Option<&Path>,
    quiet: bool,
) -> anyhow::Result<EvalReport> {
    let report = evaluator.sweep(generator, guidances)?;
    if !quiet {
        print!("{}", text::evaluation(&report));
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report)?;
        summary::write_whole(path, text.as_bytes())
            .with_context(|| format!("{}", path.display()))?;
    }
    Ok(report)
}
