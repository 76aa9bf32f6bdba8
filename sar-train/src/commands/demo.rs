//! `sar demo`: tokenizer, generator, two arms of equal steps from the same checkpoint, comparison.

use super::generator_run::{Start, Work};
use super::inputs::Inputs;
use super::tokenizer::{TokenizerWork, Trained, reconstruct};
use crate::backend::Compute;
use crate::cli::{DemoArgs, GlobalArgs};
use crate::config::{Config, EvalConfig, Mode, Preset, SampleConfig, SarConfig};
use crate::data::{self, Data, DataConfig, grid};
use crate::eval::{AnyError, EvalOptions, Evaluator, SamplerSettings, prepare};
use crate::files::absolute;
use crate::hash::sha256_of;
use crate::model::classifier::ClassifierTraining;
use crate::model::generator::{Generator, GeneratorShape};
use crate::report::summary::{Arm, ArmRole, Summary, TokenizerSummary};
use crate::report::{self, REPORT_FILE, verdict::verdict};
use crate::run::{Interrupt, Origin, Progress, RunError, RunFolder};
use crate::sample::{Painter, SampleSettings};
use crate::train::{Outcome, Risen};
use std::path::PathBuf;
use std::time::Instant;

/// What the demonstration spends on each part.
struct Budget {
    tokenizer_steps: u64,
    classifier_steps: u64,
    base_steps: u64,
    arm_steps: u64,
    /// Held-out losses taken while an arm trains; twice as many for the base.
    evaluations: u64,
    /// Samples per sampling seed and guidance value.
    samples: usize,
    guidances: &'static [f64],
}

/// Nine and a half minutes on two cores of a Zen 4 EPYC.
const FULL: Budget = Budget {
    tokenizer_steps: 800,
    classifier_steps: 400,
    base_steps: 750,
    arm_steps: 200,
    evaluations: 4,
    samples: 930,
    guidances: &[-0.25, 0.0, 0.25, 0.5],
};

/// Two and a half minutes there.
const QUICK: Budget = Budget {
    tokenizer_steps: 300,
    classifier_steps: 150,
    base_steps: 200,
    arm_steps: 50,
    evaluations: 2,
    samples: 200,
    guidances: &[-0.25, 0.0, 0.25, 0.5],
};

/// Sampling seeds; the spread over them stands beside each number.
const SAMPLING_SEEDS: [u64; 3] = [1, 2, 3];
/// Images sampled at a time.
const SAMPLE_BATCH: usize = 93;
/// Images whose every scale is shown.
const STRIPS: usize = 10;

/// Runs the demonstration and says where its report lies.
///
/// # Errors
/// A folder that is in use or not empty; a disk that is full; Ctrl-C.
pub fn run<B: Compute>(backend: &B, args: &DemoArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let budget = if args.quick { &QUICK } else { &FULL };
    let config = configuration(budget, args.seed)?;
    let root = RunFolder::create(&args.out, &config).map_err(|error| match error {
        RunError::NotEmpty { path, found, .. } => anyhow::anyhow!(
            "{} is not empty ({found} is in it); remove it, or choose another --out",
            path.display()
        ),
        other => other.into(),
    })?;
    let demo = Demo {
        backend,
        budget,
        data: data::open(&config.data)?,
        config,
        root: &root,
        interrupt: Interrupt::listen()?,
        program: format!("sar {}, {}", env!("CARGO_PKG_VERSION"), global.computed()),
        quiet: global.quiet,
    };
    // Only an interruption is reported as one: after Ctrl-C, too, a full disk may keep a run from being saved.
    let summary = demo.run(start).map_err(|error| match super::is_interruption(&error) {
        true => DemoInterrupted { path: args.out.clone() }.into(),
        false => error,
    })?;
    summary.write(root.path())?;
    let page = root.path().join(REPORT_FILE);
    let mut runs = vec![root.path().to_owned()];
    runs.extend(["tokenizer", "base", "control", "sar"].map(|name| root.path().join(name)));
    let report = report::write(&runs, &page)?;
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    print!("{}", super::table::comparison(&summary));
    println!("\nreport:  {}", page.display());
    println!("numbers: {}", root.path().join("summary.json").display());
    Ok(())
}

/// A demonstration that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error(
    "interrupted; the runs in {} are saved, but a demonstration is not continued: start it anew with \
     another --out, or remove the folder", path.display()
)]
pub(super) struct DemoInterrupted {
    path: PathBuf,
}

/// The measuring of an arm that the user stopped.
#[derive(Debug, thiserror::Error)]
#[error("interrupted while sampling")]
pub(super) struct MeasuringInterrupted;

/// The demonstration's configuration: what `sar train` and `sar refine` would be given.
fn configuration(budget: &Budget, seed: u64) -> anyhow::Result<Config> {
    let mut config = Config { data: DataConfig::glyphs10(), ..Config::default() };
    config.tokenizer_train.steps = budget.tokenizer_steps;
    config.tokenizer_train.seed = seed;
    let g = &mut config.generator;
    (g.depth, g.width, g.heads) = (4, 128, 4);
    g.vocab = config.tokenizer.vocab;
    g.channels = config.tokenizer.latent_channels;
    let t = &mut config.train;
    t.steps = budget.base_steps;
    t.batch = 64;
    t.lr = Some(1.5e-3);
    t.warmup = 50;
    t.seed = seed;
    t.log_every = 20;
    t.eval_every = budget.base_steps / (2 * budget.evaluations);
    t.save_every = 0;
    t.sample_every = 0;
    t.keep = 1;
    config.sample.guidance = 0.5;
    // So that `sar eval` measures a run of the demonstration as it was measured here.
    config.sample.seed = SAMPLING_SEEDS[0];
    config.eval = EvalConfig {
        guidance: budget.guidances.to_vec(),
        samples: budget.samples,
        seeds: SAMPLING_SEEDS.len() as u64,
        classifier_steps: budget.classifier_steps,
    };
    config.validate()?;
    Ok(config)
}

struct Demo<'d, B: Compute> {
    backend: &'d B,
    budget: &'d Budget,
    config: Config,
    data: Data,
    root: &'d RunFolder,
    interrupt: Interrupt,
    /// The program, its backend and number type, as results name them.
    program: String,
    quiet: bool,
}

/// An arm that has been trained.
struct TrainedArm {
    arm: Arm,
    outcome: Outcome,
    weights: Vec<f32>,
    generator: Generator,
}

impl<B: Compute> Demo<'_, B> {
    fn run(&self, start: Instant) -> anyhow::Result<Summary> {
        self.say("1/6  tokenizer: images to codes and back");
        let folder = self.folder("tokenizer", &self.config)?;
        let work = TokenizerWork {
            backend: self.backend,
            folder: &folder,
            config: &self.config,
            data: &self.data,
            meeting: None,
        };
        let trained = work.train(None, &self.interrupt, self.quiet)?;
        self.say("2/6  classifier: its features measure images");
        let mut evaluator = self.evaluator(&trained)?;
        self.say("3/6  base: a generator by teacher forcing");
        let base = self.arm(&trained, ArmRole::Base, None)?;
        self.say("4/6  control: more teacher forcing");
        let control = self.arm(&trained, ArmRole::Control, Some(&base.weights))?;
        self.say("5/6  refined: SAR, preset release, from the same checkpoint");
        let refined = self.arm(&trained, ArmRole::Refined, Some(&base.weights))?;
        self.say("6/6  sampling and measuring every arm over a sweep of guidance");
        let mut arms = Vec::new();
        let mut notes = vec![rising(&base.outcome, "base")];
        for arm in [base, control, refined] {
            arms.push(self.measure(&trained, &mut evaluator, arm)?);
        }
        notes.retain(|n| !n.is_empty());
        notes.extend(evaluator.warnings());
        Ok(self.summary(start, &trained, &evaluator, arms, notes))
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    fn folder(&self, name: &str, config: &Config) -> anyhow::Result<RunFolder> {
        Ok(RunFolder::create(&self.root.path().join(name), config)?)
    }

    /// The classifier, the validation features and the floors.
    fn evaluator(&self, trained: &Trained<B>) -> anyhow::Result<Evaluator<'_, B>> {
        let training = ClassifierTraining {
            steps: self.budget.classifier_steps,
            seed: self.config.train.seed,
            ..ClassifierTraining::default()
        };
        let sample = &self.config.sample;
        let options = EvalOptions {
            count: self.budget.samples,
            seeds: SAMPLING_SEEDS.to_vec(),
            data: self.data.summary.clone(),
            sampler: SamplerSettings {
                ramp: sample.ramp.formula().into(),
                top_k: sample.top_k,
                top_p: sample.top_p,
                schedule: self.config.generator.schedule.to_string(),
                program: self.program.clone(),
                tokenizer_sha256: sha256_of(&trained.loaded.weights),
                // Each arm has weights of its own.
                ..SamplerSettings::default()
            },
        };
        let mut progress = Progress::new("classifier", training.steps, 0, self.quiet);
        let (tokenizer, schedule) = (&trained.loaded, &self.config.generator.schedule);
        let side = self.data.validation.side();
        let evaluator = prepare(
            self.backend,
            &self.data,
            &training,
            &options,
            |images| Ok(reconstruct(self.backend, tokenizer, schedule, images, side)?),
            |step| progress.update(step, ""),
        )?;
        progress.finish(&format!(
            "{:.1} % of validation images right",
            100.0 * evaluator.settings().extractor_accuracy
        ));
        Ok(evaluator)
    }

    /// Trains an arm in its folder.
    fn arm(
        &self,
        trained: &Trained<B>,
        role: ArmRole,
        from: Option<&Vec<f32>>,
    ) -> anyhow::Result<TrainedArm> {
        let mut config = self.config.clone();
        if role != ArmRole::Base {
            let t = &mut config.train;
            t.steps = self.budget.arm_steps;
            t.eval_every = t.steps / self.budget.evaluations;
            // Twice what the base's rate had fallen to, and falling again: both arms alike.
            t.lr = Some(3e-4);
            t.warmup = 0;
            // Other images in another order than the base saw first; the same for both arms.
            t.seed = self.config.train.seed.wrapping_add(1);
        }
        if role == ArmRole::Refined {
            config.train.mode = Mode::Ssr;
            config.sar = SarConfig::preset(Preset::Release);
        }
        let (run, name, what, description) = words(role);
        let folder = self.folder(run, &config)?;
        let inputs = Inputs {
            backend: self.backend,
            config: &config,
            data: &self.data,
            tokenizer: &trained.loaded,
            latents: None,
        };
        let work = Work { inputs, folder: &folder, meeting: None };
        if let Some(weights) = from {
            let step = self.budget.base_steps;
            let base = self.root.path().join("base/checkpoints").join(format!("step-{step}"));
            let weights = Origin {
                weights: absolute(&base.join("model.safetensors")),
                step,
                ema: false,
                sha256: sha256_of(weights),
            };
            folder.keep_origin(&weights)?;
        }
        let start = from.map_or(Start::New, |weights| Start::From(weights.clone()));
        let (outcome, weights) = work.train(start, what, &self.interrupt, self.quiet)?;
        let held_out = outcome.held_out.clone().unwrap_or_default();
        let arm = Arm {
            name: name.into(),
            role,
            description: description.into(),
            steps: config.train.steps,
            heldout_loss: outcome.held_out.as_ref().map(|h| h.heldout_loss),
            scale_loss: held_out.heldout_scale_loss,
            scale_accuracy: held_out.heldout_scale_acc,
            train_images_per_second: Some(outcome.images_per_second),
            peak_memory: self.backend.peak_bytes(),
            run: Some(run.into()),
            ..Arm::default()
        };
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        Ok(TrainedArm { arm, outcome, weights, generator })
    }

    /// Samples an arm at every guidance value, measures it, and keeps pictures.
    fn measure(
        &self,
        trained: &Trained<B>,
        evaluator: &mut Evaluator<'_, B>,
        trained_arm: TrainedArm,
    ) -> anyhow::Result<Arm> {
        let TrainedArm { mut arm, weights, generator, .. } = trained_arm;
        let params = generator.frozen(self.backend, &weights)?;
        let schedule = self.config.generator.schedule;
        let decoder = trained.loaded.decoder();
        let mut painter =
            Painter::new(self.backend, &generator, decoder, &schedule, SAMPLE_BATCH, true)?;
        let settings = |guidance: f64, seed: u64| {
            SampleConfig { guidance, ..self.config.sample.clone() }.settings(seed)
        };
        let (mut images, mut seconds) = (0usize, 0.0);
        let total = (self.budget.guidances.len() * SAMPLING_SEEDS.len()) as u64;
        let mut progress = Progress::new(&arm.name, total, 0, self.quiet);
        let mut done = 0;
        let mut generate = |labels: &[u32], seed: u64, guidance: f64| {
            if self.interrupt.is_asked() {
                return Err(AnyError::from(MeasuringInterrupted));
            }
            let start = Instant::now();
            let painted = painter.paint(&params, labels, 0, &settings(guidance, seed), 0);
            seconds += start.elapsed().as_secs_f64();
            images += labels.len();
            done += 1;
            progress.update(done, &format!("guidance {guidance}"));
            painted.map(|p| p.images).map_err(|e| -> AnyError { Box::new(e) })
        };
        arm.sweep = evaluator.sweep(&mut generate, self.budget.guidances)?.points;
        arm.sample_images_per_second = Some(images as f64 / f64::max(seconds, 1e-9));
        let best = arm.best().map_or(0.5, |p| p.guidance);
        let shown = arm.best().map(|p| (p.frechet.mean, p.class_accuracy.mean));
        let (frechet, accuracy) = shown.unwrap_or((f64::NAN, f64::NAN));
        progress.finish(&format!(
            "best Fréchet distance {frechet:.2} at guidance {best}, class accuracy {accuracy:.3}"
        ));
        self.pictures(&arm, &mut painter, &params, &settings(best, SAMPLING_SEEDS[0]))?;
        arm.peak_memory = self.backend.peak_bytes();
        Ok(arm)
    }

    /// A grid at the arm's best guidance, and a strip of every scale.
    fn pictures(
        &self,
        arm: &Arm,
        painter: &mut Painter<'_, B>,
        params: &B::Params,
        settings: &SampleSettings,
    ) -> anyhow::Result<()> {
        let classes = self.data.classes.len();
        let labels: Vec<u32> = (0..6 * classes).map(|i| (i % classes) as u32).collect();
        let painted = painter.paint(params, &labels, 0, settings, STRIPS)?;
        let scales = self.config.generator.schedule.len();
        let (height, width) = painter.size(scales - 1);
        let images = grid::Images { images_b3hw: &painted.images, height, width };
        let samples = self.root.path().join(arm.run.as_deref().unwrap_or("base")).join("samples");
        std::fs::create_dir_all(&samples)?;
        grid::save_grid(&samples.join("samples-at-best-guidance.png"), images, classes)?;
        let strips = painter.strips(&painted);
        grid::save_strips(&samples.join("every-scale.png"), &strips)?;
        Ok(())
    }

    fn summary(
        &self,
        start: Instant,
        trained: &Trained<B>,
        evaluator: &Evaluator<'_, B>,
        arms: Vec<Arm>,
        notes: Vec<String>,
    ) -> Summary {
        let vocab = self.config.tokenizer.vocab;
        let mut summary = Summary {
            title: "Ten glyph classes: does SAR refine a generator?".into(),
            description: format!(
                "A tokenizer and a generator were trained on 32×32 glyphs. From the generator's \
                 checkpoint two arms took {} more steps each, on the same images in the same order \
                 with the same seeds: more teacher forcing (control), and self-autoregressive \
                 refinement (preset release). Every arm was sampled at {} guidance values with {} \
                 sampling seeds.",
                self.budget.arm_steps,
                self.budget.guidances.len(),
                SAMPLING_SEEDS.len()
            ),
            data: self.data.summary.clone(),
            arms,
            floors: evaluator.floors().to_vec(),
            settings: evaluator.settings().clone(),
            tokenizer: Some(TokenizerSummary {
                steps: trained.loaded.step,
                psnr: trained.quality.scales.last().map(|s| s.psnr),
                codes_used: Some((trained.quality.codebook_used * vocab as f64).round() as usize),
                vocab: Some(vocab),
            }),
            seed: self.config.train.seed,
            seconds: Some(start.elapsed().as_secs_f64()),
            peak_memory: self.backend.peak_bytes(),
            notes,
            ..Summary::default()
        };
        summary.verdict = verdict(&summary);
        summary
    }
}

/// Folder, name, progress label and description of an arm.
fn words(role: ArmRole) -> (&'static str, &'static str, &'static str, &'static str) {
    match role {
        ArmRole::Control => (
            "control",
            "more teacher forcing",
            "control",
            "The base, trained on by teacher forcing for as many steps as the refined arm.",
        ),
        ArmRole::Refined => (
            "sar",
            "SAR, preset release",
            "refining",
            "The base, refined: a rollout of the last scale, sampled with guidance, and a \
             contrastive student-forcing loss of weight 0.01 beside teacher forcing.",
        ),
        _ => ("base", "base", "base", "Teacher forcing from initial weights."),
    }
}

/// A note where held-out loss was rising at the end: then the arms start from an overfitted base.
fn rising(outcome: &Outcome, name: &str) -> String {
    /// Half a percent: evaluations of neighbouring steps differ by less than half of it.
    const RISES: f64 = 1.005;
    let Some(Risen { step, lowest, last }) = Risen::of(&outcome.curve, RISES) else {
        return String::new();
    };
    let end = outcome.curve.last().map_or(0, |(step, _)| *step);
    format!(
        "Held-out loss of the {name} was lowest at step {step} ({lowest:.4}) and {last:.4} at step \
         {end}: the arms start from a base that had begun to overfit."
    )
}
