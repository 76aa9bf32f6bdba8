//! The program's flags as typed, before they are checked against each other.
//!
//! There are few flags; everything else is in a TOML file (`--config`, `--set`). What the flags
//! mean is decided by [`crate::commands`].

mod data;
mod machine;
mod results;
mod run;
mod tokenizer;
mod usage;
mod world;

pub use data::{DataArgs, DataCheckArgs, DataCommand};
pub use machine::{
    BenchArgs, BenchWhat, CheckArgs, DoctorArgs, KernelsArgs, KernelsBuildArgs, KernelsCommand,
    PlanArgs, StepMode,
};
pub use results::{
    ConvertArgs, EditArgs, EvalArgs, OutArgs, Part, ReportArgs, SampleArgs, ScoreArgs,
};
pub(crate) use run::differences;
pub use run::{JoinArgs, Launched, RanksArgs, RefineArgs, RunArgs, SarArgs, TrainArgs};
pub use tokenizer::{
    ImagesArgs, TokenizerArgs, TokenizerCommand, TokenizerEncodeArgs, TokenizerEvalArgs,
    TokenizerTrainArgs,
};
pub(crate) use usage::{
    check_refine, check_tokenizer_train, check_train, computing, going_on, in_shell,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::PathBuf;
use world::World;

/// Train, refine, sample and measure next-scale image generators.
#[derive(Debug, Parser)]
#[command(name = "sar", version, about, arg_required_else_help = true)]
#[command(after_help = "Start with `sar demo`, which needs nothing but this program.\n\
    Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted (state saved).")]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Returns the flags of ranks, if the command has them.
    fn ranks(&mut self) -> Option<&mut RanksArgs> {
        match &mut self.command {
            Command::Train(args) => Some(&mut args.ranks),
            Command::Refine(args) => Some(&mut args.ranks),
            Command::Tokenizer(args) => match &mut args.command {
                TokenizerCommand::Train(args) => Some(&mut args.ranks),
                _ => None,
            },
            _ => None,
        }
    }

    /// Finds this process's place among the ranks of its run, and its share of the machine's threads. With
    /// --ranks-from-env, makes the command that of this process: rank 0 waits for the others, and these join it.
    ///
    /// # Errors
    /// The environment does not say which rank this is.
    fn placed(mut self) -> Result<Self, String> {
        let Some(args) = self.ranks() else { return Ok(self) };
        if !args.ranks_from_env {
            let here = args.here();
            self.global.threads = self.global.threads_of_each(here);
            return Ok(self);
        }
        let world = World::here().map_err(|wrong| format!("--ranks-from-env: {wrong}"))?;
        if world.rank > 0 {
            let (address, launch) = (world.address(), Some(world.run.clone()));
            self.command = Command::Join(JoinArgs { address, at_once: false, launch });
        } else if world.size > 1 {
            (args.ranks, args.listen) = (world.size, Some(world.listen()));
            let run = world.run.clone();
            args.launched = Some(Launched { run, here: world.local_size });
        }
        self.global.threads = self.global.threads_of_each(world.sharing);
        if self.global.backend == BackendName::Cuda {
            self.global.device = world.gpu(self.global.device);
        }
        Ok(self)
    }
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalArgs {
    /// Worker threads; 0 is one per core, shared among the ranks of a machine. Changes speed, never a result.
    #[arg(long, global = true, default_value_t = 0, value_name = "N", value_parser = threads)]
    pub threads: usize,
    /// No progress: results, notes and errors alone.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Where models run.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "NAME")]
    pub backend: BackendName,
    /// Which GPU, counted from 0.
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub device: usize,
    /// Storage of activations; default: f32 on cpu, bf16 on cuda.
    #[arg(long, global = true, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
}

impl GlobalArgs {
    /// Returns the requested storage of activations, or the backend's default.
    pub fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(match self.backend {
            BackendName::Cpu => Dtype::F32,
            BackendName::Cuda => Dtype::Bf16,
        })
    }

    /// Returns the number of threads of each of `ranks` processes on this machine; 0 leaves it to `RAYON_NUM_THREADS`, or
    /// is one per core.
    pub(crate) fn threads_of_each(&self, ranks: usize) -> usize {
        if std::env::var_os("RAYON_NUM_THREADS").is_some() {
            return self.threads;
        }
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match (self.threads, ranks) {
            (0, 2..) => (cores() / ranks).max(1),
            (threads, _) => threads,
        }
    }

    /// Returns the backend and number type as printed next to results: `cpu f32`.
    pub(crate) fn computed(&self) -> String {
        format!("{} {}", self.backend, self.dtype())
    }
}

/// Backends of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// Parses a number of threads that a machine can have.
fn threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 1024;
    let number: usize = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    if number > MOST {
        return Err(format!("expected at most {MOST}"));
    }
    Ok(number)
}

/// Parses a seed that fits into a configuration, whose integers are signed.
fn seed(text: &str) -> Result<u64, String> {
    let seed: Option<i64> = text.parse().ok();
    let seed = seed.and_then(|seed| u64::try_from(seed).ok());
    seed.ok_or_else(|| format!("expected a whole number from 0 to {}", i64::MAX))
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, refine, sample and measure on embedded images: everything below, in one go.
    #[command(after_help = "Example: sar demo --quick")]
    Demo(DemoArgs),
    /// Look at data before it is used.
    Data(DataArgs),
    /// Train, measure or use a tokenizer.
    Tokenizer(TokenizerArgs),
    /// Train a generator.
    #[command(
        after_help = "Example: sar train --data images/ --tokenizer runs/tokenizer --out runs/base"
    )]
    Train(TrainArgs),
    /// Refine a trained generator by SAR.
    #[command(
        after_help = "Example: sar refine --init-from runs/base --preset release --set train.lr=1e-4 --out runs/sar"
    )]
    Refine(RefineArgs),
    /// Take part as a rank in a run that waits for ranks: `sar train`, `sar refine` or `sar tokenizer train` with --ranks
    /// and --listen.
    #[command(
        after_help = "Example: sar join node0:29500 --backend cuda --device 1\nIt ends with the run, and takes all that \
        it needs from there but images and latents, which must be in the same place."
    )]
    Join(JoinArgs),
    /// Sample images from a generator.
    #[command(after_help = "Example: sar sample runs/sar --count 100 --guidance 0.5 --out samples")]
    Sample(SampleArgs),
    /// Draw a part of an image anew, or all its finer grids.
    #[command(
        after_help = "Examples:\n  sar edit runs/sar --image a.png --mask hole.png --classes cat --out edited\n  \
        sar edit runs/sar --image a.png --keep-scales 2 --classes cat --out varied"
    )]
    Edit(EditArgs),
    /// Compare every op with a plain f64 formula, and every gradient with central differences.
    #[command(after_help = "Example: sar check attention")]
    Check(CheckArgs),
    /// Measure a generator: Fréchet distance, precision, recall, class accuracy, with their floors.
    #[command(after_help = "Example: sar eval runs/sar --guidance 0,0.5,1")]
    Eval(EvalArgs),
    /// Measure images that any program made by what papers give: Inception Score, FID, sFID, precision, recall.
    #[command(
        after_help = "Example: sar score samples.npz --reference VIRTUAL_imagenet256_labeled.npz \
        --inception pt_inception-2015-12-05-6726825d.pth\nRuns on the CPU: two cores saw 23 images a second."
    )]
    Score(ScoreArgs),
    /// Time a step or a sampled batch; one JSON line.
    #[command(
        after_help = "Example: sar bench step --mode sar-all --depth 4 --width 256 --heads 4"
    )]
    Bench(BenchArgs),
    /// Turn published weights (.pth, .safetensors) into a file that this program uses.
    #[command(after_help = "Example: sar convert FlexVARd16-epo179.pth d16.safetensors")]
    Convert(ConvertArgs),
    /// Say what a configuration costs: parameters, tokens, FLOPs, memory.
    #[command(
        after_help = "Examples: sar plan --config recipes/imagenet256-d16.toml --mode sar-all\n          \
                            sar plan --depth 16 --vocab 8912 --channels 32 --classes 1000 --schedule 256 --batch 32"
    )]
    Plan(PlanArgs),
    /// Print the configuration with what each key is, as a file that --config takes.
    #[command(
        after_help = "Examples:\n  sar config > my.toml\n  sar config sar train.lr train.base_lr\n  \
        sar config --config recipes/imagenet256-d16.toml --set train.batch=32"
    )]
    Config(ConfigArgs),
    /// Say what this machine offers: cores, CPU features, memory, disk, backends.
    #[command(after_help = "Example: sar doctor")]
    Doctor(DoctorArgs),
    /// Compile the CUDA backend's kernels ahead; needs no GPU.
    Kernels(KernelsArgs),
    /// Write one self-contained HTML page about one or more runs.
    #[command(after_help = "Example: sar report runs/base runs/refined --out report.html")]
    Report(ReportArgs),
}

/// `sar config`.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// Sections and keys to show alone: `train`, `train.lr`. Default: all.
    #[arg(value_name = "SECTION[.KEY]")]
    pub keys: Vec<String>,
    /// Configuration in TOML to show; absent keys have their defaults and are commented out. That of a run is
    /// `config.toml` in its folder.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one key of the configuration; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `sar demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// A smaller demonstration, at most three minutes.
    #[arg(long)]
    pub quick: bool,
    /// The run folder.
    #[arg(long, value_name = "DIR", default_value = "sar-demo")]
    pub out: PathBuf,
    /// Seed of everything random.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = seed)]
    pub seed: u64,
}
