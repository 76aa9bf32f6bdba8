//! Improved precision and recall (Kynkäänniemi et al. 2019): shares of each set that lie in the
//! other's k-nearest-neighbour manifold.

use super::{Features, MetricsError};
use rayon::prelude::*;

/// Vectors of one set that one task compares.
const BLOCK: usize = 32;
/// Running sums of a squared distance, so that it can be computed several features at a time.
const LANES: usize = 8;

/// The two sets, by name, so that they cannot be given the wrong way round.
#[derive(Clone, Copy, Debug)]
pub struct PrecisionRecall<'a> {
    /// Real images.
    pub reference: &'a Features,
    /// Generated images.
    pub generated: &'a Features,
}

/// A set and the squared distance of each of its vectors to its k-th nearest neighbour in the set.
#[derive(Clone, Debug)]
pub struct Manifold {
    features: Features,
    radii: Vec<f64>,
}

impl Manifold {
    /// The manifold of `features` with `neighbours` = k (3 as published); a vector is not its own
    /// neighbour.
    ///
    /// # Errors
    /// k zero, or no more than k vectors.
    pub fn new(features: Features, neighbours: usize) -> Result<Self, MetricsError> {
        let found = features.count();
        if neighbours == 0 || found <= neighbours {
            let metric = "precision_recall";
            return Err(MetricsError::TooFewSamples { metric, needed: neighbours + 1, found });
        }
        let radii = (0..found)
            .into_par_iter()
            .with_min_len(BLOCK)
            .map_init(Vec::new, |distances, i| {
                let row = features.row(i).unwrap_or(&[]);
                distances.clear();
                distances.extend(
                    features
                        .rows()
                        .enumerate()
                        .filter(|(j, _)| *j != i)
                        .map(|(_, other)| squared_distance(row, other)),
                );
                *distances.select_nth_unstable_by(neighbours - 1, f64::total_cmp).1
            })
            .collect();
        Ok(Self { features, radii })
    }

    /// The vectors.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The share of `others` within the radius of at least one vector of this manifold.
    ///
    /// # Errors
    /// No vectors, or vectors of another width.
    pub fn share_inside(&self, others: &Features) -> Result<f64, MetricsError> {
        let metric = "precision_recall";
        let (expected, found) = (self.features.dims(), others.dims());
        if expected != found {
            return Err(MetricsError::Shape { metric, what: "feature width", expected, found });
        }
        if others.count() == 0 {
            return Err(MetricsError::TooFewSamples { metric, needed: 1, found: 0 });
        }
        let inside = (0..others.count())
            .into_par_iter()
            .with_min_len(BLOCK)
            .filter(|&i| {
                let row = others.row(i).unwrap_or(&[]);
                self.features
                    .rows()
                    .zip(&self.radii)
                    .any(|(centre, radius)| squared_distance(row, centre) <= *radius)
            })
            .count();
        Ok(inside as f64 / others.count() as f64)
    }
}

/// Precision (the share of generated vectors in the reference manifold) and recall (the share of
/// reference vectors in the generated manifold), in this order.
///
/// # Errors
/// As [`Manifold::new`] and [`Manifold::share_inside`].
pub fn precision_recall(
    sets: PrecisionRecall<'_>,
    neighbours: usize,
) -> Result<(f64, f64), MetricsError> {
    let reference = Manifold::new(sets.reference.clone(), neighbours)?;
    let generated = Manifold::new(sets.generated.clone(), neighbours)?;
    Ok((reference.share_inside(sets.generated)?, generated.share_inside(sets.reference)?))
}

/// `‖a−b‖²`, summed in an order that depends on the width alone.
fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut rest = 0.0;
    for (x, y) in a.remainder().iter().zip(b.remainder()) {
        rest += (x - y) * (x - y);
    }
    for (x, y) in a.zip(b) {
        for lane in 0..LANES {
            let d = x[lane] - y[lane];
            sums[lane] += d * d;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::spread::tests::noise;

    /// Roundings of f64 in a distance of order 1.
    const ROUNDING: f64 = 1e-12;

    fn features(count: usize, dims: usize, seed: u64) -> Features {
        Features::new(noise(count * dims, seed), dims).unwrap()
    }

    #[test]
    fn a_set_covers_itself() {
        let set = features(60, 19, 1);
        let found = precision_recall(PrecisionRecall { reference: &set, generated: &set }, 3);
        assert_eq!(found.unwrap(), (1.0, 1.0));
    }

    #[test]
    fn a_generator_with_one_mode_is_precise_but_recalls_little() {
        let reference = features(200, 4, 2);
        let narrow: Vec<f64> = noise(100 * 4, 3).iter().map(|v| 0.5 + 0.01 * v).collect();
        let generated = Features::new(narrow, 4).unwrap();
        let sets = PrecisionRecall { reference: &reference, generated: &generated };
        let (precision, recall) = precision_recall(sets, 3).unwrap();
        assert!(precision > 0.9 && recall < 0.1, "{precision} {recall}");
    }

    #[test]
    fn radii_are_those_of_a_plain_sort() {
        let set = features(40, 11, 4);
        let manifold = Manifold::new(set.clone(), 3).unwrap();
        for (i, radius) in manifold.radii.iter().enumerate() {
            let mut all: Vec<f64> = set
                .rows()
                .map(|r| r.iter().zip(set.row(i).unwrap()).map(|(a, b)| (a - b) * (a - b)).sum())
                .collect();
            all.sort_by(f64::total_cmp);
            assert!((all[3] - radius).abs() < ROUNDING);
        }
    }

    #[test]
    fn too_few_or_other_widths_are_errors() {
        assert!(Manifold::new(features(3, 2, 5), 3).is_err());
        assert!(Manifold::new(features(3, 2, 5), 0).is_err());
        let manifold = Manifold::new(features(4, 2, 5), 3).unwrap();
        assert!(manifold.share_inside(&features(4, 3, 5)).is_err());
    }
}
