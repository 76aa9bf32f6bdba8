//! Results of an evaluation, with every setting that they depend on.

use crate::metrics::Measured;
use crate::train::HeldOutReport;
use sar_math::backend::Filter;
use serde::{Deserialize, Serialize};

/// How the images were generated, as reported by the sampler; recorded with the numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerSettings {
    /// How guidance grows over the scales: `t=g·i/min(N−1,9)`.
    pub ramp: String,
    /// Number of largest logits kept; 0 is off.
    pub top_k: usize,
    /// Probability mass kept; 0 is off.
    pub top_p: f64,
    /// Scale schedule, `1_2_4_8`.
    pub schedule: String,
    /// Whether grids outside the published sampler's list are sampled greedily.
    pub published_greedy: bool,
    /// The program that sampled, and its backend and number type: `sar 0.1.0, cpu f32`.
    pub program: String,
    /// The tokenizer's file; empty if it did not come from a file.
    pub tokenizer: String,
    /// The file of the weights; empty if they did not come from a file.
    pub weights: String,
    /// SHA-256 of the tokenizer's weights and of the generator's, by which they are known wherever they lie; empty if
    /// not recorded.
    pub tokenizer_sha256: String,
    /// See `tokenizer_sha256`.
    pub weights_sha256: String,
    /// Number of optimiser steps that the weights were trained for.
    pub step: u64,
    /// Whether the weights are a running average (EMA) rather than those of that step.
    pub ema: bool,
}

impl SamplerSettings {
    /// These settings with the files' names that `others` have, where those are the same weights; where one of both does
    /// not record a sum, the names decide.
    fn named_as(self, others: &Self) -> Self {
        type Pair<'a> = (&'a str, &'a str);
        let named = |(path, sum): Pair<'_>, (other_path, other_sum): Pair<'_>| {
            let path = if sum.is_empty() || sum != other_sum { path } else { other_path };
            let sum = if sum.is_empty() || other_sum.is_empty() { other_sum } else { sum };
            (path.to_owned(), sum.to_owned())
        };
        let (weights, weights_sha256) =
            named((&self.weights, &self.weights_sha256), (&others.weights, &others.weights_sha256));
        let (tokenizer, tokenizer_sha256) = named(
            (&self.tokenizer, &self.tokenizer_sha256),
            (&others.tokenizer, &others.tokenizer_sha256),
        );
        Self { weights, weights_sha256, tokenizer, tokenizer_sha256, ..self }
    }

    /// Describes the weights in words that continue a sentence; empty if they did not come from a
    /// file.
    pub fn described(&self) -> String {
        if self.weights.is_empty() {
            return String::new();
        }
        let ema = if self.ema { ", averaged (EMA)" } else { "" };
        let program = if self.program.is_empty() { "" } else { ", by " };
        format!("; weights {}, step {}{ema}{program}{}", self.weights, self.step, self.program)
    }
}

/// Everything that the numbers of an evaluation depend on, except guidance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalSettings {
    /// Description of the features.
    pub extractor: String,
    /// The extractor's class accuracy on the validation images, 0..1.
    pub extractor_accuracy: f64,
    /// Number of steps that the extractor was trained for, if it was trained here.
    pub extractor_steps: Option<u64>,
    /// Seed of that training.
    pub extractor_seed: Option<u64>,
    /// Number of features.
    pub feature_dims: usize,
    /// Description of the images.
    pub data: String,
    /// Fingerprint of the validation images' names and labels, independent of where they lie; empty
    /// if not recorded.
    pub data_fingerprint: String,
    /// Side of the images in pixels; 0 if not recorded.
    pub side: usize,
    /// Number of validation images compared with.
    pub reference_count: usize,
    /// Number of generated images per seed, equally many of each class.
    pub count: usize,
    /// Seeds of the sampler; one evaluation for each.
    pub seeds: Vec<u64>,
    /// k of the k-nearest-neighbour manifolds of precision and recall.
    pub neighbours: usize,
    /// How the images were generated.
    pub sampler: SamplerSettings,
}

impl EvalSettings {
    /// Whether numbers of both can be compared: measured against the same images, with equally many
    /// samples, in the same way and in the features of one classifier.
    pub fn comparable(&self, other: &Self) -> bool {
        let of = |s: &Self| {
            let measure = (s.extractor.clone(), s.feature_dims, s.neighbours);
            (measure, s.reference_count, s.count, s.seeds.len())
        };
        // What a file does not record is not counted as a difference.
        let same = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
        // Descriptions contain a path, and the same images may be moved or have several. Then equal
        // names and labels identify them, together with an equal accuracy of the classifier trained
        // on them.
        let moved = !self.data_fingerprint.is_empty()
            && self.data_fingerprint == other.data_fingerprint
            && self.extractor_accuracy == other.extractor_accuracy;
        let data = moved
            || (same(&self.data, &other.data)
                && same(&self.data_fingerprint, &other.data_fingerprint));
        let side = self.side == 0 || other.side == 0 || self.side == other.side;
        let alike = |a: Option<u64>, b: Option<u64>| a.is_none() || b.is_none() || a == b;
        of(self) == of(other)
            && data
            && side
            && alike(self.extractor_steps, other.extractor_steps)
            && alike(self.extractor_seed, other.extractor_seed)
    }
}

/// Quality of one generator at one guidance value and filter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepPoint {
    /// Guidance g.
    pub guidance: f64,
    /// Number of largest logits kept, if several filters were measured; otherwise the sampler's
    /// applies. 0 is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Probability mass kept, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Fréchet distance to the validation images; lower is better.
    pub frechet: Measured,
    /// Share of generated images in the validation manifold.
    pub precision: Measured,
    /// Share of validation images in the generated manifold.
    pub recall: Measured,
    /// Share of images that the classifier assigns to the class they were generated for.
    pub class_accuracy: Measured,
}

impl SweepPoint {
    /// Returns the settings specific to this point: `guidance 0.5, top-k 900, top-p 0.95`.
    pub fn name(&self) -> String {
        format!("guidance {}{}", self.guidance, self.filter())
    }

    /// Returns its filter, if several were measured: `, top-k 900, top-p 0.95`.
    pub fn filter(&self) -> String {
        let mut name = String::new();
        if let Some(top_k) = self.top_k {
            name += &format!(", top-k {top_k}");
        }
        if let Some(top_p) = self.top_p {
            name += &format!(", top-p {top_p}");
        }
        name
    }
}

/// What a perfect generator could reach: the measures of real or reconstructed images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Which images: "validation images, reconstructed by the tokenizer".
    pub name: String,
    /// Number of images.
    pub count: usize,
    /// Fréchet distance to the validation images.
    pub frechet: f64,
    /// Share of these images in the validation manifold.
    pub precision: f64,
    /// Share of validation images in the manifold of these.
    pub recall: f64,
    /// Class accuracy, if their labels are known.
    #[serde(default)]
    pub class_accuracy: Option<f64>,
}

/// The result of `sar eval`, as written to JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// All settings.
    pub settings: EvalSettings,
    /// Measures of real and reconstructed images.
    pub floors: Vec<Floor>,
    /// Measurements, one per guidance value and filter.
    pub points: Vec<SweepPoint>,
    /// Losses by teacher forcing on held-out images, as training logs them; `None` if not measured.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutReport>,
    /// What to keep in mind when reading the numbers (too few samples …).
    pub warnings: Vec<String>,
}

impl EvalReport {
    /// Describes in words how much was measured.
    pub fn extent(&self) -> String {
        let (points, s) = (self.points.len(), &self.settings);
        let what = if self.sweeps_filters() { "settings" } else { "guidance values" };
        format!("{points} {what} of {} samples by {} seeds", s.count, s.seeds.len())
    }

    /// Whether several filters were measured; then each point names its own.
    pub fn sweeps_filters(&self) -> bool {
        self.points.iter().any(|p| p.top_k.is_some() || p.top_p.is_some())
    }

    /// Adds the points of another report that this one lacks, provided that both were measured in
    /// the same way except for filters and guidance; returns whether that is the case.
    pub fn take_up(&mut self, other: &Self) -> bool {
        let (own, others) = (self.settings.sampler.clone(), &other.settings.sampler);
        let alike = SamplerSettings {
            top_k: others.top_k,
            top_p: others.top_p,
            ..own.clone().named_as(others)
        };
        if (EvalSettings { sampler: alike, ..self.settings.clone() }) != other.settings {
            return false;
        }
        let filter = |s: &SamplerSettings, p: &SweepPoint| {
            (p.top_k.unwrap_or(s.top_k), p.top_p.unwrap_or(s.top_p))
        };
        let named = |s: &SamplerSettings, p: &SweepPoint| {
            let (top_k, top_p) = filter(s, p);
            SweepPoint { top_k: Some(top_k), top_p: Some(top_p), ..p.clone() }
        };
        let mut all: Vec<_> = self.points.iter().map(|p| named(&own, p)).collect();
        for point in other.points.iter().map(|p| named(others, p)) {
            let same = |p: &SweepPoint| {
                (p.guidance, p.top_k, p.top_p) == (point.guidance, point.top_k, point.top_p)
            };
            if !all.iter().any(same) {
                all.push(point);
            }
        }
        all.sort_by(|a, b| {
            let of = |p: &SweepPoint| (p.top_k.unwrap_or(0), p.top_p.unwrap_or(0.0), p.guidance);
            let ((k, p, g), (l, q, h)) = (of(a), of(b));
            k.cmp(&l).then(p.total_cmp(&q)).then(g.total_cmp(&h))
        });
        // A single filter is given by the settings, if it is theirs.
        let single = |p: &SweepPoint| (p.top_k, p.top_p) == (Some(own.top_k), Some(own.top_p));
        if all.iter().all(single) {
            all.iter_mut().for_each(|point| (point.top_k, point.top_p) = (None, None));
        }
        self.points = all;
        true
    }

    /// Returns the measurement at a guidance value by a filter, if there is one.
    pub fn point(&self, filter: Filter, guidance: f64) -> Option<&SweepPoint> {
        let s = &self.settings.sampler;
        self.points.iter().find(|p| {
            let (top_k, top_p) = (p.top_k.unwrap_or(s.top_k), p.top_p.unwrap_or(s.top_p));
            (top_k, top_p, p.guidance) == (filter.top_k, filter.top_p, guidance)
        })
    }

    /// Whether it has every point of another report, each with at least as many samples.
    pub fn covers(&self, other: &Self) -> bool {
        let images = |of: &Self| of.settings.count * of.settings.seeds.len();
        let filter = |of: &Self, p: &SweepPoint| {
            let s = &of.settings.sampler;
            (p.top_k.unwrap_or(s.top_k), p.top_p.unwrap_or(s.top_p))
        };
        let same = |p: &SweepPoint, q: &SweepPoint| {
            p.guidance == q.guidance && filter(other, p) == filter(self, q)
        };
        images(self) >= images(other)
            && other.points.iter().all(|p| self.points.iter().any(|q| same(p, q)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evaluation_covers_another_by_its_points_and_samples() {
        let of = |guidances: &[f64], count: usize, top_p: Option<f64>| {
            let measured = Measured::once(1.0).unwrap();
            let point = |&guidance: &f64| SweepPoint {
                guidance,
                top_k: top_p.map(|_| 0),
                top_p,
                frechet: measured.clone(),
                precision: measured.clone(),
                recall: measured.clone(),
                class_accuracy: measured.clone(),
            };
            EvalReport {
                settings: EvalSettings { count, seeds: vec![0, 1], ..EvalSettings::default() },
                floors: Vec::new(),
                points: guidances.iter().map(point).collect(),
                held_out: None,
                warnings: Vec::new(),
            }
        };
        let sweep = of(&[0.0, 0.5, 1.0], 300, None);
        assert!(sweep.covers(&sweep) && sweep.covers(&of(&[0.5], 300, None)));
        assert!(sweep.covers(&of(&[1.0, 0.0], 200, Some(0.0))));
        // One point of many samples does not cover a sweep; nor does a sweep with few samples or
        // another filter.
        assert!(!of(&[0.5], 9000, None).covers(&sweep) && !sweep.covers(&of(&[0.5], 9000, None)));
        assert!(!sweep.covers(&of(&[0.5], 300, Some(0.9))));
    }

    #[test]
    fn weights_are_known_wherever_they_lie() {
        let of = |guidance: f64, path: &str, sum: &str| {
            let measured = Measured::once(guidance).unwrap();
            let sampler = SamplerSettings {
                weights: path.into(),
                weights_sha256: sum.into(),
                tokenizer: format!("{path}-tokenizer"),
                tokenizer_sha256: sum.into(),
                ..SamplerSettings::default()
            };
            EvalReport {
                settings: EvalSettings { sampler, ..EvalSettings::default() },
                floors: Vec::new(),
                points: vec![SweepPoint {
                    guidance,
                    top_k: None,
                    top_p: None,
                    frechet: measured.clone(),
                    precision: measured.clone(),
                    recall: measured.clone(),
                    class_accuracy: measured,
                }],
                held_out: None,
                warnings: Vec::new(),
            }
        };
        let there = of(0.5, "/a/run", "aa");
        // Moved, and recorded before sums were.
        for (path, sum, same) in [
            ("/b/run", "aa", true),
            ("/a/run", "aa", true),
            ("/a/run", "", true),
            ("/a/run", "bb", false),
            ("/b/run", "", false),
        ] {
            let mut now = of(1.0, path, sum);
            assert_eq!(now.take_up(&there), same, "{path} {sum}");
            assert_eq!(now.points.len(), if same { 2 } else { 1 });
            assert_eq!(now.settings.sampler.weights, path, "its own name stays");
            let filter = Filter { top_k: 0, top_p: 0.0 };
            let found = now.point(filter, 0.5).map(|point| point.frechet.mean);
            assert_eq!(found, same.then_some(0.5));
            assert!(now.point(Filter { top_k: 1, ..filter }, 1.0).is_none());
            // Of another filter it has nothing, with points of its own or without.
            for points in [of(1.0, path, sum).points, Vec::new()] {
                let mut other = EvalReport { points, ..of(1.0, path, sum) };
                other.settings.sampler.top_k = 1;
                other.take_up(&there);
                let one = Filter { top_k: 1, ..filter };
                assert!(other.point(one, 0.5).is_none(), "{:?}", other.points);
                let found = other.point(filter, 0.5).map(|point| point.frechet.mean);
                assert_eq!(found, same.then_some(0.5));
            }
        }
    }

    #[test]
    fn numbers_of_one_classifier_and_the_same_images_are_comparable() {
        let settings = EvalSettings {
            extractor_steps: Some(500),
            extractor_seed: Some(0),
            data: "glyphs".into(),
            count: 930,
            ..EvalSettings::default()
        };
        let with = |change: fn(&mut EvalSettings)| {
            let mut other = settings.clone();
            change(&mut other);
            settings.comparable(&other)
        };
        assert!(with(|_| {}));
        // Samplers are what is being compared, and their seeds may differ.
        assert!(with(|s| s.sampler.top_k = 5) && with(|s| s.extractor_seed = None));
        assert!(!with(|s| s.extractor_steps = Some(400)) && !with(|s| s.extractor_seed = Some(1)));
        assert!(!with(|s| s.data = "letters".into()) && !with(|s| s.count = 931));
        // The same images under another path; other images under the same path.
        let known = EvalSettings { data_fingerprint: "a".into(), ..settings.clone() };
        let moved = EvalSettings { data: "/mnt/glyphs".into(), ..known.clone() };
        let other = EvalSettings { data_fingerprint: "b".into(), ..known.clone() };
        assert!(known.comparable(&moved) && !known.comparable(&other));
        assert!(known.comparable(&settings) && !moved.comparable(&settings));
        let redrawn = EvalSettings { extractor_accuracy: 0.5, ..moved.clone() };
        assert!(!known.comparable(&redrawn));
    }
}
