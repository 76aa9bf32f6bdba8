//! Commands on tokenizers.

use super::RunArgs;
use clap::{Args, Subcommand};
use sar_math::ScaleSchedule;
use std::path::PathBuf;

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
    /// Side of the images in pixels; default: that of the tokenizer's run, or 32.
    #[arg(long, value_name = "PIXELS")]
    pub image_side: Option<usize>,
    /// Leave out images that cannot be read, and count them, instead of stopping.
    #[arg(long)]
    pub skip_bad_images: bool,
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
    /// Side of the images in pixels; default: that of the tokenizer's run, or 32.
    #[arg(long, value_name = "PIXELS")]
    pub image_side: Option<usize>,
    /// Leave out images that cannot be read, and count them, instead of stopping.
    #[arg(long)]
    pub skip_bad_images: bool,
    /// Replace the file of --out where it exists.
    #[arg(long)]
    pub force: bool,
}
