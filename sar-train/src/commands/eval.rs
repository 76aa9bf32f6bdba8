//! `sar eval`: measures a generator, prints the numbers, keeps them as JSON.

mod store;
mod sweep;

use super::classes::compare_with_generator;
use super::generator_run::HELD_OUT;
use super::models::{open_to_draw, tokenizer_of, tokenizer_path};
use super::place;
use super::resuming::{compare_with_run, run_data};
use super::room::drawing_fits;
use super::tokenizer::reconstruct;
use crate::backend::Compute;
use crate::cli::{EvalArgs, GlobalArgs};
use crate::config::{Config, SampleConfig};
use crate::data::{Data, some_of};
use crate::eval::{EvalOptions, EvalReport, Evaluator, NEIGHBOURS, SamplerSettings, prepare};
use crate::files::{absolute, is_special, same_place};
use crate::hash::sha256_of;
use crate::model::classifier::ClassifierTraining;
use crate::run::{EVAL_FILE, Interrupt, Progress};
use crate::sample::Model;
use crate::train::{HeldOutReport, encode_all, held_out_loss};
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use sar_math::backend::Filter;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use store::{keep, store};

/// What stands for standard output as a file's name.
const STDOUT: &str = "-";

/// Measures the generator of `args` at every guidance value.
///
/// # Errors
/// Weights or data that cannot be used, or a file that cannot be written.
pub fn run<B: Compute>(backend: &B, args: &EvalArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let measured = Measured::open(backend, args, global.quiet)?;
    measured.fits_in_memory(global)?;
    let json = measured.json(args);
    let piped = json.as_deref() == Some(Path::new(STDOUT));
    let _place =
        json.as_deref()
            .filter(|_| !piped)
            .map(|path| {
                let place = place::ready_as(path, &["json"]);
                let place = place.and_then(|place| store::not_foreign(path).map(|()| place));
                match args.json {
                    Some(_) => place,
                    None => place
                        .context("no place for the numbers in the run's folder; --json names one"),
                }
            })
            .transpose()?;
    let kept = json.as_deref().filter(|path| !piped && !is_special(path));
    anyhow::ensure!(
        !args.resume || kept.is_some(),
        "--resume goes on with the numbers in a file, and these are not kept in one; name it with --json"
    );
    if json.is_none() {
        eprintln!("note: the numbers are printed and not kept; --json FILE does that");
    }
    let mut evaluator = measured.evaluator(backend, global)?;
    let params = measured.generator.params(backend)?;
    evaluator.add_held_out(measured.held_out(backend, &params)?);
    // Not before: what comes until here keeps nothing, and is ended at once.
    let interrupt = Interrupt::listen()?;
    let mut begun = evaluator.report(Vec::new());
    if let Some(file) = kept.filter(|_| args.resume) {
        store::take_up(&mut begun, file);
    }
    let mut failed = false;
    let point = |report: &EvalReport| {
        // What is measured is not lost with what comes after it, nor because there is no room for it now. A pipe has the
        // numbers once, when they are all there.
        let Some(Err(error)) = kept.map(|file| store(report, false, file)) else { return };
        if !std::mem::replace(&mut failed, true) {
            eprintln!(
                "warning: {error:#}; measuring goes on, and the numbers are printed at its end"
            );
        }
    };
    let (with, quiet) = ((&evaluator, &begun), global.quiet);
    let mut report = sweep::sweep(backend, &measured, &params, with, &interrupt, quiet, point)?;
    let of = measured.config.eval.guidance.len() * measured.filters.len();
    let done = report.points.len();
    if done < of {
        report.warnings.push(format!("Interrupted: {done} of {of} points of the sweep."));
    }
    if done > 0 {
        match piped {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => keep(&report, done == of, json.as_deref(), global.quiet)?,
        }
    }
    match done == of {
        true => Ok(()),
        false => Err(EvalInterrupted { done, of, left: measured.left(done) }.into()),
    }
}

/// A generator, and all that it is measured with.
struct Measured<B: Compute> {
    generator: TrainedGenerator,
    tokenizer: TrainedTokenizer<B>,
    tokenizer_file: PathBuf,
    /// Whether sampler and size are those of the run.
    as_made: bool,
    config: Config,
    /// Each of them is swept.
    filters: Vec<Filter>,
    data: Data,
    schedule: ScaleSchedule,
}

impl<B: Compute> Measured<B> {
    fn open(backend: &B, args: &EvalArgs, quiet: bool) -> anyhow::Result<Self> {
        let generator = open_to_draw(&args.generator, args.ema, quiet)?;
        let tokenizer = tokenizer_of(&generator, backend, args.tokenizer.as_deref())?;
        let factor = tokenizer.tokenizer.downsample_factor();
        let Asked { config, filters, as_made } = configuration(args, &generator, factor)?;
        let data = run_data(&config, generator.run.as_deref().filter(|_| args.data.is_none()))?;
        let schedule = generator.schedule(config.sample.schedule)?;
        let tokenizer_file = tokenizer_path(&generator, args.tokenizer.as_deref())?;
        if args.data.is_none() && data.drawn {
            compare_with_run(generator.run.as_deref(), "generator", &data)?;
        }
        let measured =
            Self { generator, tokenizer, tokenizer_file, as_made, config, filters, data, schedule };
        measured.check()?;
        Ok(measured)
    }

    /// The values of guidance that are left after so many points, in the order in which they are measured; empty
    /// where filters are swept too.
    fn left(&self, done: usize) -> Vec<f64> {
        let mut values = self.config.eval.guidance.clone();
        values.sort_by(f64::total_cmp);
        if self.filters.len() > 1 { Vec::new() } else { values.split_off(done.min(values.len())) }
    }

    /// Whether any of the values of guidance doubles the batch.
    fn guided(&self) -> bool {
        self.config.eval.guidance.iter().any(|&guidance| guidance != 0.0)
    }

    /// Whether the samples can be drawn in this memory.
    fn fits_in_memory(&self, global: &GlobalArgs) -> anyhow::Result<()> {
        let sample = &self.config.sample;
        let guidance = if self.guided() { 1.0 } else { 0.0 };
        let drawn = SampleConfig { guidance, schedule: Some(self.schedule), ..sample.clone() };
        drawing_fits(&self.generator.section, self.tokenizer.tokenizer.config(), &drawn, global)
    }

    /// Whether samples can be held against the images.
    fn check(&self) -> anyhow::Result<()> {
        let (data, generator) = (&self.data, &self.generator);
        anyhow::ensure!(
            data.classes.len() == generator.section.classes,
            "the data has {} classes, the generator {}; measure it on the data it was trained on",
            data.classes.len(),
            generator.section.classes
        );
        if data.classes.len() < 2 {
            // Before what more of them would not change.
            anyhow::bail!(
                "images are measured in the features of a classifier that tells classes apart, and these are of one \
                 class; `sar report` shows losses and samples of a run, and `sar score SAMPLES --reference IMAGES \
                 --inception WEIGHTS` holds what `sar sample` drew against images by the published network"
            );
        }
        compare_with_generator(generator, data);
        let (last, factor) = (self.schedule.last(), self.tokenizer.tokenizer.downsample_factor());
        let side = data.validation.side();
        anyhow::ensure!(
            last.height == last.width,
            "samples are {}×{} px, and the images to compare with are square: a schedule that ends in a \
             square is measured",
            last.height * factor,
            last.width * factor
        );
        anyhow::ensure!(
            (last.height * factor, last.width * factor) == (side, side),
            "samples are {}×{} px, the images to compare with {side}×{side}; let them agree with \
             --image-side",
            last.height * factor,
            last.width * factor
        );
        let shown: BTreeSet<u32> = data.validation.labels().into_iter().collect();
        let missing: Vec<&str> = data
            .classes
            .iter()
            .zip(0..)
            .filter(|(_, label)| !shown.contains(label))
            .map(|(name, _)| name.as_str())
            .collect();
        if !missing.is_empty() {
            eprintln!(
                "note: {} of the {} classes have no held-out image, and are sampled all the same: the \
                 distance counts what they add ({})",
                missing.len(),
                data.classes.len(),
                some_of(&missing)
            );
        }
        self.check_counts()
    }

    /// Whether there are enough samples and images to measure with.
    fn check_counts(&self) -> anyhow::Result<()> {
        let data = &self.data;
        let samples = self.config.eval.samples;
        let whole = samples.next_multiple_of(data.classes.len());
        if whole != samples {
            eprintln!(
                "note: {whole} samples are measured in place of {samples}, the same number of each of {} classes",
                data.classes.len()
            );
        }
        anyhow::ensure!(
            whole > NEIGHBOURS,
            "{samples} samples are too few to measure; --samples {} is the least",
            NEIGHBOURS + 1
        );
        let seen = data.train.len();
        anyhow::ensure!(
            seen > NEIGHBOURS,
            "{seen} images are there to train on, too few for the floor that they are measured as; {} are the least",
            NEIGHBOURS + 1
        );
        let held_out = data.validation.len();
        anyhow::ensure!(
            held_out > NEIGHBOURS,
            "{held_out} images are held out for validation, too few to measure with ({} are the least); name \
             a set that has a val/ of its own with --data, or train with a larger data.val_fraction",
            NEIGHBOURS + 1
        );
        Ok(())
    }

    /// Where the numbers go: of a run measured as it was made, where the report looks for them; of other
    /// weights or images they are not the run's.
    fn json(&self, args: &EvalArgs) -> Option<PathBuf> {
        let own =
            args.data.is_none() && args.tokenizer.is_none() && !self.generator.ema && self.as_made;
        let whole = |run: &&PathBuf| own && same_place(run, &args.generator);
        let kept = self.generator.run.as_ref().filter(whole).map(|run| run.join(EVAL_FILE));
        args.json.clone().or(kept)
    }

    /// Losses by teacher forcing on the images that training measures them on.
    fn held_out(&self, backend: &B, params: &B::Params) -> anyhow::Result<HeldOutReport> {
        let (tokenizer, images) = (&self.tokenizer, &self.data.validation);
        let (generator, quantizer) = (&self.generator.generator, &tokenizer.quantizer);
        let (of, never) = (&tokenizer.tokenizer, Interrupt::none());
        let latents = encode_all(backend, of, &tokenizer.params, images, HELD_OUT, &never)?;
        let side = of.latent_side(images.side());
        let batch = self.config.sample.batch.min(latents.labels.len());
        let model = Model { generator, params, quantizer };
        let size = (side, side);
        let report = held_out_loss(backend, model, &self.schedule, &latents, batch, size, &never)?;
        report.context("the evaluation was stopped")
    }

    /// The classifier, the validation features and the floors.
    fn evaluator<'b>(
        &self,
        backend: &'b B,
        global: &GlobalArgs,
    ) -> anyhow::Result<Evaluator<'b, B>> {
        // Of one seed, whatever the run's: a base and its refinement are measured by the same features.
        let training = ClassifierTraining {
            steps: self.config.eval.classifier_steps,
            ..ClassifierTraining::default()
        };
        let (tokenizer, schedule) = (&self.tokenizer, &self.schedule);
        let side = self.data.validation.side();
        let mut progress = Progress::new("classifier", training.steps, 0, global.quiet);
        let evaluator = prepare(
            backend,
            &self.data,
            &training,
            &self.options(&global.computed()),
            |images| Ok(reconstruct(backend, tokenizer, schedule, images, side)?),
            |step| progress.update(step, ""),
        )?;
        progress.finish("trained, floors measured");
        Ok(evaluator)
    }

    fn options(&self, computed: &str) -> EvalOptions {
        let s = &self.config.sample;
        EvalOptions {
            count: self.config.eval.samples,
            seeds: (0..self.config.eval.seeds).map(|k| s.seed.wrapping_add(k)).collect(),
            data: self.data.summary.clone(),
            sampler: SamplerSettings {
                weights: absolute(&self.generator.file).display().to_string(),
                weights_sha256: sha256_of(&self.generator.weights),
                tokenizer_sha256: sha256_of(&self.tokenizer.weights),
                step: self.generator.step,
                ramp: s.ramp.formula().to_owned(),
                top_k: s.top_k,
                top_p: s.top_p,
                schedule: self.schedule.to_string(),
                published_greedy: s.published_greedy,
                program: format!("sar {}, {computed}", env!("CARGO_PKG_VERSION")),
                tokenizer: absolute(&self.tokenizer_file).display().to_string(),
                ema: self.generator.ema,
            },
        }
    }
}

/// The values in their order, each once.
fn distinct(values: &[f64]) -> Vec<f64> {
    let mut once: Vec<f64> = Vec::with_capacity(values.len());
    for &value in values {
        if !once.contains(&value) {
            once.push(value);
        }
    }
    once
}

/// An evaluation that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {done} of {of} points of the sweep were measured{}", rest(*.done, .left))]
pub(super) struct EvalInterrupted {
    done: usize,
    of: usize,
    /// Values of guidance that are left to measure, if they are all that is swept.
    left: Vec<f64>,
}

/// How to measure what is left.
fn rest(done: usize, left: &[f64]) -> String {
    if done == 0 || left.is_empty() {
        return String::new();
    }
    let values: Vec<String> = left.iter().map(f64::to_string).collect();
    let values = values.join(",");
    format!(
        "; --resume, or --guidance {values}, with the other flags as they were, measures the others"
    )
}

/// What is to be measured.
struct Asked {
    config: Config,
    /// Each of them is swept.
    filters: Vec<Filter>,
    /// Whether sampler and size are those of the run.
    as_made: bool,
}

fn configuration(
    args: &EvalArgs,
    generator: &TrainedGenerator,
    factor: usize,
) -> anyhow::Result<Asked> {
    let of_run = generator.run_config()?;
    let alone = of_run.is_none();
    let mut config = of_run.unwrap_or_default();
    let made = (config.sample.clone(), config.data.image_side);
    // What a run was tried on is too little to measure by.
    config.data.limit = None;
    if let Some(source) = &args.data {
        config.data = config.data.with_source(source);
    }
    if args.sampler.as_published(&mut config.sample) {
        config.eval.guidance = vec![config.sample.guidance];
    }
    if !args.guidance.is_empty() {
        config.eval.guidance.clone_from(&args.guidance);
    }
    config.eval.guidance = distinct(&config.eval.guidance);
    config.eval.samples = args.samples.unwrap_or(config.eval.samples);
    config.eval.seeds = args.seeds.unwrap_or(config.eval.seeds);
    config.data.skip_bad_images |= args.skip_bad_images;
    args.sampler.over(&mut config.sample);
    let filters = filters(args, &mut config)?;
    // Weights of a file of their own do not say the images' side, but what they draw has one.
    let drawn = config.sample.schedule.unwrap_or(generator.section.schedule).last();
    let side = alone.then_some(drawn.height * factor);
    config.data.image_side = args.image_side.or(side).unwrap_or(config.data.image_side);
    config.validate()?;
    let batch = made.0.batch;
    let sampled = SampleConfig { batch, ..config.sample.clone() };
    let as_made = (sampled, config.data.image_side) == made && filters.len() == 1;
    Ok(Asked { config, filters, as_made })
}

/// Every pair of the filters that are asked for; the first is the configuration's from here on.
fn filters(args: &EvalArgs, config: &mut Config) -> anyhow::Result<Vec<Filter>> {
    let (own_k, own_p) = ([config.sample.top_k], [config.sample.top_p]);
    let top_k = if args.top_k.is_empty() { &own_k[..] } else { &args.top_k };
    let top_p = if args.top_p.is_empty() { &own_p[..] } else { &args.top_p };
    let of = |top_k: usize| top_p.iter().map(move |&top_p| Filter { top_k, top_p });
    let pairs: Vec<Filter> = top_k.iter().flat_map(|&k| of(k)).collect();
    for pair in pairs.iter().rev() {
        (config.sample.top_k, config.sample.top_p) = (pair.top_k, pair.top_p);
        config.sample.validate()?;
    }
    Ok(pairs)
}
