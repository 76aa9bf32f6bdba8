//! Measures of images: of generated ones from features and class probabilities, of reconstructions
//! from pixels ([`ssim`]).
//!
//! All are computed in `f64` and do not depend on the thread count: work is cut into blocks that do
//! not depend on it and combined in a fixed order. The caller has to say with every number what the
//! features are (which network, which layer).

mod features;
mod frechet;
mod inception;
mod manifold;
mod moments;
mod spread;
mod ssim;

pub use features::Features;
pub use frechet::{Gaussian, frechet_distance};
pub use inception::{InceptionScore, inception_score};
pub use manifold::{Manifold, PrecisionRecall, precision_recall};
pub use moments::Moments;
pub use spread::Measured;
pub use ssim::ssim;

use thiserror::Error;

/// Why a measure cannot be computed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum MetricsError {
    /// A feature or probability is NaN or infinite.
    #[error(
        "{metric}: row {row}, column {column} is not finite; the images or the feature network are \
         broken, look at the images first"
    )]
    NotFinite {
        /// The measure, by the name of its function.
        metric: &'static str,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
    },
    /// Fewer rows than the measure needs.
    #[error("{metric}: needs at least {needed} samples, found {found}; generate or load more")]
    TooFewSamples {
        /// The measure.
        metric: &'static str,
        /// Number of rows needed.
        needed: usize,
        /// Number of rows given.
        found: usize,
    },
    /// Two sets with different numbers of features, or values that are not whole rows.
    #[error("{metric}: {what}: expected {expected}, found {found}")]
    Shape {
        /// The measure.
        metric: &'static str,
        /// Which quantity.
        what: &'static str,
        /// What it should be.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A row of class probabilities that does not sum to 1, or has a negative entry.
    #[error(
        "{metric}: row {row} is not a probability distribution (sum {sum}); give softmax outputs, \
         not logits"
    )]
    NotProbabilities {
        /// The measure.
        metric: &'static str,
        /// The row.
        row: usize,
        /// Its sum.
        sum: f64,
    },
    /// The products that a measure needs cannot be computed for want of memory.
    #[error("{metric}: {reason}")]
    Backend {
        /// The measure.
        metric: &'static str,
        /// The backend's message.
        reason: String,
    },
    /// A matrix that is not a covariance.
    #[error(
        "{metric}: row {row}, column {column} of a covariance is negative on the diagonal, or not what it is on \
         the other side of it"
    )]
    NoCovariance {
        /// The measure.
        metric: &'static str,
        /// Row of the value.
        row: usize,
        /// Column of the value.
        column: usize,
    },
    /// The singular values of a product of roots did not converge.
    #[error(
        "{metric}: the singular values of {dims} features did not converge; check the features for values of \
         wildly different size"
    )]
    NoConvergence {
        /// The measure.
        metric: &'static str,
        /// Number of features.
        dims: usize,
    },
}

/// Returns the share of rows whose largest logit (the lowest index on ties) is the intended label.
///
/// `logits` is `[n, classes]`, row-major, where n is the number of labels.
///
/// # Errors
/// There are no labels or classes, the length is not n·classes, or a logit is NaN.
pub fn class_accuracy(logits: &[f64], classes: usize, labels: &[u32]) -> Result<f64, MetricsError> {
    let metric = "class_accuracy";
    if labels.is_empty() || classes == 0 {
        return Err(MetricsError::TooFewSamples { metric, needed: 1, found: 0 });
    }
    let expected = labels.len() * classes;
    if logits.len() != expected {
        let found = logits.len();
        return Err(MetricsError::Shape { metric, what: "logits", expected, found });
    }
    let mut hits = 0usize;
    for (row, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let mut best = 0;
        for (column, value) in logits.iter().enumerate() {
            if value.is_nan() {
                return Err(MetricsError::NotFinite { metric, row, column });
            }
            if *value > logits[best] {
                best = column;
            }
        }
        hits += usize::from(best == label as usize);
    }
    Ok(hits as f64 / labels.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_counts_the_first_of_equal_logits() {
        let logits = [1.0, 2.0, 3.0, 3.0, 0.0, 0.0];
        assert_eq!(class_accuracy(&logits, 2, &[1, 0, 1]).unwrap(), 2.0 / 3.0);
        assert!(class_accuracy(&logits, 2, &[1, 0]).is_err());
        assert!(class_accuracy(&[f64::NAN, 0.0], 2, &[1]).is_err());
        assert!(class_accuracy(&[], 2, &[]).is_err());
    }
}
