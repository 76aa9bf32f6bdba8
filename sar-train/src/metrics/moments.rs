//! Mean and covariance of more features than fit into memory at once.

use super::frechet::parallel_product;
use super::{Gaussian, MetricsError};
use nalgebra::{DMatrix, DVector};

/// Number of rows summed at a time: enough for a product, but small compared with the sums.
const BLOCK: usize = 512;

/// Sums over features that are given row by row; the result does not depend on how many are given
/// at a time.
///
/// Deviations from the mean of the first block are summed, so that large means cost no precision.
#[derive(Clone, Debug)]
pub struct Moments {
    dims: usize,
    count: usize,
    /// Rows that have not been summed yet, fewer than [`BLOCK`].
    waiting: Vec<f64>,
    origin: Option<DVector<f64>>,
    /// Sums of the deviations and of their products.
    sum: DVector<f64>,
    products: DMatrix<f64>,
}

impl Moments {
    /// Creates empty sums for this number of features.
    pub fn new(dims: usize) -> Self {
        Self {
            dims,
            count: 0,
            waiting: Vec::new(),
            origin: None,
            sum: DVector::zeros(dims),
            products: DMatrix::zeros(dims, dims),
        }
    }

    /// Adds whole rows.
    ///
    /// # Errors
    /// The values are not whole rows, or not finite.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), MetricsError> {
        let (metric, dims) = ("frechet_distance", self.dims);
        if dims == 0 || !rows.len().is_multiple_of(dims) {
            let expected = rows.len().next_multiple_of(dims.max(1)).max(1);
            let found = rows.len();
            return Err(MetricsError::Shape { metric, what: "values", expected, found });
        }
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            let (row, column) = (self.count + at / dims, at % dims);
            return Err(MetricsError::NotFinite { metric, row, column });
        }
        self.count += rows.len() / dims;
        for row in rows.chunks_exact(dims) {
            self.waiting.extend(row.iter().map(|&v| f64::from(v)));
            if self.waiting.len() == BLOCK * dims {
                self.take_up();
            }
        }
        Ok(())
    }

    /// Sums the waiting rows.
    fn take_up(&mut self) {
        let mut rows =
            DMatrix::from_row_slice(self.waiting.len() / self.dims, self.dims, &self.waiting);
        self.waiting.clear();
        let origin = self.origin.get_or_insert_with(|| rows.row_mean().transpose());
        for (mut column, &origin) in rows.column_iter_mut().zip(origin.iter()) {
            column.add_scalar_mut(-origin);
        }
        for (sum, column) in self.sum.iter_mut().zip(rows.column_iter()) {
            *sum += column.sum();
        }
        self.products += parallel_product(&rows.transpose(), &rows);
    }

    /// Returns mean and covariance (N−1).
    ///
    /// # Errors
    /// There are fewer than two rows.
    pub fn gaussian(mut self) -> Result<Gaussian, MetricsError> {
        if self.count < 2 {
            let (metric, found) = ("frechet_distance", self.count);
            return Err(MetricsError::TooFewSamples { metric, needed: 2, found });
        }
        if !self.waiting.is_empty() {
            self.take_up();
        }
        let count = self.count as f64;
        let off = self.sum / count;
        // Σ(x−m)(x−m)ᵀ = Σ(x−o)(x−o)ᵀ − n·(m−o)(m−o)ᵀ, in place.
        self.products.ger(-count, &off, &off, 1.0);
        let covariance = self.products / (count - 1.0);
        let mean = match self.origin {
            Some(origin) => origin + off,
            None => off,
        };
        Gaussian::of(mean, covariance, Some(self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Features;
    use crate::metrics::spread::tests::noise;

    /// f64 rounding errors in sums of a thousand terms, of numbers of order 1 about a mean of
    /// 1,000.
    const ROUNDING: f64 = 1e-9;

    #[test]
    fn any_pieces_give_the_mean_and_covariance_of_all() {
        let dims = 5;
        // The means are large compared with the spread of 1, which would hurt naive sums of
        // squares.
        let values: Vec<f32> =
            noise((2 * BLOCK + 37) * dims, 3).iter().map(|v| (1000.0 + v) as f32).collect();
        let of = |rows: usize| {
            let mut moments = Moments::new(dims);
            values.chunks(rows * dims).try_for_each(|piece| moments.add(piece)).unwrap();
            moments.gaussian().unwrap()
        };
        let whole = of(usize::MAX / dims);
        let wide = values.iter().map(|&v| f64::from(v)).collect();
        let plain = Gaussian::fit(&Features::new(wide, dims).unwrap()).unwrap();
        assert!((whole.mean() - plain.mean()).amax() < ROUNDING);
        assert!((whole.covariance() - plain.covariance()).amax() < ROUNDING);
        for rows in [1, 7, BLOCK] {
            let pieces = of(rows);
            assert_eq!((pieces.mean(), pieces.covariance()), (whole.mean(), whole.covariance()));
        }
    }

    #[test]
    fn what_is_no_row_is_an_error() {
        let mut moments = Moments::new(2);
        assert!(moments.add(&[0.0; 3]).is_err());
        let at = moments.add(&[0.0, 0.0, 1.0, f32::NAN]).unwrap_err();
        assert_eq!(at, MetricsError::NotFinite { metric: "frechet_distance", row: 1, column: 1 });
        moments.add(&[0.0; 2]).unwrap();
        assert!(moments.gaussian().is_err(), "one row");
    }
}
