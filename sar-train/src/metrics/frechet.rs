//! Fréchet distance between two sets of features, each modelled as a Gaussian (Heusel et al. 2017).
//!
//! `d² = ‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2·tr (Σ_a Σ_b)^½`, covariances with N−1. For any
//! `L_a·L_aᵀ = Σ_a` and `L_b·L_bᵀ = Σ_b` the last trace is the sum of the singular values of
//! `L_bᵀ·L_a`. This needs no complex square root, and no square whose small eigenvalues are lost
//! next to the large ones. The roots are Cholesky factors with as many columns as the covariance
//! has rank; for a few vectors of thousands of features they are small.

use super::{Features, MetricsError};
use nalgebra::{DMatrix, DVector, SVD};
use rayon::prelude::*;
use std::borrow::Cow;

/// Pivots below this many units of rounding (times the width and the largest variance) are rounding
/// noise of a singular matrix and count as zero.
const ROUNDING_UNITS: f64 = 4.0;
/// Maximum number of QR iterations per dimension; each singular value needs two or three.
const ITERATIONS_PER_DIM: usize = 64;
/// Tolerated asymmetry, relative to the largest variance: the rounding of a file of f32.
const ASYMMETRY: f64 = 1e-5;
/// Number of columns of a covariance that one task computes.
const BLOCK: usize = 64;

/// Mean, covariance and a root of the covariance of a set of features.
///
/// Fit the reference once and compare it with many sets.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Number of vectors it was fitted to, if known.
    count: Option<usize>,
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
    root: Option<DMatrix<f64>>,
}

impl Gaussian {
    /// Fits mean and covariance (N−1) of `features`.
    ///
    /// # Errors
    /// There are fewer than two vectors.
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

    /// Creates a Gaussian from a mean and a covariance computed elsewhere, and the number of
    /// vectors that they were computed from, if known.
    ///
    /// # Errors
    /// The covariance has another width or is not a covariance, or values are not finite.
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
        // In the error, row 0 is the mean, and the rows of the covariance follow.
        let rows =
            std::iter::once(mean.as_slice()).chain(covariance.as_slice().chunks(expected.max(1)));
        for (row, values) in rows.enumerate() {
            if let Some(column) = values.iter().position(|v| !v.is_finite()) {
                return Err(MetricsError::NotFinite { metric, row, column });
            }
        }
        check_covariance(&covariance)?;
        Ok(Self { count, mean, covariance, root: None })
    }

    /// Returns the mean.
    pub fn mean(&self) -> &DVector<f64> {
        &self.mean
    }

    /// Returns the covariance.
    pub fn covariance(&self) -> &DMatrix<f64> {
        &self.covariance
    }

    /// Computes the root of the covariance now, so that [`Gaussian::distance`] need not compute it
    /// every time. The distances are the same to the bit.
    pub fn prepared(mut self) -> Self {
        self.root = Some(root(&self.covariance));
        self
    }

    /// Number of vectors it was fitted to, if known.
    pub fn count(&self) -> Option<usize> {
        self.count
    }

    /// Returns a warning if there are too few samples for a covariance of full rank: the distance
    /// is then defined, but too large, and comparable only with the same number of samples.
    pub fn warning(&self) -> Option<String> {
        let dims = self.mean.len();
        self.count.filter(|&count| count <= dims).map(|count| {
            format!(
                "{count} samples for {dims} feature dimensions: the covariance is singular and the \
                 Fréchet distance biased upwards; more than {dims} are needed"
            )
        })
    }

    /// Returns the root of the covariance.
    fn root(&self) -> Cow<'_, DMatrix<f64>> {
        match &self.root {
            Some(root) => Cow::Borrowed(root),
            None => Cow::Owned(root(&self.covariance)),
        }
    }

    /// Returns the Fréchet distance to another set: 0 if mean and covariance are equal. Symmetric.
    ///
    /// A negative result can only be due to rounding, and is returned as 0.
    ///
    /// # Errors
    /// The numbers of features differ, or singular values do not converge.
    pub fn distance(&self, other: &Self) -> Result<f64, MetricsError> {
        let metric = "frechet_distance";
        let (expected, found) = (self.mean.len(), other.mean.len());
        if expected != found {
            return Err(MetricsError::Shape { metric, what: "feature width", expected, found });
        }
        let product = parallel_product(&other.root().transpose(), &self.root());
        let trace_of_root = sum_of_singular_values(product)?;
        let means = (&self.mean - &other.mean).norm_squared();
        let traces = self.covariance.trace() + other.covariance.trace();
        Ok((means + traces - 2.0 * trace_of_root).max(0.0))
    }
}

/// Refuses matrices that cannot be covariances: with negative variances, or asymmetric by more than
/// rounding.
fn check_covariance(covariance: &DMatrix<f64>) -> Result<(), MetricsError> {
    let metric = "frechet_distance";
    let dims = covariance.nrows();
    let largest = covariance.diagonal().amax();
    for column in 0..dims {
        if covariance[(column, column)] < 0.0 {
            return Err(MetricsError::NoCovariance { metric, row: column, column });
        }
        for row in 0..column {
            let off = covariance[(row, column)] - covariance[(column, row)];
            if off.abs() > ASYMMETRY * largest {
                return Err(MetricsError::NoCovariance { metric, row, column });
            }
        }
    }
    Ok(())
}

/// Returns `L` with `L·Lᵀ = Σ` and as many columns as Σ has rank, by Cholesky decomposition with
/// pivoting.
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
        // This pivot is finished, whatever rounding has left of it.
        left[pivot] = 0.0;
    }
    root
}

/// Returns the bound below which a pivot is rounding noise.
fn noise_floor(variances: &[f64]) -> f64 {
    let largest = variances.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    ROUNDING_UNITS * f64::EPSILON * variances.len() as f64 * largest
}

/// Returns the sum of the singular values of a matrix.
fn sum_of_singular_values(matrix: DMatrix<f64>) -> Result<f64, MetricsError> {
    let dims = matrix.nrows().max(matrix.ncols());
    if matrix.is_empty() {
        return Ok(0.0);
    }
    let found =
        SVD::try_new_unordered(matrix, false, false, f64::EPSILON, ITERATIONS_PER_DIM * dims);
    let sum = found.map(|found| found.singular_values.sum()).filter(|sum| sum.is_finite());
    sum.ok_or(MetricsError::NoConvergence { metric: "frechet_distance", dims })
}

/// Computes the Fréchet distance between two sets of features.
///
/// # Errors
/// A set has fewer than two vectors; or as for [`Gaussian::distance`].
pub fn frechet_distance(reference: &Features, generated: &Features) -> Result<f64, MetricsError> {
    Gaussian::fit(reference)?.distance(&Gaussian::fit(generated)?)
}

/// Computes `XᵀX/(n−1)` of centred rows.
fn covariance(centred: &DMatrix<f64>) -> DMatrix<f64> {
    let scale = 1.0 / (centred.nrows() as f64 - 1.0);
    parallel_product(&centred.transpose(), centred) * scale
}

/// Computes `a·b`, a block of columns per task; the blocks do not depend on the number of threads.
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

    /// f64 rounding errors through two decompositions, relative to distances of order 1 and more.
    const RELATIVE: f64 = 1e-9;

    /// Rounding of sums of a few hundred terms and their singular values.
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
        // The squares of such covariances underflow, as with sets of thousands of features, some of
        // them constant.
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
        // The result does not depend on which one is the reference.
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
    fn directions_of_little_variance_count() {
        // Variances that fall by seven decades, as those of images do: the distance of a set from
        // itself is 0, and that to the set scaled equally in every direction is given by the
        // formula.
        let dims = 400;
        let set = |by: f64| {
            let variances = DVector::from_fn(dims, |i, _| by * ((i + 1) as f64).powf(-2.7));
            Gaussian::of(DVector::zeros(dims), DMatrix::from_diagonal(&variances), None).unwrap()
        };
        let (one, four) = (set(1.0), set(4.0));
        let trace = one.covariance().trace();
        assert!(one.distance(&one).unwrap() < RELATIVE * trace);
        assert!((one.distance(&four).unwrap() - trace).abs() < RELATIVE * trace);
        let random = features(2 * dims, dims, 7);
        let steep = random.values().iter().enumerate();
        let steep = steep.map(|(i, v)| v * ((i % dims + 1) as f64).powf(-1.35)).collect();
        let steep = Features::new(steep, dims).unwrap();
        let trace = Gaussian::fit(&steep).unwrap().covariance().trace();
        assert!(frechet_distance(&steep, &steep).unwrap() < RELATIVE * trace);
    }

    #[test]
    fn what_is_no_covariance_is_an_error() {
        let of = |values: &[f64]| {
            let covariance = DMatrix::from_row_slice(2, 2, values);
            Gaussian::of(DVector::zeros(2), covariance, None)
        };
        assert!(of(&[1.0, 0.5, 0.5, 1.0]).is_ok());
        assert!(matches!(of(&[1.0, 0.5, 0.0, 1.0]), Err(MetricsError::NoCovariance { .. })));
        assert!(matches!(of(&[-1.0, 0.0, 0.0, 1.0]), Err(MetricsError::NoCovariance { .. })));
        assert!(of(&[1.0, f64::NAN, f64::NAN, 1.0]).is_err());
        assert!(sum_of_singular_values(DMatrix::from_element(2, 2, f64::INFINITY)).is_err());
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
