//! Improved precision and recall (Kynkäänniemi et al. 2019): shares of each set that lie in the
//! other's k-nearest-neighbour manifold.

use super::{Features, MetricsError};
use rayon::prelude::*;
use sar_backend_cpu::{Buffer, CpuBackend, CpuError};
use sar_math::backend::{Buffers, Linear, LinearDims, Slot, TransformerOps};
use std::borrow::Cow;

/// Number of vectors of one set (block), and of the other (tile), whose products are computed at a
/// time.
const BLOCK: usize = 256;
const TILE: usize = 2048;
/// Number of partial sums of a squared distance, which lets several features be processed at a
/// time.
const LANES: usize = 8;
/// A squared distance below this share of the squared lengths has lost digits by cancellation and
/// is computed directly, so that equal vectors have distance 0.
const CANCELLED: f64 = 1e-6;

/// The two sets, by name, so that they cannot be swapped.
#[derive(Clone, Copy, Debug)]
pub struct PrecisionRecall<'a> {
    /// Real images.
    pub reference: &'a Features,
    /// Generated images.
    pub generated: &'a Features,
}

/// A set and the squared distance of each of its vectors to its k-th nearest neighbour in the set.
#[derive(Clone, Debug)]
pub struct Manifold<'a> {
    features: Cow<'a, Features>,
    radii: Vec<f64>,
}

impl<'a> Manifold<'a> {
    /// Builds the manifold of `features` with `neighbours` = k (3 as published); a vector is not
    /// its own neighbour.
    ///
    /// # Errors
    /// k is zero, or there are no more than k vectors.
    pub fn new(
        features: impl Into<Cow<'a, Features>>,
        neighbours: usize,
    ) -> Result<Self, MetricsError> {
        let features = features.into();
        let found = features.count();
        if neighbours == 0 || found <= neighbours {
            let metric = "precision_recall";
            return Err(MetricsError::TooFewSamples { metric, needed: neighbours + 1, found });
        }
        let mut nearest = vec![Vec::with_capacity(neighbours + 1); found];
        let mut space = Space::new(&features)?;
        space.visit(&features, &mut nearest, |nearest: &mut Vec<f64>, row, column, distance| {
            let far = nearest.get(neighbours - 1).is_some_and(|&last| distance >= last);
            if row != column && !far {
                let at = nearest.partition_point(|&d| d <= distance);
                nearest.insert(at, distance);
                nearest.truncate(neighbours);
            }
        })?;
        let radii = nearest.into_iter().map(|nearest| nearest[neighbours - 1]).collect();
        Ok(Self { features, radii })
    }

    /// Returns the vectors.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Returns the share of `others` within the radius of at least one vector of this manifold.
    ///
    /// # Errors
    /// There are no vectors, or they have another number of features.
    pub fn share_inside(&self, others: &Features) -> Result<f64, MetricsError> {
        let metric = "precision_recall";
        let (expected, found) = (self.features.dims(), others.dims());
        if expected != found {
            return Err(MetricsError::Shape { metric, what: "feature width", expected, found });
        }
        if others.count() == 0 {
            return Err(MetricsError::TooFewSamples { metric, needed: 1, found: 0 });
        }
        let mut inside = vec![false; others.count()];
        let mut space = Space::new(&self.features)?;
        space.visit(others, &mut inside, |inside: &mut bool, _, column, distance| {
            *inside |= distance <= self.radii[column];
        })?;
        let count = inside.iter().filter(|inside| **inside).count();
        Ok(count as f64 / others.count() as f64)
    }
}

/// A set prepared for computing the distances of others to all of its vectors.
struct Space<'a> {
    set: &'a Features,
    lengths: Vec<f64>,
    /// The set as the weights of a linear layer, which computes its products with other vectors.
    weights: Buffer<f64>,
    block: Buffer<f64>,
    products: Buffer<f64>,
}

impl<'a> Space<'a> {
    fn new(set: &'a Features) -> Result<Self, MetricsError> {
        let backend = CpuBackend::<f64>::new();
        let room = || {
            let mut weights = backend.params(set.values().len())?;
            backend.upload_params(set.values(), &mut weights, 0)?;
            let block = backend.activation(BLOCK * set.dims())?;
            Ok((weights, block, backend.activation(BLOCK * TILE)?))
        };
        let (weights, block, products) = room().map_err(no_room)?;
        Ok(Self { set, lengths: squared_lengths(set), weights, block, products })
    }

    /// Calls `each(state, row, column, squared distance)` for every vector of `others` and every
    /// vector of the set, in order; `state` is the one of the vector of `others` and collects the
    /// results.
    fn visit<S: Send>(
        &mut self,
        others: &Features,
        states: &mut [S],
        each: impl Fn(&mut S, usize, usize, f64) + Sync,
    ) -> Result<(), MetricsError> {
        let (set, dims, backend) = (self.set, self.set.dims(), CpuBackend::<f64>::new());
        let lengths = squared_lengths(others);
        for (block, states) in states.chunks_mut(BLOCK).enumerate() {
            let (first, rows) = (block * BLOCK, states.len());
            let values = &others.values()[first * dims..][..rows * dims];
            self.block.as_mut_slice()[..values.len()].copy_from_slice(values);
            for begin in (0..set.count()).step_by(TILE) {
                let columns = TILE.min(set.count() - begin);
                let weight = Slot { offset: begin * dims, len: columns * dims };
                let layer = Linear { weight, bias: None };
                let shape = LinearDims { rows, inputs: dims, outputs: columns };
                backend
                    .linear(shape, &self.block, &self.weights, layer, &mut self.products)
                    .map_err(no_room)?;
                let products = self.products.as_slice().par_chunks(columns);
                states.par_iter_mut().zip(products).enumerate().for_each(
                    |(i, (state, products))| {
                        for (j, product) in products.iter().enumerate() {
                            let (row, column) = (first + i, begin + j);
                            let sum = lengths[row] + self.lengths[column];
                            let mut distance = sum - 2.0 * product;
                            if distance < CANCELLED * sum {
                                let pair = (others.row(row), set.row(column));
                                let (a, b) = (pair.0.unwrap_or(&[]), pair.1.unwrap_or(&[]));
                                distance = squared_distance(a, b);
                            }
                            each(state, row, column, distance);
                        }
                    },
                );
            }
        }
        Ok(())
    }
}

fn squared_lengths(of: &Features) -> Vec<f64> {
    of.rows().map(|row| row.iter().map(|v| v * v).sum()).collect()
}

fn no_room(error: CpuError) -> MetricsError {
    MetricsError::Backend { metric: "precision_recall", reason: error.to_string() }
}

/// Computes precision (the share of generated vectors in the reference manifold) and recall (the
/// share of reference vectors in the generated manifold), in this order.
///
/// # Errors
/// As for [`Manifold::new`] and [`Manifold::share_inside`].
pub fn precision_recall(
    sets: PrecisionRecall<'_>,
    neighbours: usize,
) -> Result<(f64, f64), MetricsError> {
    // One after the other, because a manifold of 50,000 vectors takes most of a gigabyte to
    // compute.
    let precision = Manifold::new(sets.reference, neighbours)?.share_inside(sets.generated)?;
    let recall = Manifold::new(sets.generated, neighbours)?.share_inside(sets.reference)?;
    Ok((precision, recall))
}

/// Computes `‖a−b‖²`, summed in an order that depends only on the number of features.
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

    /// f64 rounding errors in a distance of order 1.
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
    fn sets_of_several_blocks_and_tiles_are_compared_whole() {
        let (set, others) = (features(TILE + 70, 3, 6), features(BLOCK + 30, 3, 7));
        let manifold = Manifold::new(set.clone(), 2).unwrap();
        let plain = |a: &[f64], b: &[f64]| squared_distance(a, b);
        for i in [0, 1, BLOCK - 1, BLOCK, TILE - 1, TILE, TILE + 69] {
            let row = set.row(i).unwrap();
            let mut all: Vec<f64> = set.rows().map(|other| plain(row, other)).collect();
            all.sort_by(f64::total_cmp);
            assert!((all[2] - manifold.radii[i]).abs() < ROUNDING, "{i}");
        }
        let inside = |other: &&[f64]| {
            set.rows().zip(&manifold.radii).any(|(centre, radius)| plain(other, centre) <= *radius)
        };
        let want = others.rows().filter(inside).count() as f64 / others.count() as f64;
        assert_eq!(manifold.share_inside(&others).unwrap(), want);
        assert!(want > 0.1 && want < 0.99, "{want}");
    }

    #[test]
    fn equal_vectors_have_no_distance_however_long_they_are() {
        // Each of four equal vectors has three neighbours at distance 0; another vector is not
        // within their radius.
        let mut values = [[1e8, 3.0]; 4].concat();
        values.extend([1e8, 3.5, 1e8, 9.0]);
        let set = Features::new(values, 2).unwrap();
        let manifold = Manifold::new(set, 3).unwrap();
        assert_eq!(manifold.radii[..4], [0.0; 4]);
        let of = |values: &[f64]| Features::new(values.to_vec(), 2).unwrap();
        let (equal, near) = (of(&[1e8, 3.0]), of(&[1e8, 2.75]));
        assert_eq!(manifold.share_inside(&equal).unwrap(), 1.0);
        assert_eq!(manifold.radii[4], 0.25);
        assert_eq!(manifold.share_inside(&near).unwrap(), 0.0, "nearest to those without a radius");
    }

    #[test]
    fn too_few_or_other_widths_are_errors() {
        assert!(Manifold::new(features(3, 2, 5), 3).is_err());
        assert!(Manifold::new(features(3, 2, 5), 0).is_err());
        let manifold = Manifold::new(features(4, 2, 5), 3).unwrap();
        assert!(manifold.share_inside(&features(4, 3, 5)).is_err());
    }
}
