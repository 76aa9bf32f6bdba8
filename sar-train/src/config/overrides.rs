//! `--set section.key=value`.

use super::error::A_WORD;
use super::{Config, ConfigError};
use toml::{Table, Value};

/// Applies one setting to `config`: the key must exist and the value have its type; ranges are not
/// checked yet.
pub(super) fn apply(config: &Config, setting: &str) -> Result<Config, ConfigError> {
    let malformed = || ConfigError::Setting { setting: setting.to_owned() };
    let (path, text) = setting.split_once('=').ok_or_else(malformed)?;
    let path: Vec<&str> = path.trim().split('.').map(str::trim).collect();
    let (&key, sections) = path.split_last().ok_or_else(malformed)?;
    if path.len() < 2 || path.iter().any(|part| part.is_empty()) {
        return Err(malformed());
    }

    let change = |value: Value| with_value(config, sections, key, Some(value), setting);
    match change(value(text)) {
        Err(ConfigError::Invalid { .. })
            if text.trim().is_empty() && is_optional(sections, key) =>
        {
            with_value(config, sections, key, None, setting)
        }
        // Digits and underscores are a number in TOML, but a schedule such as 1_2_4 is text. For a
        // word, reading it as text gives an error that lists the words allowed.
        Err(ConfigError::Invalid { reason, .. })
            if reason.contains("expected a string") || reason.contains(A_WORD) =>
        {
            change(Value::String(text.trim().to_owned()))
        }
        Err(ConfigError::Invalid { place, key, reason }) => match whole(text) {
            // 1e3 is a whole number to people.
            Some(number) if reason.contains("expected a whole number") => change(number),
            _ if reason.contains("type: string") => match text.trim().parse::<f64>() {
                // Numbers that TOML writes otherwise: `.5`, `1.`
                Ok(number) if number.abs() < MOST => change(Value::Float(number)),
                Ok(_) => {
                    let reason = "the number is too large".to_owned();
                    Err(ConfigError::Invalid { place, key, reason })
                }
                Err(_) => Err(ConfigError::Invalid { place, key, reason }),
            },
            _ => Err(ConfigError::Invalid { place, key, reason }),
        },
        changed => changed,
    }
}

/// Whole numbers up to this are exact in f64; larger numbers that TOML does not read are taken for mistakes.
const MOST: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

/// Reads a whole number that is written with a point or an exponent, of those that f64 counts exactly.
fn whole(text: &str) -> Option<Value> {
    let number: f64 = text.trim().parse().ok()?;
    let is_whole = number.fract() == 0.0 && number.abs() <= MOST;
    is_whole.then_some(Value::Integer(number as i64))
}

/// Adds to an error of all settings the last one that set its key, or else all of them.
pub(super) fn blame(error: ConfigError, settings: &[String]) -> ConfigError {
    let sets = |setting: &&String| match (&error, setting.split_once('=')) {
        (ConfigError::Value { key, .. }, Some((path, _))) => path.trim() == key,
        _ => false,
    };
    let at_fault = settings.iter().rfind(sets).cloned().unwrap_or_else(|| settings.join(" --set "));
    error.at("", &format!("--set {at_fault}"))
}

/// Whether a setting is a preset, which stands for other keys of its section.
pub(super) fn is_preset(setting: &str) -> bool {
    setting.split('=').next().is_some_and(|path| path.trim().ends_with(".preset"))
}

/// Overrides `config` with the keys of a TOML text, which has been checked to be a configuration
/// itself.
pub(super) fn overlay(config: &Config, text: &str, origin: &str) -> Result<Config, ConfigError> {
    let write = |e: toml::ser::Error| ConfigError::Write { reason: e.to_string() };
    let read = |e: toml::de::Error| ConfigError::from_toml(&e, text, origin);
    let mut root = Table::try_from(config).map_err(write)?;
    for (section, keys) in text.parse::<Table>().map_err(read)? {
        match (root.get_mut(&section).and_then(Value::as_table_mut), keys) {
            (Some(table), Value::Table(keys)) => {
                if keys.contains_key("preset") {
                    // A preset stands for all switches of its section that the text does not name.
                    table.clear();
                }
                if section == "data" && (keys.contains_key("path") || keys.contains_key("builtin"))
                {
                    // Only one of them may be set.
                    table.remove("path");
                    table.remove("builtin");
                }
                table.extend(keys);
            }
            (_, keys) => drop(root.insert(section, keys)),
        }
    }
    let mut changed: Config = root.try_into().map_err(read)?;
    changed.generator.resolve();
    changed.validate().map_err(|e| e.at(text, origin))?;
    Ok(changed)
}

/// Whether a key is optional, in which case it is absent from the defaults. Other keys have no
/// empty value, so that a forgotten value is an error.
fn is_optional(sections: &[&str], key: &str) -> bool {
    let root = Table::try_from(Config::default()).map(Value::Table).ok();
    let section = sections.iter().try_fold(root, |table, name| Some(table?.get(*name).cloned()));
    section.flatten().is_some_and(|section| section.get(key).is_none())
}

/// Sets a key to a value, or removes an optional key.
fn with_value(
    config: &Config,
    sections: &[&str],
    key: &str,
    value: Option<Value>,
    setting: &str,
) -> Result<Config, ConfigError> {
    let write = |e: toml::ser::Error| ConfigError::Write { reason: e.to_string() };
    let mut root = Table::try_from(config).map_err(write)?;
    let mut table = &mut root;
    for &section in sections {
        table = table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| ConfigError::Setting { setting: setting.to_owned() })?;
    }
    match value {
        Some(value) => drop(table.insert(key.to_owned(), value)),
        None => drop(table.remove(key)),
    }
    if sections == ["data"] && (key == "path" || key == "builtin") {
        // Only one of them may be set.
        table.remove(if key == "path" { "builtin" } else { "path" });
    }
    if key == "preset" {
        // A preset stands for all switches of its section, which the resolved table spells out.
        table.retain(|k, _| k == "preset");
    }

    let place = format!("--set {setting}");
    let path = format!("{}.{key}", sections.join("."));
    let mut changed: Config = root.try_into().map_err(|e: toml::de::Error| {
        ConfigError::from_message(e.message(), place.clone(), path)
    })?;
    changed.generator.resolve();
    Ok(changed)
}

/// Parses a TOML value; anything else is taken as text: `train.mode=ssr` needs no quotes.
fn value(text: &str) -> Value {
    let text = text.trim();
    let parsed = format!("value = {text}").parse::<Table>().ok();
    parsed
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}
