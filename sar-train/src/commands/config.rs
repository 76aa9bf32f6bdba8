//! `sar config`: what a run would be configured by, each key explained.

use crate::cli::ConfigArgs;
use crate::config::Config;

/// Prints a configuration as a file that `--config` takes.
///
/// # Errors
/// A configuration that cannot be used, or a key that does not exist.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = match &args.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    print!("{}", config.set(&args.set)?.explained(&args.keys)?);
    Ok(())
}
