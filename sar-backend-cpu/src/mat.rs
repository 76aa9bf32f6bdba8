//! Views of matrices with strides, and what a product is added to.

use crate::Element;
use crate::transpose::Transpose;
use core::ops::Range;

/// A read-only matrix view.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    /// Elements, the first of the view at index 0.
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix whose rows lie next to each other.
    pub(crate) fn rows(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix with `row_stride` elements from row to row.
    pub(crate) fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Rows `range` alone.
    pub(crate) fn some_rows(self, range: Range<usize>) -> Self {
        Self { data: tail(self.data, range.start * self.row_stride), rows: range.len(), ..self }
    }

    /// Row i, whose elements must lie next to each other.
    #[inline(always)]
    pub(crate) fn row(self, i: usize) -> &'a [T] {
        debug_assert_eq!(self.col_stride, 1, "a row in one piece");
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

impl<T: Element> Mat<'_, T> {
    /// Copies the transpose: row j of `to`, which begins at `j·to_stride`, receives column j. Elements of a
    /// row must lie next to each other.
    pub(crate) fn transpose_into(self, to: &mut [T], to_stride: usize) {
        let Self { data: from, rows, cols, row_stride: stride, col_stride } = self;
        debug_assert_eq!(col_stride, 1, "rows in one piece");
        T::transpose(Transpose { from, rows, cols, stride, to, to_stride });
    }
}

/// A matrix view to write, row-major.
pub(crate) struct MatMut<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix whose rows lie next to each other.
    pub(crate) fn rows(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols }
    }

    /// A row-major matrix with `row_stride` elements from row to row.
    pub(crate) fn strided(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride }
    }
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Onto<'a, T> {
    /// Nothing: c is not read.
    Nothing,
    /// What c holds.
    Itself,
    /// This row, the same for every row of c, which is not read: a bias.
    Row(&'a [T]),
}

impl<'a, T: Element> Onto<'a, T> {
    /// For the columns of c from `first` on.
    pub(crate) fn columns_from(self, first: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[first..]),
            other => other,
        }
    }
}

/// What lies behind the first `len` elements; nothing where there are fewer.
pub(crate) fn tail<T>(data: &[T], len: usize) -> &[T] {
    &data[len.min(data.len())..]
}
