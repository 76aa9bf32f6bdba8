//! Commands on data.

use clap::{Args, Subcommand};
use std::path::PathBuf;

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
    /// Class folders, a list file, tar archives, a glyph sheet, or `builtin:glyphs10`.
    pub source: String,
    /// Where to write the preview grid.
    #[arg(long, value_name = "PNG")]
    pub preview: Option<PathBuf>,
    /// Replace the file of --preview if it exists.
    #[arg(long, requires = "preview")]
    pub force: bool,
    /// Side that images are cropped to, in pixels; default: as the data section.
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,
    /// A folder of images without classes, as with data.unlabelled=true.
    #[arg(long)]
    pub unlabelled: bool,
    /// Bad files are listed either way; with this they are no failure, and neither are class folders without images.
    #[arg(long)]
    pub skip_bad_images: bool,
}
