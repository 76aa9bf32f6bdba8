//! Errors of a configuration, with the key and line at fault.

use super::Config;
use std::ops::Range;
use std::path::{Path, PathBuf};
use strsim::levenshtein;
use toml::{Table, Value};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The text is not TOML, or a value has the wrong type.
    #[error("{place}: {}{reason}", named(key))]
    Invalid {
        /// File and line, or the `--set` argument.
        place: String,
        /// The key, if known.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// File and line, or the `--set` argument.
        place: String,
        /// The key, with its section.
        key: String,
        /// The nearest keys, or all of the section.
        hint: String,
    },
    /// A value out of range.
    #[error("{place}{key} is {found}, expected {expected}")]
    Value {
        /// File and line with a colon, or empty if the value came from elsewhere.
        place: String,
        /// The key, with its section.
        key: String,
        /// The value.
        found: String,
        /// The values allowed.
        expected: String,
    },
    /// A `--set` argument that is not `section.key=value`.
    #[error("--set {setting}: expected section.key=value, such as train.steps=100")]
    Setting {
        /// The argument.
        setting: String,
    },
    /// The configuration cannot be written as TOML.
    #[error("cannot write the configuration as TOML: {reason}")]
    Write {
        /// The cause.
        reason: String,
    },
}

/// Keys of `[train]` that also apply to the training of a tokenizer.
pub(crate) const FOR_TOKENIZERS: [&str; 5] =
    ["keep", "log_every", "save_every", "save_minutes", "non_finite_limit"];

/// Replacement for several messages of the TOML reader that do not help, about enums.
pub(super) const A_WORD: &str = "expected a word in quotes";

/// Replaces the reader's names of types by words.
fn in_words(message: &str) -> String {
    let words = [
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected usize", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list, as [0, 1]"),
        ("expected a boolean", "expected true or false"),
        ("wanted string or table", A_WORD),
        ("invalid type: unit variant, expected string only", A_WORD),
        ("wanted exactly 1 element, found 0 elements", A_WORD),
    ];
    let message = match message.split_once("expected struct ") {
        Some((found, _)) => format!("{found}expected a section of keys"),
        None => message.replace('\n', ", "),
    };
    words.iter().fold(message, |text, (name, words)| text.replace(name, words))
}

fn named(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

impl ConfigError {
    /// Adds the file to an error of a value, if it does not say where the value came from.
    pub(crate) fn within(mut self, file: &Path) -> Self {
        if let Self::Value { place, .. } = &mut self
            && place.is_empty()
        {
            *place = format!("{}: ", file.display());
        }
        self
    }

    /// Converts an error of the TOML reader for `text`, which came from `origin`.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str, origin: &str) -> Self {
        let (line, key) = error.span().map_or((1, String::new()), |span| locate(text, &span));
        Self::from_message(error.message(), format!("{origin}, line {line}"), key)
    }

    /// Converts the TOML reader's message about the value of `key`.
    pub(super) fn from_message(message: &str, place: String, key: String) -> Self {
        let message = message.trim();
        let Some(unknown) =
            message.strip_prefix("unknown field `").and_then(|m| m.split('`').next())
        else {
            return Self::Invalid { place, key, reason: in_words(message) };
        };
        let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
        let path: Vec<&str> = key.split('.').filter(|part| !part.is_empty()).collect();
        let hint = hint(unknown, path.last().copied().unwrap_or(unknown), &known);
        let (section, hint) = match path.iter().position(|&part| part == unknown) {
            // The section's name was written as two words with a dot between them.
            Some(1) if path.len() == 3 && path[..2] == ["tokenizer", "train"] => {
                (&path[..1], format!("did you mean `tokenizer_train.{}`?", path[2]))
            }
            Some(1) if path[0] == "tokenizer_train" && FOR_TOKENIZERS.contains(&unknown) => (
                &path[..1],
                format!("did you mean `train.{unknown}`, which holds for tokenizers too?"),
            ),
            Some(at) => (&path[..at], hint),
            None => (&path[..], hint),
        };
        let key: Vec<&str> = section.iter().copied().chain([unknown]).collect();
        Self::UnknownKey { place, key: key.join("."), hint }
    }

    /// Creates the error for an unknown section or key, where `known` are the existing ones.
    pub(super) fn unknown(place: &str, key: &str, known: &[&str]) -> Self {
        let last = key.rsplit('.').next().unwrap_or(key);
        Self::UnknownKey {
            place: place.to_owned(),
            key: key.to_owned(),
            hint: hint(last, last, known),
        }
    }

    /// Adds the line of `text` that sets the error's key, if there is one.
    pub(super) fn at(self, text: &str, origin: &str) -> Self {
        match self {
            Self::Value { key, found, expected, .. } => {
                let place = match line_of(text, &key) {
                    Some(line) => format!("{origin}, line {line}: "),
                    None => format!("{origin}: "),
                };
                Self::Value { place, key, found, expected }
            }
            other => other,
        }
    }
}

/// Suggests what an unknown name may mean, or lists all known ones; `key` may be one of another
/// section.
fn hint(unknown: &str, key: &str, known: &[&str]) -> String {
    // Every name contains the empty string.
    let named = Some(unknown).filter(|unknown| !unknown.is_empty());
    named
        .and_then(|unknown| near(unknown, known))
        .or_else(|| elsewhere(key))
        .unwrap_or_else(|| format!("known here: {}", quoted(known.iter().copied())))
}

/// Names that other programs have for keys of this one.
const CALLED: [(&str, &str); 4] =
    [("learning_rate", "lr"), ("epochs", "steps"), ("iterations", "steps"), ("wd", "weight_decay")];

/// Suggests the keys close to `unknown` ("did you mean"), if there are any.
fn near(unknown: &str, known: &[&str]) -> Option<String> {
    let unknown = unknown.to_lowercase();
    let called = CALLED.iter().find(|(name, key)| unknown == *name && known.contains(key));
    if let Some((_, key)) = called {
        return Some(format!("did you mean `{key}`?"));
    }
    let unknown = unknown.as_str();
    let mut near: Vec<(usize, &str)> = known
        .iter()
        .map(|&k| (levenshtein(unknown, k), k))
        .filter(|&(d, k)| {
            let close = d <= 1 + unknown.len().min(k.len()) / 3;
            close || k.contains(unknown) || (k.len() > 3 && unknown.contains(k))
        })
        .collect();
    near.sort_unstable();
    let listed = quoted(near.iter().take(3).map(|&(_, k)| k));
    (!near.is_empty()).then(|| format!("did you mean {listed}?"))
}

/// Suggests the same key in other sections ("did you mean"), if they have it.
fn elsewhere(key: &str) -> Option<String> {
    let sections = Table::try_from(Config::default()).unwrap_or_default();
    let has = |section: &&String| {
        // The value may be wrong, but only a missing key is reported as unknown.
        let keys = Table::from_iter([(key.to_owned(), Value::Array(Vec::new()))]);
        let tried = Table::from_iter([((*section).clone(), Value::Table(keys))]);
        let read = tried.try_into::<Config>();
        read.map_or_else(|e| !e.message().starts_with("unknown field"), |_| true)
    };
    let found: Vec<String> = sections.keys().filter(has).map(|s| format!("{s}.{key}")).collect();
    let listed = quoted(found.iter().map(String::as_str));
    (!found.is_empty()).then(|| format!("did you mean {listed}?"))
}

fn quoted<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    keys.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

/// Returns the line (from 1) and `section.key` at a span of `text`.
fn locate(text: &str, span: &Range<usize>) -> (usize, String) {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let mut section = "";
    for (i, content) in text.lines().take(line).enumerate() {
        let content = content.trim();
        if let Some(name) = content.strip_prefix('[') {
            section = name.split(']').next().unwrap_or("");
        } else if i + 1 == line
            && let Some((key, _)) = content.split_once('=')
        {
            let key = key.trim();
            let dot = if section.is_empty() { "" } else { "." };
            return (line, format!("{section}{dot}{key}"));
        }
    }
    (line, section.to_owned())
}

/// Returns the line (from 1) that sets `section.key`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut start = 0;
    for (i, line) in text.split('\n').enumerate() {
        let at = start + line.len() - line.trim_start().len();
        if line.contains('=') && locate(text, &(at..at)).1 == key {
            return Some(i + 1);
        }
        start += line.len() + 1;
    }
    None
}
