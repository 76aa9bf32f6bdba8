//! What a folder's images are, and how they were made.

use super::{GIVEN, GRID, SCALES};
use crate::backend::Compute;
use crate::config::SampleConfig;
use crate::data::grid::file_name;
use crate::files::absolute;
use crate::hash::sha256_of;
use crate::trained::{TrainedGenerator, TrainedTokenizer};
use sar_math::ScaleSchedule;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the images of a folder are: all that they depend on, and the class of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::commands) struct SampleRecord {
    /// The program's version.
    pub program: String,
    /// The weights' file.
    pub generator: PathBuf,
    /// SHA-256 of its weights.
    #[serde(default)]
    pub generator_sha256: String,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// SHA-256 of the tokenizer's weights.
    #[serde(default)]
    pub tokenizer_sha256: String,
    /// Optimiser steps of the generator's weights.
    pub step: u64,
    /// Whether the generator's weights are the averaged ones (EMA).
    pub ema: bool,
    /// What computed them, such as `cpu f32`.
    #[serde(default)]
    pub computed: String,
    /// Schedule sampled in.
    pub schedule: String,
    /// The other settings.
    pub settings: SampleConfig,
    /// The edit that made them, if they are edits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<EditRecord>,
    /// The array that they, or the first of them, were also written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub npz: Option<PathBuf>,
    /// Names of all classes in the order of their labels; empty if they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Class of image k, which is `{k:06}.png`.
    pub labels: Vec<u32>,
}

/// How an image was edited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::commands) struct EditRecord {
    /// The image.
    pub image: PathBuf,
    /// The mask of what was drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// SHA-256 of image and mask as cut and scaled.
    #[serde(default)]
    pub pixels_sha256: String,
    /// Number of scales that were taken whole from the image.
    pub keep_scales: usize,
    /// How many times the masked part was drawn.
    pub passes: usize,
    /// Whether the pictures are as decoded, without the image's own pixels put back.
    pub decoded: bool,
}

impl SampleRecord {
    /// Describes images that are about to be made, with the given classes in turn.
    pub(in crate::commands) fn new<B: Compute>(
        generator: &TrainedGenerator,
        tokenizer: (&TrainedTokenizer<B>, &Path),
        schedule: &ScaleSchedule,
        settings: &SampleConfig,
        classes: &[u32],
        computed: String,
    ) -> Self {
        let turns = classes.iter().copied().cycle();
        Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            generator: as_text(&absolute(&generator.file)),
            generator_sha256: sha256_of(&generator.weights),
            tokenizer: as_text(&absolute(tokenizer.1)),
            tokenizer_sha256: sha256_of(&tokenizer.0.weights),
            step: generator.step,
            ema: generator.ema,
            computed,
            schedule: schedule.to_string(),
            settings: settings.clone(),
            edit: None,
            npz: None,
            classes: generator.classes.clone().unwrap_or_default(),
            labels: turns.take(settings.count).collect(),
        }
    }

    /// Images painted at once.
    pub(in crate::commands) fn batch(&self) -> usize {
        self.settings.batch.min(self.labels.len())
    }

    /// Returns why the images of `earlier` are not the first of these; `None` if they are.
    pub(super) fn difference_from(&self, earlier: &Self) -> anyhow::Result<Option<String>> {
        if earlier.generator_sha256.is_empty() {
            return Ok(Some("an earlier version of the program made them".to_owned()));
        }
        if self.edit.is_some() != earlier.edit.is_some() {
            let kind =
                if earlier.edit.is_some() { "edits of an image" } else { "samples, no edits" };
            return Ok(Some(format!("they are {kind}")));
        }
        let [was, is] = [earlier.essence()?, self.essence()?];
        if let Some((key, was, is)) = difference("", &was, &is) {
            return Ok(Some(match key.as_str() {
                "generator_sha256" => "the generator has other weights now".to_owned(),
                "tokenizer_sha256" => "the tokenizer has other weights now".to_owned(),
                "edit.pixels_sha256" => "the image or its mask is another now".to_owned(),
                _ => format!("{key} was {was} and is {is} now"),
            }));
        }
        let common = self.labels.iter().zip(&earlier.labels).take_while(|(a, b)| a == b).count();
        let there = earlier.labels.len();
        Ok((common < there).then(|| match common == self.labels.len() {
            true => format!("they go up to number {}, and --count is {common}", there - 1),
            false => format!("image {common} is of another class; give the same --classes"),
        }))
    }

    /// Everything that an image depends on, except its class and its number.
    fn essence(&self) -> anyhow::Result<Value> {
        // What counts is what the files contain, wherever they are, and the schedule that was sampled in.
        let essence = Self {
            generator: PathBuf::new(),
            tokenizer: PathBuf::new(),
            step: 0,
            ema: false,
            npz: None,
            classes: Vec::new(),
            labels: Vec::new(),
            settings: SampleConfig { count: 1, batch: 1, schedule: None, ..self.settings.clone() },
            edit: self.edit.as_ref().map(|edit| EditRecord {
                image: PathBuf::new(),
                mask: None,
                ..edit.clone()
            }),
            ..self.clone()
        };
        Ok(serde_json::to_value(essence)?)
    }

    /// Returns the names of the files that the record covers.
    pub(super) fn files(&self) -> impl Iterator<Item = String> {
        let images = (0..self.labels.len() as u64).map(file_name);
        let given = self.edit.iter().map(|_| GIVEN.to_owned());
        images.chain([GRID, SCALES].map(String::from)).chain(given)
    }
}

/// Returns a path that can be written to a record, even if it is not valid text.
pub(in crate::commands) fn as_text(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

/// Returns the first value that differs between two records: its name, what it was and what it is.
fn difference(name: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    let told =
        |value: &Value| if value.is_null() { "not given".to_owned() } else { value.to_string() };
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            names.into_iter().find_map(|key| {
                let value = |of: &serde_json::Map<String, Value>| of.get(key).cloned();
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let [was, is] = [was, is].map(|of| value(of).unwrap_or_default());
                difference(&name, &was, &is)
            })
        }
        _ => (was != is).then(|| (name.to_owned(), told(was), told(is))),
    }
}
