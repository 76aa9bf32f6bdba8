//! Matrix products: views with strides, handed to the `gemm` crate.

use crate::Element;

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
}

/// `c = alpha·a·b + beta·c`, on one thread or on the pool.
///
/// `beta` 0 never reads c. An element of c is the same to the bit whatever `parallel` is, and
/// whatever number of rows of a there are.
pub(crate) fn matmul<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: MatMut<'_, T>,
    parallel: bool,
) {
    assert!(a.cols == b.rows && a.rows == c.rows && b.cols == c.cols, "matmul: inner shapes");
    let last = |rows: usize, cols: usize, rs: usize, cs: usize| {
        if rows == 0 || cols == 0 { 0 } else { (rows - 1) * rs + (cols - 1) * cs + 1 }
    };
    assert!(last(a.rows, a.cols, a.row_stride, a.col_stride) <= a.data.len(), "matmul: a");
    assert!(last(b.rows, b.cols, b.row_stride, b.col_stride) <= b.data.len(), "matmul: b");
    assert!(last(c.rows, c.cols, c.row_stride, 1) <= c.data.len(), "matmul: c");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: the three views were just checked to lie within their slices; c is a unique borrow, so
    // it overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.row_stride as isize,
            beta != T::zero(),
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
