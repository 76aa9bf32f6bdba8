//! Matrices: ndarray's views of an op's flat operands, and what a product is added to.
//!
//! An op checks its operands at the door and is given their dimensions; a slice that is too short
//! for its matrix is a bug in this crate and panics.

use crate::Element;
use crate::transpose::Transpose;
use core::ops::Range;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, ShapeBuilder, s};

/// A row-major matrix whose rows lie next to each other.
pub(crate) fn matrix<T>(data: &[T], rows: usize, cols: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, cols), data).expect("a matrix within its slice")
}

/// A row-major matrix with `stride` elements from row to row.
pub(crate) fn strided<T>(data: &[T], rows: usize, cols: usize, stride: usize) -> ArrayView2<'_, T> {
    let view = if rows == 0 || cols == 0 {
        ArrayView2::from_shape((rows, cols), &data[..0])
    } else {
        ArrayView2::from_shape((rows, cols).strides((stride, 1)), data)
    };
    view.expect("a matrix within its slice")
}

/// As [`matrix`], for writing.
pub(crate) fn matrix_mut<T>(data: &mut [T], rows: usize, cols: usize) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((rows, cols), data).expect("a matrix within its slice")
}

/// As [`strided`], for writing.
pub(crate) fn strided_mut<T>(
    data: &mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
) -> ArrayViewMut2<'_, T> {
    let view = if rows == 0 || cols == 0 {
        ArrayViewMut2::from_shape((rows, cols), &mut data[..0])
    } else {
        ArrayViewMut2::from_shape((rows, cols).strides((stride, 1)), data)
    };
    view.expect("a matrix within its slice")
}

/// The rows in `range`.
pub(crate) fn some_rows<T>(of: ArrayView2<'_, T>, range: Range<usize>) -> ArrayView2<'_, T> {
    of.slice_move(s![range, ..])
}

/// The first `cols` columns.
pub(crate) fn first_columns<T>(of: ArrayView2<'_, T>, cols: usize) -> ArrayView2<'_, T> {
    of.slice_move(s![.., ..cols])
}

/// Row i, whose elements must lie next to each other.
#[inline(always)]
pub(crate) fn row_slice<T>(of: ArrayView2<'_, T>, i: usize) -> &[T] {
    of.index_axis_move(Axis(0), i).to_slice().expect("a row in one piece")
}

/// Copies the transpose: row j of `to`, which begins at `j·to_stride`, receives column j. Elements of a row
/// must lie next to each other.
pub(crate) fn transpose<T: Element>(from: ArrayView2<'_, T>, to: &mut [T], to_stride: usize) {
    T::transpose(Transpose { from, to, to_stride });
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

impl<'a, T> Onto<'a, T> {
    /// Splits into what the first `columns` columns of c and what the others are added to.
    pub(crate) fn split_at(self, columns: usize) -> (Self, Self) {
        match self {
            Self::Row(row) => {
                let (first, others) = row.split_at(columns);
                (Self::Row(first), Self::Row(others))
            }
            Self::Nothing => (Self::Nothing, Self::Nothing),
            Self::Itself => (Self::Itself, Self::Itself),
        }
    }
}
