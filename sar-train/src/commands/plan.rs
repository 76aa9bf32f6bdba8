//! `sar plan`: what a configuration costs, before it runs.

mod times;

pub use times::Times;

use super::room::{fits_in_memory, tokenizer_training};
use crate::backend::with_backend;
use crate::cli::{BackendName, Dtype, GlobalArgs, PlanArgs};
use crate::config::{Config, GeneratorSection};
use crate::model::generator::{Generator, GeneratorShape, parameters};
use crate::model::tokenizer::Tokenizer;
use crate::run::memory;
use crate::train::{MemoryPlan, StepSettings, rehearse, rehearse_sampling};
use anyhow::Context as _;
use sar_backend_cuda::{CudaBackend, Driver, Dry, Storage, bf16};
use sar_math::ScaleSchedule;
use sar_math::guidance::Guidance;
use sar_math::rollout::{self, Extent, Method, Pass, Rollout, StudentTarget};
use serde::Serialize;

/// What a step of a generator costs. FLOPs count a multiply-add as two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Trainable parameters.
    pub parameters: u64,
    /// Tokens T of one image.
    pub tokens: u64,
    /// Tokens that a training step runs forward and backward per image, all passes together.
    pub tokens_trained: u64,
    /// FLOPs of one teacher-forced forward pass of one image.
    pub flops_forward: u64,
    /// FLOPs of one optimiser step: all passes, forward and backward, of all its images.
    pub flops_step: u128,
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
    let storage = match global.dtype() {
        Dtype::F32 => 4,
        Dtype::Bf16 => 2,
    };
    let mut plan = match global.backend {
        BackendName::Cpu => {
            // It would refuse what the flags ask for; so does its plan.
            crate::backend::cpu(global)?;
            let mut plan = plan(&config, storage, 0)?;
            plan.memory = plan.memory.saved_from_here(&config);
            // Weights that were read are let go when the backend has its own.
            plan.sampling = plan.sampling.max(2 * storage * plan.parameters);
            plan
        }
        BackendName::Cuda => {
            let [training, sampling] = scratch(&config, global.dtype())?;
            let products = Driver::PRODUCT_SPACE as u64;
            let mut plan = plan(&config, storage, products + training)?;
            plan.sampling += products + sampling;
            plan
        }
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
fn scratch(config: &Config, dtype: Dtype) -> anyhow::Result<[u64; 2]> {
    fn of<S: Storage>(config: &Config) -> anyhow::Result<[u64; 2]> {
        let backend = || CudaBackend::<S, Dry>::new(Dry::default());
        let (training, sampling) = (backend()?, backend()?);
        let shape = GeneratorShape { depth: 1, ..GeneratorShape::from(&config.generator) };
        let (generator, tokenizer) = (Generator::new(&shape)?, Tokenizer::new(&config.tokenizer)?);
        rehearse(&training, config, &generator, &tokenizer)?;
        rehearse_sampling(&sampling, config, &generator, &tokenizer)?;
        Ok([training, sampling].map(|backend| backend.scratch_bytes() as u64))
    }
    match dtype {
        Dtype::F32 => of::<f32>(config),
        Dtype::Bf16 => of::<bf16>(config),
    }
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

/// FLOPs of one forward pass of one image over some scales of a schedule, from the first.
fn forward_flops(g: &GeneratorSection, schedule: &ScaleSchedule, scales: usize) -> u64 {
    let [c, k, v, d, mlp] = [g.width, g.channels, g.vocab, g.depth, g.mlp_ratio].map(|n| n as u64);
    let (mut tokens, mut pairs) = (0, 0);
    for scale in schedule.scales().iter().take(scales) {
        let grid = scale.tokens() as u64;
        tokens += grid;
        pairs += grid * tokens;
    }
    let block = 2 * (4 + 2 * mlp) * c * c * tokens + 4 * c * pairs + 2 * 6 * c * c;
    d * block + 2 * tokens * c * (k + v) + 2 * 2 * c * c
}

/// The steps that training takes in turn: one, or where a random transition is rolled out one for each.
fn steps(config: &Config) -> anyhow::Result<Vec<rollout::Plan>> {
    let (method, schedule) = (config.train.method(&config.sar), &config.generator.schedule);
    let plan = rollout::Plan::new(method, StudentTarget::TeacherHard, schedule, 0, 0)
        .context("this cannot be trained")?;
    Ok(match method {
        Method::Sar(Extent::Random) => (1..schedule.len())
            .filter_map(|scale| schedule.staggered(scale))
            .map(|schedule| rollout::Plan { second: Some(Pass { schedule, ..plan.first }), ..plan })
            .collect(),
        _ => vec![plan],
    })
}

/// What one optimiser step of `config` costs, the mean where steps differ, with activations of
/// `storage` bytes each, on a backend that keeps `own` bytes for itself.
///
/// # Errors
/// A schedule that the way of training cannot use.
pub fn plan(config: &Config, storage: u64, own: u64) -> anyhow::Result<Plan> {
    let g = &config.generator;
    let train = &config.train;
    let guided = StepSettings::of(config).guidance() != Guidance::Off;
    let whole = |schedule: &ScaleSchedule| forward_flops(g, schedule, schedule.len());
    let steps = steps(config)?;
    let (mut flops, mut tokens_trained) = (0, 0);
    for step in &steps {
        // Backward costs twice the forward; guidance doubles the teacher's forward alone.
        let teacher = whole(&step.first.schedule);
        flops += 3 * teacher + if guided { teacher } else { 0 };
        tokens_trained += step.first.schedule.tokens() as u64;
        if let Some(student) = step.second {
            flops += 3 * whole(&student.schedule);
            tokens_trained += student.schedule.tokens() as u64;
        }
        if let Rollout::ScaleByScale { scales } = step.rollout {
            flops += forward_flops(g, &step.first.schedule, scales);
        }
    }
    let count = steps.len() as u64;
    let images = (train.batch * train.accumulate) as u64;
    Ok(Plan {
        parameters: parameters(&GeneratorShape::from(g)),
        tokens: g.schedule.tokens() as u64,
        tokens_trained: tokens_trained / count,
        flops_forward: whole(&g.schedule),
        flops_step: u128::from(flops / count) * u128::from(images),
        memory: MemoryPlan::of(config, storage, own),
        tokenizer_training: None,
        sampling: MemoryPlan::of_sampling(config, storage, 0),
        times: None,
    })
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
            format!("{at_most}{} per image and step, forward and backward", plan.tokens_trained),
        ),
        ("forward", format!("{} per image", flops(plan.flops_forward.into()))),
        ("step", format!("{at_most}{} forward and backward", flops(plan.flops_step))),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use sar_math::ScaleSchedule;

    fn published(depth: usize) -> Config {
        let mut config = Config::default();
        config.generator = GeneratorSection {
            depth,
            width: 64 * depth,
            heads: depth,
            vocab: 8912,
            channels: 32,
            classes: 1000,
            schedule: ScaleSchedule::published_256(),
            ..config.generator
        };
        config
    }

    #[test]
    fn parameters_are_those_of_the_released_checkpoints() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/checkpoint_shapes.json");
        let shapes: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for depth in [16, 20, 24] {
            let released = shapes[format!("FlexVAR-d{depth}:parameters")].as_u64().unwrap();
            assert_eq!(
                parameters(&GeneratorShape::from(&published(depth).generator)),
                released,
                "d{depth}"
            );
        }
    }

    #[test]
    fn a_checkpoint_is_written_from_copies() {
        let mut config = published(16);
        let saving = |config: &Config| {
            let plan = plan(config, 4, 0).unwrap();
            let saved = plan.memory.clone().saved_from_here(config);
            assert_eq!(saved.total(), plan.memory.total() + saved.saving);
            saved.saving / plan.parameters
        };
        config.train.ema = 0.0;
        assert_eq!(saving(&config), 12, "weights and two moments");
        config.train.ema = 0.999;
        assert_eq!(saving(&config), 16, "and the average");
    }

    #[test]
    fn passes_add_up() {
        let mut config = published(16);
        let (images, all) = (config.train.batch as u64, ScaleSchedule::published_256());
        let mut of = |mode: &str, extent, guidance| {
            config.train.mode = mode.parse().unwrap();
            (config.sar.extent, config.sar.guidance) = (extent, guidance);
            plan(&config, 4, 0).unwrap()
        };
        let tf = of("teacher", Extent::All, 1.2);
        assert_eq!((tf.tokens, tf.tokens_trained), (680, 680));
        let forward = tf.flops_forward;
        assert_eq!(tf.flops_step, u128::from(3 * forward * images));
        // 2 FLOPs per weight that every token meets, and attention on top.
        let matrices = 2 * 680 * (16 * 12 * 1024 * 1024 + 1024 * (8912 + 32));
        assert!(forward > matrices && forward < matrices * 11 / 10, "{forward} {matrices}");

        let last = of("ssr", Extent::Last, 0.0);
        assert_eq!(last.tokens_trained, 680 + 257);
        let both = of("ssr", Extent::All, 0.0);
        assert_eq!(
            (both.tokens_trained, both.flops_step),
            (2 * 680, u128::from(6 * forward * images))
        );
        assert_eq!(of("ssr", Extent::All, 1.2).flops_step, u128::from(7 * forward * images));
        // One of nine transitions a step, with the class token each.
        let random = of("ssr", Extent::Random, 0.0);
        assert_eq!(random.tokens_trained, 680 + (679 + 9) / 9);
        assert!(random.flops_step < last.flops_step && tf.flops_step < random.flops_step);
        // Own samples up to the scale before the last, scale by scale, then a pass.
        let own = of("student", Extent::All, 1.2);
        let g = published(16).generator;
        let flops = (3 * forward + forward_flops(&g, &all, 9)) * images;
        assert_eq!(own.flops_step, flops.into());
        assert_eq!(own.tokens_trained, 680);
    }

    #[test]
    fn what_cannot_be_trained_has_no_plan() {
        let mut config = published(16);
        config.generator.schedule = "1".parse().unwrap();
        config.train.mode = "ssr".parse().unwrap();
        let error = format!("{:#}", plan(&config, 4, 0).unwrap_err());
        assert!(error.contains("the schedule has 1 scale"), "{error}");
    }
}
