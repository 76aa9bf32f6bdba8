//! `sar plan`: what a configuration costs, before it runs.

mod times;

pub use times::Times;

use super::room::{fits_in_memory, tokenizer_training};
use crate::backend::{with_backend, with_storage};
use crate::cli::{BackendName, GlobalArgs, PlanArgs};
use crate::config::Config;
use crate::model::generator::{Generator, GeneratorShape, parameters};
use crate::model::tokenizer::Tokenizer;
use crate::run::memory;
use crate::train::{MemoryPlan, StepCost, rehearse, rehearse_sampling};
use anyhow::Context as _;
use sar_backend_cuda::{CudaBackend, Driver, Dry, Storage};
use sar_math::backend::Buffers as _;
use serde::Serialize;

/// What a step of a generator costs. FLOPs count a multiply-add as two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Trainable parameters.
    pub parameters: u64,
    /// Tokens T of one image.
    pub tokens: u64,
    /// What a step computes.
    #[serde(flatten)]
    pub cost: StepCost,
    /// Estimated bytes, by what they hold.
    pub memory: MemoryPlan,
    /// Bytes of training the tokenizer, a run of its own; `None` of one that is not trained here.
    pub tokenizer_training: Option<u64>,
    /// Bytes of sampling, `sample.batch` images at a time; without the tokenizer where `memory` has none.
    pub sampling: u64,
    /// Measured times on this machine, if asked for with `--time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
}

/// Prints the plan.
///
/// # Errors
/// The configuration cannot be read or is not valid; with `--time`, it cannot run here.
pub fn run(args: &PlanArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let config = configuration(args)?;
    let mut plan = match global.backend {
        BackendName::Cpu => {
            // It would refuse what the flags ask for; so does its plan.
            crate::backend::cpu(global)?;
            let mut plan = Plan::of::<f32>(&config, [0, 0])?;
            plan.memory = plan.memory.saved_from_here(&config);
            // Weights that were read are let go when the backend has its own.
            plan.sampling = plan.sampling.max(2 * size_of::<f32>() as u64 * plan.parameters);
            plan
        }
        BackendName::Cuda => with_storage!(global, |S| {
            let own = scratch::<S>(&config)?.map(|bytes| Driver::PRODUCT_SPACE as u64 + bytes);
            Plan::of::<S>(&config, own)
        })?,
    };
    // One whose scales add up is read, and not trained; images that it does not divide are refused before.
    let side = config.data.image_side;
    let factor = Tokenizer::new(&config.tokenizer)?.downsample_factor();
    if config.tokenizer.residual == 0 && side >= factor && side.is_multiple_of(factor) {
        plan.tokenizer_training = Some(tokenizer_training(&config, side, global)?);
    }
    if !args.json {
        print!("{}", table(&config, &plan));
    }
    if args.time {
        // After the table, which shows what takes the memory if it does not fit.
        fits_in_memory(&config, 1, global)?;
        if !global.quiet {
            eprintln!(
                "timing a few steps and samples on noise; this takes ten seconds, or a minute if they are slow"
            );
        }
        let tokenizer = plan.tokenizer_training.is_some();
        let times = with_backend!(global, |b| Times::of(b, &config, tokenizer))?;
        if !args.json {
            print!("{}", lines(&times.rows(&config)));
        }
        plan.times = Some(times);
    }
    if args.json {
        println!("{}", serde_json::to_string(&plan)?);
    }
    Ok(())
}

/// Bytes that a GPU's backend takes for the inside of ops, in training and in sampling, by runs of which nothing is
/// computed: one block of them, as all take the same.
fn scratch<S: Storage>(config: &Config) -> anyhow::Result<[u64; 2]> {
    let backend = || CudaBackend::<S, Dry>::new(Dry::default());
    let (training, sampling) = (backend()?, backend()?);
    let shape = GeneratorShape { depth: 1, ..GeneratorShape::from(&config.generator) };
    let (generator, tokenizer) = (Generator::new(&shape)?, Tokenizer::new(&config.tokenizer)?);
    rehearse(&training, config, &generator, &tokenizer)?;
    let weights = sampling.params(generator.layout().len())?;
    rehearse_sampling(&sampling, config, &generator, &tokenizer, &weights)?;
    Ok([training, sampling].map(|backend| backend.scratch_bytes() as u64))
}

/// The configuration that the flags ask for.
fn configuration(args: &PlanArgs) -> anyhow::Result<Config> {
    let mut config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    }
    .set(&args.set)?;
    let g = &mut config.generator;
    if let Some(depth) = args.depth {
        (g.depth, g.width, g.heads) = (depth, 0, 0);
    }
    for (flag, value) in [
        (args.width, &mut g.width),
        (args.heads, &mut g.heads),
        (args.vocab, &mut g.vocab),
        (args.channels, &mut g.channels),
        (args.classes, &mut g.classes),
        (args.batch, &mut config.train.batch),
    ] {
        *value = flag.unwrap_or(*value);
    }
    g.schedule = args.schedule.unwrap_or(g.schedule);
    g.resolve();
    if let Some(mode) = args.mode {
        mode.choose(&mut config);
    }
    config.validate()?;
    config.tokenizer.validate()?;
    config.data.validate_side()?;
    Ok(config)
}

impl Plan {
    /// Counts what `config` costs with activations stored as `S`, on a backend that keeps so many bytes for itself in
    /// training and in sampling.
    fn of<S: Storage>(config: &Config, own: [u64; 2]) -> anyhow::Result<Self> {
        let cost = StepCost::of(config).context("this cannot be trained")?;
        Ok(Self {
            parameters: parameters(&GeneratorShape::from(&config.generator)),
            tokens: config.generator.schedule.tokens() as u64,
            cost,
            memory: MemoryPlan::of::<S>(config, own[0])?,
            tokenizer_training: None,
            sampling: MemoryPlan::of_sampling::<S>(config, own[1])?,
            times: None,
        })
    }
}

fn table(config: &Config, plan: &Plan) -> String {
    let g = &config.generator;
    let m = &plan.memory;
    // A schedule that is drawn has no more tokens than the generator's own, and mostly fewer.
    let at_most = if config.train.random_schedules { "at most " } else { "" };
    let rows = [
        ("generator", format!("depth {}, width {}, heads {}", g.depth, g.width, g.heads)),
        ("vocabulary", format!("{} codes of {} channels", g.vocab, g.channels)),
        ("schedule", format!("{}: {} tokens", g.schedule, plan.tokens)),
        ("parameters", grouped(plan.parameters)),
        (
            "tokens",
            format!(
                "{at_most}{} per image and step, forward and backward",
                plan.cost.tokens_trained
            ),
        ),
        ("forward", format!("{} per image", flops(plan.cost.flops_forward.into()))),
        ("step", format!("{at_most}{} forward and backward", flops(plan.cost.flops_step))),
        ("memory", format!("about {}, of which:", memory::text(m.total()))),
        ("  weights", memory::text(m.weights)),
        ("  gradients", memory::text(m.gradients)),
        ("  moments", memory::text(m.moments)),
        (
            "  activations",
            format!(
                "{}, batch {}, {} computed again",
                memory::text(m.activations),
                config.train.batch,
                config.train.recompute
            ),
        ),
        ("  logits", memory::text(m.logits)),
        ("  pictures", format!("{}, sampled while training", memory::text(m.pictures))),
        ("  tokenizer", m.tokenizer.map_or_else(|| other_codes(config), memory::text)),
    ];
    let own = ("  backend", memory::text(m.backend));
    let saving = ("  saving", format!("{}, while a checkpoint is written", memory::text(m.saving)));
    let rows = rows.iter().chain((m.backend > 0).then_some(&own));
    let rows = rows.chain((m.saving > 0).then_some(&saving));
    let training = plan.tokenizer_training.map(|bytes| {
        let (batch, side) = (config.tokenizer_train.batch, config.data.image_side);
        let about = memory::text(bytes);
        ("before it", format!("about {about} to train the tokenizer, batch {batch} of {side} px"))
    });
    let guided = if config.sample.guidance == 0.0 { "" } else { ", guided" };
    let images = config.sample.batch;
    let about = memory::text(plan.sampling);
    let without = if m.tokenizer.is_none() { ", without the tokenizer" } else { "" };
    let sampling = format!("about {about}, {images} images at a time{guided}{without}");
    let sampling = ("sampling", sampling);
    let rows = rows.chain(training.as_ref()).chain([&sampling]);
    lines(rows)
}

/// Formats the rows of a table.
fn lines<'r>(rows: impl IntoIterator<Item = &'r (&'static str, String)>) -> String {
    rows.into_iter().map(|(what, value)| format!("{what:<14} {value}\n")).collect()
}

/// Why the tokenizer's memory is not known.
fn other_codes(config: &Config) -> String {
    let t = &config.tokenizer;
    format!(
        "not counted: the configuration's has {} codes of {} channels (--set tokenizer.vocab=…)",
        t.vocab, t.latent_channels
    )
}

/// `315561936` as `315 561 936`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn flops(n: u128) -> String {
    if n >= 1_000_000_000_000 {
        format!("{:.2} TFLOP", n as f64 / 1e12)
    } else {
        format!("{:.2} GFLOP", n as f64 / 1e9)
    }
}
