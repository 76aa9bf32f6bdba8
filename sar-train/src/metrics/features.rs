//! A set of feature vectors, validated on creation.

use super::MetricsError;
use nalgebra::DMatrix;
use std::borrow::Cow;

/// Feature vectors `[n, dims]`, row-major, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    values: Vec<f64>,
    dims: usize,
}

impl Features {
    /// Takes `values` as rows of `dims` features.
    ///
    /// # Errors
    /// `dims` is zero, the length is not whole rows, or a value is not finite.
    pub fn new(values: Vec<f64>, dims: usize) -> Result<Self, MetricsError> {
        let metric = "features";
        if dims == 0 || !values.len().is_multiple_of(dims) {
            let expected = values.len().next_multiple_of(dims.max(1)).max(1);
            let found = values.len();
            return Err(MetricsError::Shape { metric, what: "values", expected, found });
        }
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(MetricsError::NotFinite { metric, row: at / dims, column: at % dims }),
            None => Ok(Self { values, dims }),
        }
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.values.len() / self.dims
    }

    /// Number of features per vector.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Returns one vector; `None` past the last.
    pub fn row(&self, index: usize) -> Option<&[f64]> {
        self.values.get(index.checked_mul(self.dims)?..)?.get(..self.dims)
    }

    /// Returns all vectors in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.dims)
    }

    /// Returns the first `count` vectors, or all if there are fewer.
    pub fn first(&self, count: usize) -> Self {
        let len = count.min(self.count()) * self.dims;
        Self { values: self.values[..len].to_vec(), dims: self.dims }
    }

    /// Returns the vectors at `indices`, in that order; indices past the last are left out.
    pub fn select(&self, indices: &[usize]) -> Self {
        let values = indices.iter().filter_map(|&i| self.row(i)).flatten().copied().collect();
        Self { values, dims: self.dims }
    }

    /// Returns all values, row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Returns the vectors as a matrix `[n, dims]`, for linear algebra.
    pub(super) fn matrix(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.count(), self.dims, &self.values)
    }
}

impl From<Features> for Cow<'_, Features> {
    fn from(features: Features) -> Self {
        Cow::Owned(features)
    }
}

impl<'a> From<&'a Features> for Cow<'a, Features> {
    fn from(features: &'a Features) -> Self {
        Cow::Borrowed(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_features_are_named() {
        let at = Features::new(vec![0.0, 1.0, 2.0, f64::INFINITY], 2).unwrap_err();
        assert_eq!(at, MetricsError::NotFinite { metric: "features", row: 1, column: 1 });
        assert!(Features::new(vec![0.0; 5], 2).is_err());
        assert!(Features::new(vec![0.0; 5], 0).is_err());
    }

    #[test]
    fn selection_keeps_whole_rows() {
        let all = Features::new((0..6).map(f64::from).collect(), 2).unwrap();
        assert_eq!(all.first(2).values(), &[0.0, 1.0, 2.0, 3.0]);
        assert_eq!(all.first(9).count(), 3);
        assert_eq!(all.select(&[2, 0]).values(), &[4.0, 5.0, 0.0, 1.0]);
        assert_eq!(all.row(3), None);
    }
}
