//! Fréchet distance between two sets of features, each taken as a Gaussian (Heusel et al. 2017).
//!
//! `d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2·tr (Σ_a Σ_b)^½`, covariances with N−1. The eigenvalues of
//! `Σ_a Σ_b` other than 0 are those of `LᵀΣ_bL` for any `L` with `L·Lᵀ = Σ_a`. With Cholesky's that matrix is
//! symmetric, so that no complex square root is needed, and no larger than the rank of Σ_a: of a few vectors of
//! thousands of features it is small.

use super::{Features, MetricsError};
use nalgebra::{DMatrix, DVector, Dyn, SymmetricEigen};
use rayon::prelude::*;
use std::borrow::Cow;

/// Eigenvalues and pivots below this many units of rounding (times the width and the largest eigenvalue) are
/// rounding noise of a singular matrix and count as zero. Their roots would otherwise add up to a
/// visible error: √1e-16 is 1e-8, times 2,048 dimensions.
const ROUNDING_UNITS: f64 = 4.0;
/// QR iterations allowed; each eigenvalue needs two or three.
const ITERATIONS_PER_DIM: usize = 64;
/// Columns of a covariance that one task computes.
const BLOCK: usize = 64;

/// Mean, covariance and a root of the covariance of a set of features.
///
/// Fit the reference once and compare it with many sets.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Vectors it was fitted to, where that is known.
    count: Option<usize>,
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
    root: Option<DMatrix<f64>>,
}

impl Gaussian {
    /// Mean and covariance (N−1) of `features`.
    ///
    /// # Errors
    /// Fewer than two vectors.
    pub fn fit(features: &Features) -> Result<Self, MetricsError> {
        let (count, dims) = (features.count(), features.dims());
        if count < 2 {
            let metric = "frechet_distance";
            return Err(MetricsError::TooFewSamples { metric, needed: 2, found: count });
        }
        let mut mean = DVector::zeros(dims);
        for row in features.rows() {
            for (mean, value) in mean.iter_mut().zip(row) {
                *mean += value;
            }
        }
        mean /= count as f64;
        let mut centred = features.matrix();
        for (mut column, &mean) in centred.column_iter_mut().zip(mean.iter()) {
            column.add_scalar_mut(-mean);
        }
        Self::of(mean, covariance(&centred), Some(count))
    }

    /// Of a mean and a covariance that were taken elsewhere, and the number of vectors they are of, where that
    /// is known.
    ///
    /// # Errors
    /// A covariance of another width, or values that are not finite.
    pub fn of(
        mean: DVector<f64>,
        covariance: DMatrix<f64>,
        count: Option<usize>,
    ) -> Result<Self, MetricsError> {
        let (metric, expected) = ("frechet_distance", mean.len());
        for (what, found) in
            [("covariance rows", covariance.nrows()), ("covariance columns", covariance.ncols())]
        {
            if found != expected {
                return Err(MetricsError::Shape { metric, what, expected, found });
            }
        }
        // The mean is row 0 of what is named, the covariance comes after it.
        let rows =
            std::iter::once(mean.as_slice()).chain(covariance.as_slice().chunks(expected.max(1)));
        for (row, values) in rows.enumerate() {
            if let Some(column) = values.iter().position(|v| !v.is_finite()) {
                return Err(MetricsError::NotFinite { metric, row, column });
            }
        }
        Ok(Self { count, mean, covariance, root: None })
    }

    /// The mean.
    pub fn mean(&self) -> &DVector<f64> {
        &self.mean
    }

    /// The covariance.
    pub fn covariance(&self) -> &DMatrix<f64> {
        &self.covariance
    }

    /// Finds the root of the covariance now, so that [`Gaussian::distance`] does not find it every time. The
    /// distances are the same to the bit.
    pub fn prepared(mut self) -> Self {
        self.root = Some(root(&self.covariance));
        self
    }

    /// Number of vectors it was fitted to, where that is known.
    pub fn count(&self) -> Option<usize> {
        self.count
    }

    /// A sentence of warning where there are too few samples for a covariance of full rank: the
    /// distance is then defined, but too large, and comparable only at this very count.
    pub fn warning(&self) -> Option<String> {
        let dims = self.mean.len();
        self.count.filter(|&count| count <= dims).map(|count| {
            format!(
                "{count} samples for {dims} feature dimensions: the covariance is singular and the \
                 Fréchet distance biased upwards; more than {dims} are needed"
            )
        })
    }

    /// The Fréchet distance to another set: 0 where mean and covariance are the same. Symmetric.
    ///
    /// A result below zero can only be rounding, and is given as 0.
    ///
    /// # Errors
    /// Features of another width, or eigenvalues that do not converge.
    pub fn distance(&self, other: &Self) -> Result<f64, MetricsError> {
        let metric = "frechet_distance";
        let (expected, found) = (self.mean.len(), other.mean.len());
        if expected != found {
            return Err(MetricsError::Shape { metric, what: "feature width", expected, found });
        }
        let root = match &self.root {
            Some(root) => Cow::Borrowed(root),
            None => Cow::Owned(root(&self.covariance)),
        };
        let product = parallel_product(&other.covariance, &root);
        let mut inner = parallel_product(&root.transpose(), &product);
        // Rounding leaves the two halves apart by an ulp; the solver reads one half only.
        inner = (&inner + inner.transpose()) * 0.5;
        let eigen = eigen(inner)?;
        let floor = noise_floor(eigen.eigenvalues.as_slice());
        let mut values: Vec<f64> =
            eigen.eigenvalues.iter().copied().filter(|v| *v > floor).collect();
        values.sort_by(f64::total_cmp);
        let trace_of_root: f64 = values.iter().map(|v| v.sqrt()).sum();
        let means = (&self.mean - &other.mean).norm_squared();
        let traces = self.covariance.trace() + other.covariance.trace();
        Ok((means + traces - 2.0 * trace_of_root).max(0.0))
    }
}

/// Fréchet distance between two sets of features.
///
/// # Errors
/// Fewer than two vectors in a set, or as [`Gaussian::distance`].
pub fn frechet_distance(reference: &Features, generated: &Features) -> Result<f64, MetricsError> {
    Gaussian::fit(reference)?.distance(&Gaussian::fit(generated)?)
}

/// `L` with `L·Lᵀ = Σ`, of as many columns as Σ has rank: Cholesky's, the largest pivot first.
fn root(covariance: &DMatrix<f64>) -> DMatrix<f64> {
    let dims = covariance.nrows();
    let mut left = covariance.diagonal();
    let floor = noise_floor(left.as_slice());
    let mut root = DMatrix::zeros(dims, dims);
    for rank in 0..dims {
        let pivot = left.imax();
        if left[pivot] <= floor {
            return root.columns(0, rank).into_owned();
        }
        let (found, mut rest) = root.columns_range_pair_mut(..rank, rank..);
        let mut column = rest.column_mut(0);
        column.copy_from(&covariance.column(pivot));
        column.gemv(-1.0, &found, &found.row(pivot).transpose(), 1.0);
        column /= left[pivot].sqrt();
        left.zip_apply(&column, |left, value| *left -= value * value);
        // Done with, whatever rounding leaves.
        left[pivot] = 0.0;
    }
    root
}

/// Eigenvalues and vectors of a symmetric matrix without negative eigenvalues.
fn eigen(mut matrix: DMatrix<f64>) -> Result<SymmetricEigen<f64, Dyn>, MetricsError> {
    let dims = matrix.nrows();
    // Of such a matrix no entry is larger than the largest of the diagonal.
    let largest = matrix.diagonal().amax();
    if largest == 0.0 {
        let (eigenvectors, eigenvalues) = (DMatrix::identity(dims, dims), DVector::zeros(dims));
        return Ok(SymmetricEigen { eigenvectors, eigenvalues });
    }
    matrix /= largest;
    // The solver squares entries; those of a block that is rounding alone (features that are constant in the
    // other set) underflow, and it divides nought by nought. Lifted by a rounding they do not.
    for i in 0..dims {
        matrix[(i, i)] += f64::EPSILON;
    }
    let eigen = SymmetricEigen::try_new(matrix, f64::EPSILON, ITERATIONS_PER_DIM * dims);
    let finite = |eigen: &SymmetricEigen<f64, Dyn>| eigen.eigenvalues.iter().all(|v| v.is_finite());
    let metric = "frechet_distance";
    let mut eigen = eigen.filter(finite).ok_or(MetricsError::NoConvergence { metric, dims })?;
    eigen.eigenvalues.apply(|value| *value = (*value - f64::EPSILON) * largest);
    Ok(eigen)
}

/// Below this an eigenvalue, or a pivot, is rounding.
fn noise_floor(eigenvalues: &[f64]) -> f64 {
    let largest = eigenvalues.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    ROUNDING_UNITS * f64::EPSILON * eigenvalues.len() as f64 * largest
}

/// `XᵀX/(n−1)` of centred rows.
fn covariance(centred: &DMatrix<f64>) -> DMatrix<f64> {
    let scale = 1.0 / (centred.nrows() as f64 - 1.0);
    parallel_product(&centred.transpose(), centred) * scale
}

/// `a·b`, a block of columns per task; a block does not depend on how many threads there are.
pub(super) fn parallel_product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    let blocks: Vec<DMatrix<f64>> = (0..b.ncols().div_ceil(BLOCK))
        .into_par_iter()
        .map(|i| a * b.columns(i * BLOCK, BLOCK.min(b.ncols() - i * BLOCK)))
        .collect();
    let mut out = DMatrix::zeros(a.nrows(), b.ncols());
    for (i, block) in blocks.iter().enumerate() {
        out.columns_mut(i * BLOCK, block.ncols()).copy_from(block);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::spread::tests::noise;

    /// Roundings of f64 through two decompositions, relative to distances of order 1 and more.
    const RELATIVE: f64 = 1e-9;

    /// Rounding of a few hundred sums and one root of a clamped eigenvalue.
    const SELF_DISTANCE: f64 = 1e-7;

    fn features(count: usize, dims: usize, seed: u64) -> Features {
        Features::new(noise(count * dims, seed), dims).unwrap()
    }

    #[test]
    fn a_set_is_at_no_distance_from_itself() {
        for (count, dims) in [(50, 8), (200, 64), (20, 70)] {
            let set = features(count, dims, 1);
            let distance = frechet_distance(&set, &set).unwrap();
            assert!(distance < SELF_DISTANCE, "{count}x{dims}: {distance:e}");
        }
    }

    #[test]
    fn a_shift_counts_by_its_square_and_a_scale_by_the_roots() {
        let set = features(300, 6, 2);
        let shifted: Vec<f64> = set.values().iter().map(|v| v + 0.5).collect();
        let shifted = Features::new(shifted, 6).unwrap();
        let distance = frechet_distance(&set, &shifted).unwrap();
        assert!((distance - 6.0 * 0.25).abs() < RELATIVE, "{distance}");
        // Scaling by s leaves tr Σ(1−s)² plus the moved mean.
        let fit = Gaussian::fit(&set).unwrap();
        let doubled: Vec<f64> = set.values().iter().map(|v| v * 2.0).collect();
        let doubled = Features::new(doubled, 6).unwrap();
        let want = fit.covariance.trace() + fit.mean.norm_squared();
        let distance = frechet_distance(&set, &doubled).unwrap();
        assert!((distance - want).abs() < RELATIVE * want, "{distance} {want}");
    }

    #[test]
    fn order_of_sets_and_threads_do_not_matter() {
        let (a, b) = (features(120, 40, 3), features(90, 40, 4));
        let forward = frechet_distance(&a, &b).unwrap();
        let backward = frechet_distance(&b, &a).unwrap();
        assert!((forward - backward).abs() < RELATIVE * forward);
        let prepared = Gaussian::fit(&a).unwrap().prepared();
        let again = prepared.distance(&Gaussian::fit(&b).unwrap()).unwrap();
        assert_eq!(forward.to_bits(), again.to_bits());
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| frechet_distance(&a, &b).unwrap())
        };
        assert_eq!(on(1).to_bits(), on(2).to_bits());
    }

    #[test]
    fn features_that_hardly_vary_leave_the_others_their_distance() {
        // The squares of such covariances underflow; so it is with sets of thousands of features, some constant.
        let (count, dims, tiny) = (40, 5, 1e-80);
        let set = |seed: u64, dims: usize| -> Vec<f64> {
            let value = |(i, v): (usize, f64)| if i % dims < 2 { v } else { tiny * v };
            noise(count * dims, seed).into_iter().enumerate().map(value).collect()
        };
        let of = |seed| Features::new(set(seed, dims), dims).unwrap();
        let first = |seed| {
            let values = set(seed, dims);
            let rows = values.chunks(dims).flat_map(|row| row[..2].to_vec());
            Features::new(rows.collect(), 2).unwrap()
        };
        let whole = frechet_distance(&of(1), &of(2)).unwrap();
        let alone = frechet_distance(&first(1), &first(2)).unwrap();
        assert!((whole - alone).abs() < RELATIVE * alone, "{whole} {alone}");
        // Taken by the root of either: there one set's covariance is lost before the eigenvalues, here not.
        let (varies, hardly) = (features(count, dims, 3), of(2));
        let (there, back) = (
            frechet_distance(&hardly, &varies).unwrap(),
            frechet_distance(&varies, &hardly).unwrap(),
        );
        assert!((there - back).abs() < RELATIVE * there, "{there} {back}");
        let constant = Features::new(vec![3.0; count * dims], dims).unwrap();
        assert_eq!(frechet_distance(&constant, &constant).unwrap(), 0.0);
        let to = frechet_distance(&of(1), &constant).unwrap();
        let fit = Gaussian::fit(&of(1)).unwrap();
        let want = fit.covariance.trace() + fit.mean.add_scalar(-3.0).norm_squared();
        assert!((to - want).abs() < RELATIVE * want, "{to} {want}");
    }

    #[test]
    fn a_block_whose_squares_underflow_leaves_the_others_their_eigenvalues() {
        let tiny = |i: usize, j: usize| 1e-160 * ((i * j) as f64).sin();
        let matrix = DMatrix::from_fn(5, 5, |i, j| match (i < 2, j < 2) {
            (false, false) => tiny(i, j),
            _ => f64::from(u8::from(i == j)),
        });
        // As it is, the solver finds two that are no numbers.
        let mut values = eigen(matrix).unwrap().eigenvalues.as_slice().to_vec();
        values.sort_by(f64::total_cmp);
        assert!(values[..3].iter().all(|v| v.abs() < SELF_DISTANCE), "{values:?}");
        assert!(values[3..].iter().all(|v| (v - 1.0).abs() < RELATIVE), "{values:?}");
        let broken = DMatrix::from_element(2, 2, f64::INFINITY);
        assert!(matches!(eigen(broken), Err(MetricsError::NoConvergence { .. })));
    }

    #[test]
    fn too_few_samples_are_an_error_or_a_warning() {
        assert!(Gaussian::fit(&features(1, 4, 5)).is_err());
        let few = Gaussian::fit(&features(4, 4, 5)).unwrap();
        assert!(few.warning().unwrap().contains("4 samples for 4"));
        assert_eq!(Gaussian::fit(&features(5, 4, 5)).unwrap().warning(), None);
        assert!(few.distance(&Gaussian::fit(&features(9, 3, 5)).unwrap()).is_err());
    }
}
