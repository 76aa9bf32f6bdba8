//! Inception Score (Salimans et al. 2016), from the probabilities of any classifier.

use super::MetricsError;

/// Tolerance for the sums of rows, which must be 1: softmax in f32 over a thousand classes is
/// accurate to 1e-4.
const SUM_TOLERANCE: f64 = 1e-3;

/// Mean and population standard deviation of the score over the splits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Mean over the splits.
    pub mean: f64,
    /// Standard deviation over the splits (divided by their number, as published); 0 for a single
    /// one.
    pub deviation: f64,
}

/// Computes `exp(mean_x KL(p(y|x) ‖ p(y)))` in each of `splits` consecutive parts of the rows.
///
/// `probabilities` is `[n, classes]`, row-major; part s holds rows
/// `⌊s·n/splits⌋..⌊(s+1)·n/splits⌋`. `0·ln 0` is 0.
///
/// # Errors
/// There are no splits or fewer rows than splits, or rows are not probability distributions.
pub fn inception_score(
    probabilities: &[f64],
    classes: usize,
    splits: usize,
) -> Result<InceptionScore, MetricsError> {
    let metric = "inception_score";
    if classes == 0 || !probabilities.len().is_multiple_of(classes) {
        let expected = probabilities.len().next_multiple_of(classes.max(1)).max(1);
        let found = probabilities.len();
        return Err(MetricsError::Shape { metric, what: "probabilities", expected, found });
    }
    let count = probabilities.len() / classes;
    if splits == 0 || count < splits {
        return Err(MetricsError::TooFewSamples { metric, needed: splits.max(1), found: count });
    }
    check_rows(metric, probabilities, classes)?;
    let scores: Vec<f64> = (0..splits)
        .map(|s| {
            let rows = s * count / splits..(s + 1) * count / splits;
            score(&probabilities[rows.start * classes..rows.end * classes], classes)
        })
        .collect();
    let mean = scores.iter().sum::<f64>() / splits as f64;
    let variance = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / splits as f64;
    Ok(InceptionScore { mean, deviation: variance.sqrt() })
}

fn check_rows(metric: &'static str, values: &[f64], classes: usize) -> Result<(), MetricsError> {
    for (row, values) in values.chunks_exact(classes).enumerate() {
        if let Some(column) = values.iter().position(|v| !v.is_finite()) {
            return Err(MetricsError::NotFinite { metric, row, column });
        }
        let sum: f64 = values.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE || values.iter().any(|v| *v < 0.0) {
            return Err(MetricsError::NotProbabilities { metric, row, sum });
        }
    }
    Ok(())
}

/// Returns the score of one part, which has at least one row.
fn score(rows: &[f64], classes: usize) -> f64 {
    let count = (rows.len() / classes) as f64;
    let mut marginal = vec![0.0; classes];
    for row in rows.chunks_exact(classes) {
        for (sum, p) in marginal.iter_mut().zip(row) {
            *sum += p / count;
        }
    }
    let mut divergence = 0.0;
    for row in rows.chunks_exact(classes) {
        for (p, q) in row.iter().zip(&marginal) {
            if *p > 0.0 {
                divergence += p * (p / q).ln();
            }
        }
    }
    (divergence / count).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few f64 rounding errors of numbers of order 1.
    const ROUNDING: f64 = 1e-12;

    #[test]
    fn certain_and_balanced_scores_the_number_of_classes() {
        let mut rows = vec![0.0; 12 * 4];
        for (i, row) in rows.chunks_exact_mut(4).enumerate() {
            row[i % 4] = 1.0;
        }
        let found = inception_score(&rows, 4, 3).unwrap();
        assert!((found.mean - 4.0).abs() < ROUNDING && found.deviation < ROUNDING);
        let undecided = inception_score(&[0.25; 20], 4, 1).unwrap();
        assert!((undecided.mean - 1.0).abs() < ROUNDING);
    }

    #[test]
    fn logits_and_short_sets_are_errors() {
        assert!(matches!(
            inception_score(&[2.0, -1.0], 2, 1),
            Err(MetricsError::NotProbabilities { row: 0, .. })
        ));
        assert!(inception_score(&[0.5; 4], 2, 3).is_err());
        assert!(inception_score(&[0.5; 4], 2, 0).is_err());
        assert!(inception_score(&[0.5; 3], 2, 1).is_err());
        assert!(inception_score(&[f64::NAN, 1.0], 2, 1).is_err());
    }
}
