//! Commands about costs, correctness and the machine.

use crate::config::{Config, Mode};
use clap::{Args, Subcommand, ValueEnum};
use sar_math::ScaleSchedule;
use sar_math::rollout::Extent;
use std::path::PathBuf;

/// What a step trains, under the names of the comparison script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StepMode {
    /// Teacher forcing.
    #[default]
    Tf,
    /// SAR over all scales.
    SarAll,
    /// SAR over the last scale, with only the class token as context.
    SarLast,
}

impl StepMode {
    /// Makes a configuration train this; its other switches are kept.
    pub(crate) fn choose(self, config: &mut Config) {
        let extent = match self {
            Self::Tf => {
                config.train.mode = Mode::Teacher;
                return;
            }
            Self::SarAll => Extent::All,
            Self::SarLast => Extent::Last,
        };
        config.train.mode = Mode::Ssr;
        config.sar.extent = extent;
    }
}

/// `sar plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Configuration in TOML; flags below override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one key of the configuration; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Transformer blocks; alone, it sets width 64·depth and heads = depth, as published.
    #[arg(long)]
    pub depth: Option<usize>,
    /// Width of a token.
    #[arg(long)]
    pub width: Option<usize>,
    /// Attention heads.
    #[arg(long)]
    pub heads: Option<usize>,
    /// Codebook size; the published one is 8912.
    #[arg(long)]
    pub vocab: Option<usize>,
    /// Latent channels; the published number is 32.
    #[arg(long)]
    pub channels: Option<usize>,
    /// Classes, without the unconditional one.
    #[arg(long)]
    pub classes: Option<usize>,
    /// Grids, coarse to fine.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
    /// Images per forward pass.
    #[arg(long)]
    pub batch: Option<usize>,
    /// What a step trains; default: as the configuration, whose guidance counts either way.
    #[arg(long)]
    pub mode: Option<StepMode>,
    /// Also say how long it takes on this machine, by running a few steps and samples on noise.
    #[arg(long)]
    pub time: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// `sar doctor`.
#[derive(Clone, Debug, Default, Args)]
pub struct DoctorArgs {}

/// `sar check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Only ops whose name contains this.
    pub only: Option<String>,
    /// Random cases per op.
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub cases: u32,
    /// Seed of the cases.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What `sar bench` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchWhat {
    /// One optimiser step.
    Step,
    /// Sampling a batch of images.
    Sample,
    /// What the machine reaches: a copy's bytes and a product's FLOPs per second.
    Ceilings,
}

/// `sar bench`: the flags of the comparison script, and one JSON line with the same keys.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What to time.
    pub what: BenchWhat,
    /// What a step trains.
    #[arg(long, value_enum, default_value_t)]
    pub mode: StepMode,
    /// Transformer blocks.
    #[arg(long, default_value_t = 4)]
    pub depth: usize,
    /// Width; 0 is 64·depth.
    #[arg(long, default_value_t = 0)]
    pub width: usize,
    /// Heads; 0 is depth.
    #[arg(long, default_value_t = 0)]
    pub heads: usize,
    /// Codebook size.
    #[arg(long, default_value_t = 8912)]
    pub vocab: usize,
    /// Latent channels.
    #[arg(long, default_value_t = 32)]
    pub channels: usize,
    /// Classes.
    #[arg(long, default_value_t = 1000)]
    pub classes: usize,
    /// Grids, coarse to fine.
    #[arg(long, default_value = "1_2_3_4_5_6_8_10_13_16")]
    pub schedule: ScaleSchedule,
    /// Images of a step.
    #[arg(long, default_value_t = 4)]
    pub batch: usize,
    /// Steps that are timed.
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Steps before them.
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Print a table of the time in every kernel as well (on stderr; cuda).
    #[arg(long)]
    pub profile: bool,
}

/// `sar kernels`.
#[derive(Clone, Debug, Args)]
pub struct KernelsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KernelsCommand,
}

/// Commands on kernels.
#[derive(Clone, Debug, Subcommand)]
pub enum KernelsCommand {
    /// Compile every kernel and print what each needs.
    #[command(after_help = "Example: sar kernels build --arch sm_80,sm_90")]
    Build(KernelsBuildArgs),
}

/// `sar kernels build`.
#[derive(Clone, Debug, Args)]
pub struct KernelsBuildArgs {
    /// Architectures: sm_80 is an A100, sm_90 an H100 or H200.
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME")]
    pub arch: Vec<String>,
    /// Folder of the compiled kernels; default: where training looks for them (`SAR_CUBIN_DIR`, or
    /// the user's cache).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
