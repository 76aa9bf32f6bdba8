//! Commands on tokenizers.

use super::{RanksArgs, RunArgs};
use clap::{Args, Subcommand};
use sar_math::ScaleSchedule;
use std::path::PathBuf;

/// More views than this are taken for a typing error.
const MOST_VIEWS: u64 = 10_000;

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
    /// Write the latents of a data set, to train on, or its tokens.
    #[command(
        after_help = "Examples: sar tokenizer encode runs/tokenizer --latents --views 4 --out latents.safetensors\n          \
                            sar tokenizer encode runs/tokenizer --out tokens.safetensors"
    )]
    Encode(TokenizerEncodeArgs),
}

/// `sar tokenizer train`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerTrainArgs {
    /// Folder, configuration, resume.
    #[command(flatten)]
    pub run: RunArgs,
    /// Several processes or GPUs.
    #[command(flatten)]
    pub ranks: RanksArgs,
}

/// Which images a trained tokenizer is used on.
#[derive(Clone, Debug, Args)]
pub struct ImagesArgs {
    /// Images; default: the data of the tokenizer's run.
    #[arg(long, value_name = "SOURCE")]
    pub data: Option<String>,
    /// Side of the images in pixels; default: that of the tokenizer's run, or 32.
    #[arg(long, value_name = "PIXELS")]
    pub image_side: Option<usize>,
    /// Leave out images that cannot be read, and count them, instead of stopping.
    #[arg(long)]
    pub skip_bad_images: bool,
}

/// `sar tokenizer eval`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerEvalArgs {
    /// A run folder, a checkpoint folder or a .safetensors file.
    pub tokenizer: PathBuf,
    /// The images.
    #[command(flatten)]
    pub images: ImagesArgs,
    /// Grids to measure at, coarse to fine; default: those of the tokenizer's run.
    #[arg(long, value_name = "1_2_4_8")]
    pub schedule: Option<ScaleSchedule>,
    /// Where to write a grid of images next to their reconstructions.
    #[arg(long, value_name = "PNG")]
    pub grid: Option<PathBuf>,
    /// Take all images of a set without a val/ of its own, not only the part that would be held
    /// out.
    #[arg(long, requires = "data")]
    pub all: bool,
    /// Where to write the reconstructions of all images as an array, uint8 `[n, h, w, 3]`. With --originals, `sar score
    /// FILE --reference ORIGINALS --inception WEIGHTS` is their Fréchet distance (rFID).
    #[arg(long, value_name = "FILE")]
    pub npz: Option<PathBuf>,
    /// Where to write the images themselves, cut as they were reconstructed.
    #[arg(long, value_name = "FILE", requires = "npz")]
    pub originals: Option<PathBuf>,
    /// Replace the files of --grid, --npz and --originals if they exist.
    #[arg(long)]
    pub force: bool,
}

/// `sar tokenizer encode`.
#[derive(Clone, Debug, Args)]
pub struct TokenizerEncodeArgs {
    /// A run folder, a checkpoint folder or a .safetensors file.
    pub tokenizer: PathBuf,
    /// The images.
    #[command(flatten)]
    pub images: ImagesArgs,
    /// The file to write: `ids [images, T]`, `labels [images]`, `validation [images]`; with --latents
    /// `train [views, n, k, h, w]`, `validation [m, k, h, w]` and the labels of both.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Grids of the tokens, coarse to fine; default: those of the tokenizer's run.
    #[arg(long, value_name = "1_2_4_8", conflicts_with = "latents")]
    pub schedule: Option<ScaleSchedule>,
    /// Write latents, from which `sar train --latents FILE` trains instead of encoding the images
    /// in every epoch.
    #[arg(long)]
    pub latents: bool,
    /// Number of latents per training image: cut, mirrored and moved as in that many epochs; later
    /// epochs reuse them.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "latents", value_parser = clap::value_parser!(u64).range(1..=MOST_VIEWS))]
    pub views: u64,
    /// Seed of the cuts; default: that of the tokenizer's run for training. With the seed of the
    /// training run its first epochs are the same, bit for bit, as without --latents.
    #[arg(long, value_name = "N", requires = "latents", value_parser = super::seed)]
    pub seed: Option<u64>,
    /// Store latents in 16 bits, half the size; this changes a code now and then (on glyphs one in
    /// 2,200).
    #[arg(long, requires = "latents")]
    pub half: bool,
    /// Override one key of section `data`, such as data.flip: how training images are cut; may be
    /// repeated. Only with --latents, because tokens are always of the images cut in the middle.
    #[arg(long, value_name = "data.KEY=VALUE", requires = "latents")]
    pub set: Vec<String>,
    /// Replace the file of --out if it exists and, without --resume, what an interrupted call has left of it.
    #[arg(long)]
    pub force: bool,
    /// Go on after an interruption: until it is complete, the file of --out is called FILE.partial.
    #[arg(long)]
    pub resume: bool,
}
