//! `sar config`: the configuration that a run would have, with each key explained.

use crate::cli::ConfigArgs;
use crate::config::{self, Config};
use toml::{Table, Value};

/// Prints a configuration as a file that `--config` takes.
///
/// # Errors
/// A configuration cannot be used, or a key does not exist.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    // A pipe can be read only once.
    let text = args.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
    let origin = args.config.as_deref().map_or(String::new(), |path| path.display().to_string());
    let config = Config::parse(&text, &origin)?.set(&args.set)?;
    let mut named: Table = text.parse().unwrap_or_default();
    for setting in &args.set {
        let key = setting.split('=').next().and_then(|path| path.split_once('.'));
        let Some((section, key)) = key else { continue };
        let keys = named.entry(section.trim()).or_insert_with(|| Value::Table(Table::new()));
        if let Some(keys) = keys.as_table_mut() {
            keys.insert(key.trim().to_owned(), Value::Boolean(true));
        }
    }
    print!("{}", config.explained(&named, &args.keys)?);
    Ok(())
}
