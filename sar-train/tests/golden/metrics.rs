//! `metrics.safetensors`: Fréchet distance, Inception Score, precision and recall.

use crate::support::{Golden, assert_close};
use sar_train::metrics::{
    Features, PrecisionRecall, frechet_distance, inception_score, precision_recall,
};

/// A few hundred rows summed in another order, relative to the value.
const TOLERANCE: f64 = 1e-9;
/// Relative error that a recorded Fréchet distance may have itself: it is of a matrix root taken in f64 of a
/// product whose condition is that of two covariances, up to 1e14 in tries.
const RECORDED: f64 = 1e-6;

fn features(golden: &Golden, name: &str) -> Features {
    Features::new(golden.f64(name), golden.shape(name)[1]).unwrap()
}

/// The settings and value of each metadata entry whose name starts with `prefix` and ends in a number.
fn numbered(golden: &Golden, prefix: &str) -> Vec<(usize, f64)> {
    let entries = golden.meta.as_object().unwrap().iter();
    let found: Vec<(usize, f64)> = entries
        .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.parse().ok()?, value.as_f64()?)))
        .collect();
    assert!(!found.is_empty(), "no {prefix}<n> in the metadata");
    found
}

/// The number between two words of the metadata's note.
fn noted(golden: &Golden, before: &str, after: &str) -> usize {
    let note = golden.meta["note"].as_str().unwrap();
    note.match_indices(before)
        .find_map(|(at, _)| {
            let (number, rest) = note[at + before.len()..].split_once(' ')?;
            rest.starts_with(after).then(|| number.parse().ok())?
        })
        .unwrap_or_else(|| panic!("no '{before}<n> {after}' in '{note}'"))
}

#[test]
fn golden_frechet_distance() {
    let golden = Golden::open("metrics");
    let (a, b) = (features(&golden, "features_a"), features(&golden, "features_b"));
    let want = golden.number("fid");
    let got = frechet_distance(&a, &b).unwrap();
    assert_close("fid", &[got], &[want], RECORDED * want);
}

#[test]
fn golden_inception_score() {
    let golden = Golden::open("metrics");
    let probabilities = golden.f64("class_probs");
    let classes = golden.shape("class_probs")[1];
    for (splits, want) in numbered(&golden, "inception_score_splits_") {
        let got = inception_score(&probabilities, classes, splits).unwrap();
        assert_close(&format!("{splits} splits"), &[got.mean], &[want], TOLERANCE * want);
    }
}

#[test]
fn golden_precision_recall() {
    let golden = Golden::open("metrics");
    let reference = features(&golden, "features_a").first(noted(&golden, "first ", "rows of a"));
    let generated = features(&golden, "features_b").first(noted(&golden, "first ", "of b"));
    for (neighbours, want) in numbered(&golden, "precision_k") {
        let sets = PrecisionRecall { reference: &reference, generated: &generated };
        let (precision, recall) = precision_recall(sets, neighbours).unwrap();
        assert_close("precision", &[precision], &[want], TOLERANCE);
        let want = golden.number(&format!("recall_k{neighbours}"));
        assert_close("recall", &[recall], &[want], TOLERANCE);
    }
}
