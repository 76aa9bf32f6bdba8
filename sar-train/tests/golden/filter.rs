//! `golden/topk_topp`: probabilities after the published top-k and top-p filter.

use crate::support::{Golden, assert_close};
use sar_math::backend::Filter;
use sar_math::sampling::{filtered_probabilities, scratch_len};

/// Probabilities are ratios of integer weights, rounded at 2⁻⁴⁷ (7e-15) of the largest.
const TOLERANCE: f64 = 1e-12;

/// Reads `probs_k12_p0.8`.
fn settings(name: &str) -> Option<Filter> {
    let (k, p) = name.strip_prefix("probs_k")?.split_once("_p")?;
    Some(Filter { top_k: k.parse().ok()?, top_p: p.parse().ok()? })
}

#[test]
fn golden_filter() {
    let golden = Golden::open("topk_topp");
    let vocab = *golden.shape("logits").last().unwrap();
    let logits = golden.f64("logits");
    let mut scratch = vec![0; scratch_len(vocab)];
    let mut compared = 0;
    for name in golden.names() {
        let Some(filter) = settings(&name) else { continue };
        let mut got = vec![0.0; logits.len()];
        for (row, out) in logits.chunks_exact(vocab).zip(got.chunks_exact_mut(vocab)) {
            filtered_probabilities(row, filter, &mut scratch, out).unwrap();
        }
        let want = golden.f64(&name);
        assert_close(&name, &got, &want, TOLERANCE);
        for (at, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let resolved = want == 0.0 || want > TOLERANCE;
            assert!(!resolved || (got == 0.0) == (want == 0.0), "{name}: {got} for {want} at {at}");
        }
        compared += 1;
    }
    assert!(compared > 0, "no distribution to compare with");
}
