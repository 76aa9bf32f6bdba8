//! The program's flags as they are typed, before any is checked against another.
//!
//! Few flags, and a TOML file for the rest (`--config`, `--set`); what they mean is decided by
//! [`crate::commands`].

use crate::config::{Config, ConfigError, Decode, Mode, Preset, Ramp};
use clap::{Args, Parser, Subcommand, ValueEnum};
use sar_math::ScaleSchedule;
use sar_math::rollout::{Extent, StudentTarget};
use std::fmt;
use std::path::PathBuf;

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

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// Worker threads; 0 is one per core. Changes speed, never a result.
    #[arg(long, global = true, default_value_t = 0, value_name = "N", value_parser = threads)]
    pub threads: usize,
    /// No progress, only results and errors.
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
    /// The storage of activations asked for, or the backend's own.
    pub fn dtype(&self) -> Dtype {
        self.dtype.unwrap_or(match self.backend {
            BackendName::Cpu => Dtype::F32,
            BackendName::Cuda => Dtype::Bf16,
        })
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

/// A number of threads that a machine can have.
fn threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 1024;
    let number: usize = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    if number > MOST {
        return Err(format!("expected at most {MOST}"));
    }
    Ok(number)
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
        after_help = "Example: sar refine --init-from runs/base --preset release --out runs/sar"
    )]
    Refine(RefineArgs),
    /// Sample images from a generator.
    #[command(after_help = "Example: sar sample runs/sar --count 100 --guidance 0.5 --out samples")]
    Sample(SampleArgs),
    /// Compare every op with a plain f64 formula, and every gradient with central differences.
    #[command(after_help = "Example: sar check attention")]
    Check(CheckArgs),
    /// Measure a generator: Fréchet distance, precision, recall, class accuracy, beside their floors.
    #[command(after_help = "Example: sar eval runs/sar --guidance 0,0.5,1")]
    Eval(EvalArgs),
    /// Time a step or a sampled batch; one JSON line.
    #[command(
        after_help = "Example: sar bench step --mode sar-all --depth 4 --width 256 --heads 4"
    )]
    Bench(BenchArgs),
    /// Turn published weights (.pth, .safetensors) into a file that this program uses.
    #[command(after_help = "Example: sar convert FlexVARd16-epo179.pth d16.safetensors")]
    Convert(ConvertArgs),
    /// Say what a configuration costs: parameters, tokens, FLOPs, memory.
    #[command(after_help = "Example: sar plan --depth 16 --batch 32 --mode sar-all")]
    Plan(PlanArgs),
    /// Say what this machine offers: cores, CPU features, memory, disk, backends.
    #[command(after_help = "Example: sar doctor")]
    Doctor(DoctorArgs),
    /// Compile the CUDA backend's kernels ahead; needs no GPU.
    Kernels(KernelsArgs),
    /// Write one self-contained HTML page about one or more runs.
    #[command(after_help = "Example: sar report runs/base runs/refined --out report.html")]
    Report(ReportArgs),
}

/// Flags of every command that makes or continues a run folder.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Configuration in TOML; absent keys have their defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override one key of the configuration; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// The run folder; must be new or empty unless --resume is given.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue the run in --out from its last checkpoint, bit for bit.
    #[arg(long, conflicts_with_all = ["config", "set", "data", "seed", "init_from"])]
    pub resume: bool,
    /// Images: class folders, a list file, a glyph sheet or `builtin:glyphs10`.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Start from these weights: a run folder, a checkpoint folder or a .safetensors file.
    #[arg(long, value_name = "PATH")]
    pub init_from: Option<PathBuf>,
    /// Seed of everything random; overrides the configuration.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Leave out images that cannot be read, and count them, instead of stopping.
    #[arg(long, conflicts_with = "resume")]
    pub skip_bad_images: bool,
}

impl RunArgs {
    /// The configuration of a new run: the file, or `base` without one, then the flags.
    ///
    /// # Errors
    /// The file or a `--set` cannot be used.
    pub fn config(&self, base: Config) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => base,
        };
        if let Some(source) = &self.data {
            config.data = config.data.with_source(source);
        }
        config = config.set(&self.set)?;
        config.data.skip_bad_images |= self.skip_bad_images;
        if let Some(seed) = self.seed {
            (config.train.seed, config.tokenizer_train.seed) = (seed, seed);
        }
        Ok(config)
    }

    /// Whether the user asked for a value of `section.key`, in the file or by `--set`.
    pub(crate) fn names(&self, section: &str, key: &str) -> bool {
        let of = |table: &toml::Table| table.get(section).is_some_and(|s| s.get(key).is_some());
        let file = self.config.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let setting = |set: &String| {
            let name = set.split('=').next().unwrap_or_default();
            name.split('.').map(str::trim).eq([section, key])
        };
        file.and_then(|text| text.parse().ok()).is_some_and(|table| of(&table))
            || self.set.iter().any(setting)
    }
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
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// `sar data`.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// Commands on data.
#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Read every image: counts by class, bad files, a preview grid.
    #[command(after_help = "Example: sar data check images/ --preview preview.png")]
    Check(DataCheckArgs),
}

/// `sar data check`.
#[derive(Clone, Debug, Args)]
pub struct DataCheckArgs {
    /// Class folders, a list file, a glyph sheet, or `builtin:glyphs10`.
    pub source: String,
    /// Where to write the preview grid.
    #[arg(long, value_name = "PNG")]
    pub preview: Option<PathBuf>,
    /// Side that images are cropped to, in pixels; default: as the data section.
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,
    /// Bad files are listed either way; with this they are no failure.
    #[arg(long)]
    pub skip_bad_images: bool,
}

/// `sar tokenizer`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenizerCommand,
}

/// Commands on tokenizers.
#[derive(Clone, Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once per process
pub enum TokenizerCommand {
    /// Train a tokenizer.
    #[command(after_help = "Example: sar tokenizer train --data images/ --out runs/tokenizer")]
    Train(TokenizerTrainArgs),
    /// Measure its reconstructions and codebook use on held-out images.
    #[command(after_help = "Example: sar tokenizer eval runs/tokenizer")]
    Eval(TokenizerEvalArgs),
    /// Write the tokens of a data set.
    #[command(after_help = "Example: sar tokenizer encode runs/tokenizer --out tokens.safetensors")]
    Encode(TokenizerEncodeArgs),
}

/// `sar tokenizer train`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerTrainArgs {
    /// Folder, configuration, resume.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `sar tokenizer eval`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerEvalArgs {
    /// A run folder, a checkpoint folder or a .safetensors file.
    pub tokenizer: PathBuf,
    /// Images; default: the data of the tokenizer's run.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Where to write a grid of images beside their reconstructions.
    #[arg(long, value_name = "PNG")]
    pub grid: Option<PathBuf>,
}

/// `sar tokenizer encode`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerEncodeArgs {
    /// A run folder, a checkpoint folder or a .safetensors file.
    pub tokenizer: PathBuf,
    /// Images; default: the data of the tokenizer's run.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// The file to write: `ids [images, T]`, `labels [images]`, `validation [images]`.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Grids, coarse to fine; default: those of the tokenizer's run.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
}

/// `sar train`.
#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    /// Folder, configuration, resume.
    #[command(flatten)]
    pub run: RunArgs,
    /// The trained tokenizer: a run folder, a checkpoint folder or a .safetensors file.
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "resume",
        conflicts_with = "resume"
    )]
    pub tokenizer: Option<PathBuf>,
    /// Way of training: teacher, ssr, student, hybrid:N, interleaved; overrides train.mode.
    #[arg(long, conflicts_with = "resume")]
    pub mode: Option<Mode>,
}

/// `sar refine`.
#[derive(Clone, Debug, Args)]
pub struct RefineArgs {
    /// Folder, configuration, resume; `--init-from` names the trained generator.
    #[command(flatten)]
    pub run: RunArgs,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    pub tokenizer: Option<PathBuf>,
    /// The switches of SAR.
    #[command(flatten)]
    pub sar: SarArgs,
}

/// The switches of SAR; each overrides the preset.
#[derive(Clone, Debug, Default, Args)]
pub struct SarArgs {
    /// All switches at once; default: release.
    #[arg(long, conflicts_with = "resume")]
    pub preset: Option<Preset>,
    /// Which transitions the rollout staggers: all, last or random.
    #[arg(long, conflicts_with = "resume")]
    pub extent: Option<Extent>,
    /// What the student is pulled towards: teacher-hard, teacher-soft or ground-truth.
    #[arg(long, conflicts_with = "resume")]
    pub target: Option<StudentTarget>,
    /// How tokens are chosen from the teacher pass.
    #[arg(long, conflicts_with = "resume")]
    pub decode: Option<Decode>,
    /// Rollout filter: keep the k most likely; 0 is off.
    #[arg(long, value_name = "K", conflicts_with = "resume")]
    pub top_k: Option<usize>,
    /// Rollout filter: keep this cumulative probability; 0 is off.
    #[arg(long, value_name = "P", conflicts_with = "resume")]
    pub top_p: Option<f64>,
    /// Rollout guidance; 0 is off.
    #[arg(long, value_name = "G", conflicts_with = "resume")]
    pub guidance: Option<f64>,
    /// Weight of the contrastive loss.
    #[arg(long, conflicts_with = "resume")]
    pub sigma: Option<f64>,
}

/// `sar sample`.
#[derive(Clone, Debug, Args)]
pub struct SampleArgs {
    /// The generator: a run folder, a checkpoint folder or a .safetensors file.
    pub generator: PathBuf,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Folder for the images.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Classes to sample, by index, in turn; default: all.
    #[arg(long, value_delimiter = ',', value_name = "0,1,…")]
    pub classes: Vec<u32>,
    /// Images.
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Images at once; never changes them.
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Guidance; 0 is off.
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// How guidance grows over the scales.
    #[arg(long)]
    pub ramp: Option<Ramp>,
    /// Keep the k most likely tokens; 0 is off, 1 is greedy.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep this cumulative probability; 0 is off.
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Grids to sample in; default: the generator's.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
    /// Seed: image k of a seed is always the same.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Greedy on grids outside the published sampler's fixed list, as that is.
    #[arg(long)]
    pub published_greedy: bool,
    /// Sample from the running average of the weights, where the checkpoint has one.
    #[arg(long)]
    pub ema: bool,
}

/// `sar eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    /// The generator: a run folder, a checkpoint folder or a .safetensors file.
    pub generator: PathBuf,
    /// The tokenizer; default: the one of the generator's run.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Images to compare with; default: the data of the generator's run.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Guidance values to sweep.
    #[arg(long, value_delimiter = ',', value_name = "G,…", allow_negative_numbers = true)]
    pub guidance: Vec<f64>,
    /// Samples per guidance value and sampling seed.
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Sampling seeds; their spread is reported.
    #[arg(long, value_name = "N")]
    pub seeds: Option<u64>,
    /// Where to write the numbers as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Evaluate the running average of the weights, where the checkpoint has one.
    #[arg(long)]
    pub ema: bool,
}

/// `sar convert`.
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// A published `.pth` file, or a `.safetensors` file.
    pub from: PathBuf,
    /// The `.safetensors` file to write.
    pub to: PathBuf,
    /// Replace the target where it exists.
    #[arg(long)]
    pub force: bool,
}

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
    /// What a step trains; default: as the configuration.
    #[arg(long)]
    pub mode: Option<StepMode>,
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

/// `sar report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Run folders to show side by side.
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// The HTML file; default: `report.html` in the first run folder.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
