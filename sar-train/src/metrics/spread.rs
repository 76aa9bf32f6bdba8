//! A number measured several times.

use super::MetricsError;
use serde::{Deserialize, Serialize};

/// Mean and spread of repeated measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Mean of `values`.
    pub mean: f64,
    /// Sample standard deviation (N−1); `None` for a single value.
    pub spread: Option<f64>,
    /// The values, one per seed, in the order of the seeds.
    pub values: Vec<f64>,
}

impl Measured {
    /// Computes mean and spread of at least one value, all finite.
    ///
    /// # Errors
    /// There are no values, or one is not finite.
    pub fn of(values: Vec<f64>) -> Result<Self, MetricsError> {
        let metric = "mean and spread";
        if values.is_empty() {
            return Err(MetricsError::TooFewSamples { metric, needed: 1, found: 0 });
        }
        if let Some(row) = values.iter().position(|v| !v.is_finite()) {
            return Err(MetricsError::NotFinite { metric, row, column: 0 });
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        let spread = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        Ok(Self { mean, spread, values })
    }

    /// Wraps a number that was measured once.
    ///
    /// # Errors
    /// The number is not finite.
    pub fn once(value: f64) -> Result<Self, MetricsError> {
        Self::of(vec![value])
    }

    /// Formats as `43.3 ± 0.5` with `decimals` digits; without the spread if there is none.
    pub fn text(&self, decimals: usize) -> String {
        match self.spread {
            Some(spread) => format!("{:.decimals$} ± {spread:.decimals$}", self.mean),
            None => format!("{:.decimals$}", self.mean),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One or two f64 rounding errors of numbers of order 1.
    const ROUNDING: f64 = 1e-15;

    /// Uniform numbers in 0..1 for tests.
    pub(crate) fn noise(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 53) as f64
            })
            .collect()
    }

    #[test]
    fn spread_is_the_sample_deviation() {
        let found = Measured::of(vec![1.0, 2.0, 4.0]).unwrap();
        assert!((found.mean - 7.0 / 3.0).abs() < ROUNDING);
        assert!((found.spread.unwrap() - (7.0f64 / 3.0).sqrt()).abs() < ROUNDING);
        assert_eq!(found.text(1), "2.3 ± 1.5");
        assert_eq!(Measured::once(2.0).unwrap().text(2), "2.00");
        assert!(Measured::of(vec![]).is_err());
        assert!(Measured::of(vec![f64::NAN]).is_err());
    }
}
