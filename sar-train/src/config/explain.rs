//! Writes a configuration as TOML in which each key is explained by the documentation of its field.

use super::{
    Config, ConfigError, EvalConfig, GeneratorSection, Preset, SampleConfig, SarConfig,
    TokenizerTrainConfig, TrainConfig,
};
use crate::data::DataConfig;
use crate::model::tokenizer::TokenizerConfig;
use documented::DocumentedFields;
use toml::{Table, Value};

/// Number of characters in a line, including the comment mark.
const LINE: usize = 100;

/// A section with its documentation, and its keys with theirs, in the order of the fields.
struct Section {
    name: &'static str,
    docs: &'static str,
    keys: Vec<(&'static str, &'static str)>,
}

impl Section {
    fn of<T: DocumentedFields>(name: &'static str) -> Self {
        let docs = Config::get_field_docs(name).unwrap_or_default();
        let keys = T::FIELD_NAMES.iter().copied().zip(T::FIELD_DOCS.iter().copied()).collect();
        Self { name, docs, keys }
    }

    /// Whether any of `wanted` names the section, or this key of it.
    fn is_wanted(&self, key: &str, wanted: &[String]) -> bool {
        let named = |wanted: &String| match wanted.split_once('.') {
            Some((section, of)) => section == self.name && of == key,
            None => wanted == self.name,
        };
        wanted.is_empty() || wanted.iter().any(named)
    }

    fn key_names(&self) -> Vec<&'static str> {
        self.keys.iter().map(|(key, _)| *key).collect()
    }
}

fn sections() -> [Section; 8] {
    [
        Section::of::<DataConfig>("data"),
        Section::of::<TokenizerConfig>("tokenizer"),
        Section::of::<TokenizerTrainConfig>("tokenizer_train"),
        Section::of::<GeneratorSection>("generator"),
        Section::of::<TrainConfig>("train"),
        Section::of::<SarConfig>("sar"),
        Section::of::<SampleConfig>("sample"),
        Section::of::<EvalConfig>("eval"),
    ]
}

impl Config {
    /// Returns the configuration as TOML with explanations: the sections and keys that `wanted`
    /// names (`train`, `train.lr`), or all if it is empty; [`Config::parse`] reads all of it back
    /// equal. Keys that have their default and are not `named` are commented out, so that a file
    /// fixes no more than intended and leaves the rest to the images, the tokenizer or the run that
    /// is refined.
    ///
    /// # Errors
    /// A section or key does not exist, or TOML cannot hold a value.
    pub fn explained(&self, named: &Table, wanted: &[String]) -> Result<String, ConfigError> {
        let table = |config: &Self| {
            Table::try_from(config).map_err(|e| ConfigError::Write { reason: e.to_string() })
        };
        // The preset's values are the defaults of the keys that it stands for.
        let sar = SarConfig { preset: Preset::default(), ..SarConfig::preset(self.sar.preset) };
        let defaults = Self { sar, ..Self::default() };
        let [values, defaults] = [with_left_out(table(self)?), with_left_out(table(&defaults)?)];
        let tables = Tables { values, defaults, named };
        let sections = sections();
        for wanted in wanted {
            check(&sections, wanted)?;
        }
        let parts: Vec<String> =
            sections.iter().filter_map(|section| section.text(&tables, wanted)).collect();
        Ok(parts.join("\n"))
    }
}

impl Section {
    /// Returns the section with those of its keys that are wanted, if there are any.
    fn text(&self, tables: &Tables<'_>, wanted: &[String]) -> Option<String> {
        let keys = self.keys.iter().filter(|(key, _)| self.is_wanted(key, wanted));
        let keys: Vec<String> = keys
            .map(|(key, docs)| format!("{}{}", comment(docs), tables.line(self.name, key)))
            .collect();
        let head = format!("{}[{}]\n", comment(self.docs), self.name);
        (!keys.is_empty()).then(|| format!("{head}{}", keys.concat()))
    }
}

/// Checks that a wanted section or key exists.
fn check(sections: &[Section], wanted: &str) -> Result<(), ConfigError> {
    const PLACE: &str = "sar config";
    let (name, key) = wanted.split_once('.').map_or((wanted, None), |(s, key)| (s, Some(key)));
    let names: Vec<&str> = sections.iter().map(|section| section.name).collect();
    let section = sections.iter().find(|section| section.name == name);
    let known = section.ok_or_else(|| ConfigError::unknown(PLACE, name, &names))?.key_names();
    match key {
        Some(key) if !known.contains(&key) => Err(ConfigError::unknown(PLACE, wanted, &known)),
        _ => Ok(()),
    }
}

/// Adds the keys that files leave out if they have the value from before the setting existed.
fn with_left_out(mut table: Table) -> Table {
    let left_out: [(&str, &str, Value); 2] =
        [("generator", "positions", "grid".into()), ("tokenizer", "residual", 0.into())];
    for (section, key, value) in left_out {
        if let Some(keys) = table.get_mut(section).and_then(Value::as_table_mut) {
            keys.entry(key).or_insert(value);
        }
    }
    table
}

/// A configuration, the defaults, and the keys that the user has named.
struct Tables<'a> {
    values: Table,
    defaults: Table,
    named: &'a Table,
}

impl Tables<'_> {
    fn line(&self, section: &str, key: &str) -> String {
        let [value, default, named] = [&self.values, &self.defaults, self.named]
            .map(|table| table.get(section).and_then(|keys| keys.get(key)));
        match value {
            Some(value) if Some(value) == default && named.is_none() => {
                format!("#{key} = {value}\n")
            }
            Some(value) => format!("{key} = {value}\n"),
            None => format!("#{key} =\n"),
        }
    }
}

/// Formats documentation as lines of a comment.
fn comment(docs: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in docs.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= LINE => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_key_is_explained_and_no_other() {
        let named: Vec<&str> = sections().iter().map(|section| section.name).collect();
        assert_eq!(named, Config::FIELD_NAMES);
        for section in sections() {
            assert!(!section.docs.is_empty(), "{}", section.name);
            for (key, docs) in &section.keys {
                assert!(docs.ends_with('.'), "{}.{key}: {docs}", section.name);
                // A missing key would be reported as unknown; otherwise this value has the wrong
                // type, or is accepted.
                let text = format!("[{}]\n{key} = [[]]\n", section.name);
                let error = Config::parse(&text, "").unwrap_err().to_string();
                assert!(!error.contains("unknown key"), "{error}");
            }
        }
        // And vice versa: everything that a configuration holds is explained.
        for (name, keys) in Table::try_from(Config::default()).unwrap() {
            let section = sections().into_iter().find(|section| section.name == name).unwrap();
            for key in keys.as_table().unwrap().keys() {
                assert!(section.key_names().contains(&key.as_str()), "{name}.{key}");
            }
        }
    }

    #[test]
    fn what_is_explained_reads_back_equal() {
        let plain = Config::default().explained(&Table::new(), &[]).unwrap();
        let sets = |line: &&str| !(line.is_empty() || line.starts_with(['#', '[']));
        assert_eq!(plain.lines().find(sets), None);
        assert_eq!(Config::parse(&plain, "").unwrap(), Config::default());
        // Only optional keys have no value.
        let none: Vec<&str> =
            plain.lines().filter_map(|l| l.strip_prefix('#')?.strip_suffix(" =")).collect();
        let optional = [
            "path",
            "builtin",
            "num_classes",
            "limit",
            "latents",
            "lr",
            "weight_decay_end",
            "drop_path",
        ];
        assert_eq!(none, [&optional[..], &["schedule"]].concat());
        // The commented-out values are the actual defaults.
        let is_value = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let values: Vec<&str> = plain.lines().filter(is_value).collect();
        assert!(values.len() > 80, "{}", values.len());
        let uncommented: Vec<&str> = plain
            .lines()
            .map(|line| match is_value(&line) && !line.ends_with('=') {
                true => &line[1..],
                false => line,
            })
            .collect();
        assert_eq!(Config::parse(&uncommented.join("\n"), "").unwrap(), Config::default());
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
        let mut read = 0;
        for recipe in std::fs::read_dir(recipes).unwrap() {
            let path = recipe.unwrap().path();
            let config = Config::load(&path).unwrap();
            let named: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
            let text = config.explained(&named, &[]).unwrap();
            assert_eq!(Config::parse(&text, "").unwrap(), config, "{text}");
            // Applied to another configuration, it also has the same effect as the recipe.
            let other = Config::default().set(&["train.batch=3".into(), "sar.sigma=7".into()]);
            let over = |text: &str| other.as_ref().unwrap().clone().with_text(text, &path).unwrap();
            assert_eq!(over(&text), over(&std::fs::read_to_string(&path).unwrap()), "{text}");
            read += 1;
        }
        assert!(read > 0);
    }

    /// An absent key has the preset's value, whatever the default preset has.
    #[test]
    fn every_switch_of_every_preset_reads_back_equal() {
        let presets = [Preset::Paper, Preset::Release];
        let switches = presets.map(|p| Table::try_from(SarConfig::preset(p)).unwrap());
        let mut other = 0;
        for (name, own, others) in
            [("paper", &switches[0], &switches[1]), ("release", &switches[1], &switches[0])]
        {
            for (key, value) in others.iter().filter(|(key, _)| *key != "preset") {
                let text = value.as_str().map_or(value.to_string(), str::to_owned);
                let set = [format!("sar.preset={name}"), format!("sar.{key}={text}")];
                let config = Config::default().set(&set).unwrap();
                let said = config.explained(&Table::new(), &[]).unwrap();
                assert_eq!(Config::parse(&said, "").unwrap(), config, "{set:?}: {said}");
                other += u32::from(own[key] != *value);
            }
        }
        assert!(other > 2, "the presets differ in {other}");
    }
}
