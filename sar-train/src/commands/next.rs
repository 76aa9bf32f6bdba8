//! What to type next: a command that succeeds says how to use what it made.

use crate::cli::{GlobalArgs, computing, differences, in_shell};
use crate::config::{Config, GeneratorSection};
use crate::data::DataConfig;
use std::path::{Path, PathBuf};

/// The command that trains a tokenizer on the images of a section.
pub(super) fn tokenizer_train(data: &DataConfig) -> String {
    let source = source(data);
    format!("sar tokenizer train --data {source}{} --out runs/tokenizer", settings(data))
}

/// The command that trains a generator with the tokenizer in a run's folder, on the images of its configuration.
pub(super) fn train(config: &Config, tokenizer: &Path, global: &GlobalArgs) -> String {
    let schedule = config.generator.schedule;
    let grids = match schedule == GeneratorSection::default().schedule {
        true => String::new(),
        false => format!(" --set generator.schedule={schedule}"),
    };
    format!(
        "sar train --data {}{}{grids} --tokenizer {} --out {}{}",
        source(&config.data),
        settings(&config.data),
        in_shell(tokenizer),
        in_shell(&base(tokenizer)),
        computing(global)
    )
}

/// A folder for a generator, next to its tokenizer's.
fn base(tokenizer: &Path) -> PathBuf {
    let beside = tokenizer.with_file_name("base");
    if beside == tokenizer { tokenizer.with_file_name("generator") } else { beside }
}

/// How --data names the images of a section.
fn named(data: &DataConfig) -> String {
    match (&data.path, &data.builtin) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(name)) => format!("builtin:{name}"),
        (None, None) => "…".to_owned(),
    }
}

fn source(data: &DataConfig) -> String {
    in_shell(named(data).as_ref())
}

/// The keys of a section that --data does not set, as they are typed, each with a space before it.
fn settings(data: &DataConfig) -> String {
    let table = |data: &DataConfig| toml::Table::try_from(data).unwrap_or_default();
    let (brought, has) = (table(&DataConfig::from_argument(&named(data))), table(data));
    let others = differences(&brought, &has).into_iter();
    let others = others.filter(|(key, ..)| !["path", "builtin"].contains(&key.as_str()));
    let typed = others.map(|(key, _, is)| {
        let value = if has.contains_key(&key) { is.trim_matches('"') } else { "" };
        format!(" --set {}", in_shell(format!("data.{key}={value}").as_ref()))
    });
    typed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_what_is_not_as_it_is_without() {
        let images = DataConfig::from_argument("My pictures");
        let command = tokenizer_train(&DataConfig { image_side: 64, unlabelled: true, ..images });
        let expected = "sar tokenizer train --data 'My pictures' --set data.image_side=64 --set \
                        data.unlabelled=true --out runs/tokenizer";
        assert_eq!(command, expected);
        let mut config = Config { data: DataConfig::glyphs10(), ..Config::default() };
        let of = |config: &Config| train(config, Path::new("runs/tok"), &GlobalArgs::default());
        let plain = "sar train --data builtin:glyphs10 --tokenizer runs/tok --out runs/base";
        assert_eq!(of(&config), plain);
        let same = train(&config, Path::new("runs/base"), &GlobalArgs::default());
        assert!(same.ends_with("--out runs/generator"), "{same}");
        config.data.limit = Some(3);
        assert!(of(&config).contains("glyphs10 --set data.limit=3 --tokenizer"));
    }
}
