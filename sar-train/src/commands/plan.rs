//! `sar plan`: what a configuration costs, before it runs.

use crate::cli::{BackendName, Dtype, GlobalArgs, PlanArgs, StepMode};
use crate::config::{Config, GeneratorSection, Mode};
use crate::model::generator::{GeneratorShape, parameters};
use crate::run::memory;
use crate::train::MemoryPlan;
use sar_backend_cuda::{Driver, SCRATCH};
use sar_math::rollout::Extent;
use serde::Serialize;

/// What a step of a generator costs. FLOPs count a multiply-add as two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    pub flops_step: u64,
    /// Estimated bytes, by what they hold.
    pub memory: MemoryPlan,
}

/// Prints the plan.
///
/// # Errors
/// The configuration cannot be read or is not valid.
pub fn run(args: &PlanArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let (config, mode) = configuration(args)?;
    let storage = match global.dtype() {
        Dtype::F32 => 4,
        Dtype::Bf16 => 2,
    };
    let own = match global.backend {
        BackendName::Cpu => {
            // It would refuse what the flags ask for; so does its plan.
            crate::backend::cpu(global)?;
            0
        }
        BackendName::Cuda => (Driver::PRODUCT_SPACE + SCRATCH) as u64,
    };
    let mut plan = plan(&config, mode, storage, own);
    if global.backend == BackendName::Cpu {
        plan.memory = plan.memory.saved_from_here(&config);
    }
    if args.json {
        println!("{}", serde_json::to_string(&plan)?);
    } else {
        print!("{}", table(&config, &plan));
    }
    Ok(())
}

/// The configuration that the flags ask for.
fn configuration(args: &PlanArgs) -> anyhow::Result<(Config, StepMode)> {
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
    let mode = args.mode.unwrap_or(match (config.train.mode, config.sar.extent) {
        (Mode::Ssr, Extent::All) => StepMode::SarAll,
        (Mode::Ssr, _) => StepMode::SarLast,
        _ => StepMode::Tf,
    });
    if args.mode.is_some() {
        // The comparison script rolls out by argmax, so without guidance.
        config.sar.guidance = 0.0;
    }
    config.validate()?;
    config.tokenizer.validate()?;
    config.data.validate_side()?;
    Ok((config, mode))
}

/// FLOPs of one forward pass of one image over grids of these many tokens.
fn forward_flops(g: &GeneratorSection, grids: &[u64]) -> u64 {
    let [c, k, v, d, mlp] = [g.width, g.channels, g.vocab, g.depth, g.mlp_ratio].map(|n| n as u64);
    let tokens: u64 = grids.iter().sum();
    let mut seen = 0;
    let mut pairs = 0;
    for &grid in grids {
        seen += grid;
        pairs += grid * seen;
    }
    let block = 2 * (4 + 2 * mlp) * c * c * tokens + 4 * c * pairs + 2 * 6 * c * c;
    d * block + 2 * tokens * c * (k + v) + 2 * 2 * c * c
}

/// What one optimiser step of `config` costs when it trains `mode`, with activations of `storage`
/// bytes each, on a backend that keeps `own` bytes for itself.
pub fn plan(config: &Config, mode: StepMode, storage: u64, own: u64) -> Plan {
    let g = &config.generator;
    let train = &config.train;
    let grids: Vec<u64> = g.schedule.scales().iter().map(|s| s.tokens() as u64).collect();
    let tokens = g.schedule.tokens() as u64;
    let last = g.schedule.last().tokens() as u64;
    let student: Vec<u64> = match mode {
        StepMode::Tf => Vec::new(),
        StepMode::SarLast => vec![1, last],
        StepMode::SarAll => grids.clone(),
    };
    let student_tokens: u64 = student.iter().sum();
    let teacher = forward_flops(g, &grids);
    // Guidance doubles the teacher's forward; backward costs twice the forward.
    let guided = mode != StepMode::Tf && config.sar.guidance > 0.0;
    let per_image = 3 * teacher
        + 3 * forward_flops(g, &student) * u64::from(!student.is_empty())
        + if guided { teacher } else { 0 };
    let images = (train.batch * train.accumulate) as u64;

    let mut trained = config.clone();
    match (mode, train.mode) {
        (StepMode::Tf, Mode::Ssr) => trained.train.mode = Mode::Teacher,
        (StepMode::Tf, _) => {}
        _ => trained.train.mode = Mode::Ssr,
    }
    Plan {
        parameters: parameters(&GeneratorShape::from(g)),
        tokens,
        tokens_trained: tokens + student_tokens,
        flops_forward: teacher,
        flops_step: per_image.saturating_mul(images),
        memory: MemoryPlan::of(&trained, storage, own),
    }
}

fn table(config: &Config, plan: &Plan) -> String {
    let g = &config.generator;
    let m = &plan.memory;
    let rows = [
        ("generator", format!("depth {}, width {}, heads {}", g.depth, g.width, g.heads)),
        ("vocabulary", format!("{} codes of {} channels", g.vocab, g.channels)),
        ("schedule", format!("{}: {} tokens", g.schedule, plan.tokens)),
        ("parameters", grouped(plan.parameters)),
        ("tokens", format!("{} per image and step, all passes", plan.tokens_trained)),
        ("forward", format!("{} per image", flops(plan.flops_forward))),
        ("step", format!("{} forward and backward", flops(plan.flops_step))),
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
    rows.map(|(what, value)| format!("{what:<14} {value}\n")).collect()
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

fn flops(n: u64) -> String {
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
            let plan = plan(config, StepMode::Tf, 4, 0);
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
        let config = published(16);
        let tf = plan(&config, StepMode::Tf, 4, 0);
        assert_eq!((tf.tokens, tf.tokens_trained), (680, 680));
        let forward = tf.flops_forward;
        assert_eq!(tf.flops_step, 3 * forward * config.train.batch as u64);
        // 2 FLOPs per weight that every token meets, and attention on top.
        let matrices = 2 * 680 * (16 * 12 * 1024 * 1024 + 1024 * (8912 + 32));
        assert!(forward > matrices && forward < matrices * 11 / 10, "{forward} {matrices}");
        let release = plan(&config, StepMode::SarLast, 4, 0);
        assert_eq!(release.tokens_trained, 680 + 257);
        let all = plan(&config, StepMode::SarAll, 4, 0);
        assert_eq!(all.tokens_trained, 2 * 680);
        assert!(release.flops_step < all.flops_step && tf.flops_step < release.flops_step);
    }
}
