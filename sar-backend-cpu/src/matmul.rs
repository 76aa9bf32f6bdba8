//! Matrix products: views with strides, handed to the `gemm` crate.

use crate::Element;
use crate::simd::{Shared, carve, sum2, vectorized, with_scratch};
use rayon::prelude::*;

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

/// A row-major part of c; parts that are written at the same time do not overlap.
#[derive(Clone, Copy)]
struct Part<'p, 'c, T> {
    shared: &'p Shared<'c, T>,
    /// First element.
    start: usize,
    row_stride: usize,
}

impl<T> Part<'_, '_, T> {
    /// What begins `elements` further on.
    fn at(self, elements: usize) -> Self {
        Self { start: self.start + elements, ..self }
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

/// Terms added up in registers before they go to c. The crate's choice depends on the number of
/// rows; a product of at most this many terms is done in one piece whatever it chooses.
const DEPTH: usize = 512;

/// Up to so many elements of c the crate has a kernel of its own for products of contiguous rows,
/// which adds in another order.
const SMALL: usize = 16 * 16;

/// Width of the crate's tiles.
const TILE: usize = 64;

/// Products of fewer multiplications are not worth handing to another thread.
const TASK: usize = 1 << 19;

/// `c = alpha·a·b + beta·c`, on one thread or on the pool.
///
/// `beta` 0 never reads c. An element of c is the same to the bit whatever `parallel` is, and
/// whatever number of rows of a there are: the crate's kernels add in an order that does not depend
/// on the tile, and the cases where it would choose another algorithm because there are few rows are
/// led around here (long inner dimensions are cut; a single row or a tiny c gets more rows).
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
    // Rows from which on the crate takes neither its vector nor its tiny-product path.
    let few = if b.row_stride == 1 { 2.max(SMALL / c.cols + 1) } else { 2 };
    let needed = if a.col_stride == 1 { few } else { 2 };
    if c.cols == 1 {
        column(alpha, a, b, beta, c);
    } else if c.rows < needed {
        with_more_rows(alpha, a, b, beta, c, few);
    } else {
        split(alpha, a, b, beta, c, parallel);
    }
}

/// Shares the product out over the threads, by columns of c, or by rows where a is transposed or c has
/// too few columns for every thread: each then rearranges for itself a part of the operand that takes
/// longest.
fn split<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: MatMut<'_, T>,
    parallel: bool,
) {
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let narrow = c.cols < 2 * TILE * threads && c.rows > c.cols;
    let by_rows = c.cols < 2 * TILE || narrow || (a.col_stride != 1 && c.rows >= 2 * TILE);
    let (extent, other) = if by_rows { (c.rows, c.cols) } else { (c.cols, c.rows) };
    // A part has whole tiles and more than SMALL elements, so that the crate takes the same path as
    // for the whole.
    let tiles = extent / TILE;
    let least = (SMALL / other + 1).div_ceil(TILE);
    let work = extent.saturating_mul(other).saturating_mul(a.cols);
    let parts = threads.min(work / TASK).min(tiles / least).max(1);
    let stride = c.row_stride;
    let (a_all, b_all, shared) = (a, b, Shared::new(c.data));
    let c = Part { shared: &shared, start: 0, row_stride: stride };
    let start = |part| if part == parts { extent } else { tiles * part / parts * TILE };
    let product = |part: usize| {
        let (from, count) = (start(part), start(part + 1) - start(part));
        if by_rows {
            let a = Mat { data: &a_all.data[from * a_all.row_stride..], rows: count, ..a_all };
            cut(alpha, a, b_all, beta, c.at(from * stride));
        } else {
            let b = Mat { data: &b_all.data[from * b_all.col_stride..], cols: count, ..b_all };
            cut(alpha, a_all, b, beta, c.at(from));
        }
    };
    if parts == 1 {
        product(0);
    } else {
        (0..parts).into_par_iter().for_each(product);
    }
}

/// A product with a vector: one dot product per row.
fn column<T: Element>(alpha: T, a: Mat<'_, T>, b: Mat<'_, T>, beta: T, c: MatMut<'_, T>) {
    let depth = a.cols;
    with_scratch(2 * depth, |scratch: &mut [T]| {
        let [row, vector] = carve(scratch, [depth, depth]);
        for k in 0..depth {
            vector[k] = b.data[k * b.row_stride];
        }
        for i in 0..c.rows {
            for k in 0..depth {
                row[k] = a.data[i * a.row_stride + k * a.col_stride];
            }
            let product = alpha
                * vectorized(
                    #[inline(always)]
                    || sum2(row, vector, |a, b| a * b),
                );
            let c = &mut c.data[i * c.row_stride];
            *c = if beta == T::zero() { product } else { beta * *c + product };
        }
    });
}

/// The product with rows of zeros appended to a and c.
fn with_more_rows<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    beta: T,
    c: MatMut<'_, T>,
    rows: usize,
) {
    let (depth, cols) = (a.cols, c.cols);
    with_scratch(rows * (depth + cols), |scratch: &mut [T]| {
        scratch.fill(T::zero());
        let [more_a, more_c] = carve(scratch, [rows * depth, rows * cols]);
        for i in 0..c.rows {
            for k in 0..depth {
                more_a[i * depth + k] = a.data[i * a.row_stride + k * a.col_stride];
            }
            if beta != T::zero() {
                let row = i * c.row_stride;
                more_c[i * cols..][..cols].copy_from_slice(&c.data[row..row + cols]);
            }
        }
        let a = Mat::rows(more_a, rows, depth);
        let shared = Shared::new(more_c);
        cut(alpha, a, b, beta, Part { shared: &shared, start: 0, row_stride: cols });
        for i in 0..c.rows {
            c.data[i * c.row_stride..][..cols].copy_from_slice(&more_c[i * cols..][..cols]);
        }
    });
}

/// Hands a part of a product to the crate in pieces of at most [`DEPTH`]
/// terms of nearly equal size. Parts that run at the same time do not overlap.
fn cut<T: Element>(alpha: T, a: Mat<'_, T>, b: Mat<'_, T>, mut beta: T, c: Part<'_, '_, T>) {
    let pieces = a.cols.div_ceil(DEPTH).max(1);
    let size = a.cols.div_ceil(pieces);
    for piece in 0..pieces {
        let first = piece * size;
        let depth = size.min(a.cols - first);
        let a = Mat { data: tail(a.data, first * a.col_stride), cols: depth, ..a };
        let b = Mat { data: tail(b.data, first * b.row_stride), rows: depth, ..b };
        if b.row_stride == 1 && b.col_stride != 1 {
            by_panels(alpha, a, b, beta, c);
        } else {
            whole(alpha, a, b, beta, c);
        }
        beta = T::one();
    }
}

/// What lies behind the first `len` elements; nothing where there are fewer.
fn tail<T>(data: &[T], len: usize) -> &[T] {
    &data[len.min(data.len())..]
}

/// The product with b rearranged: its columns a tile at a time, row behind row.
///
/// The crate does so itself where b is transposed, as weights are, but in an order that waits for
/// memory: with few rows of a, as in sampling, a quarter of all time.
fn by_panels<T: Element>(alpha: T, a: Mat<'_, T>, b: Mat<'_, T>, beta: T, c: Part<'_, '_, T>) {
    // The last panel has what is left over as well: a panel of one column is no matrix to the crate.
    let panels = (b.cols / TILE).max(1);
    let widest = b.cols - (panels - 1) * TILE;
    with_scratch(b.rows * widest, |scratch: &mut [T]| {
        for panel in 0..panels {
            let first = panel * TILE;
            let width = if panel + 1 == panels { widest } else { TILE };
            let columns = Mat { data: tail(b.data, first * b.col_stride), cols: width, ..b };
            vectorized(
                #[inline(always)]
                || rearrange(columns, scratch),
            );
            let columns = Mat::rows(&scratch[..], b.rows, width);
            whole(alpha, a, columns, beta, c.at(first));
        }
    });
}

/// Elements that one visit to a column of b takes: enough cache lines on end for the processor to fetch
/// them ahead, few enough for as many rows of `to` to stay in the first cache. Sampling at depth 8 and
/// width 512 took 1.33 s with 16, 1.10 with 64, 1.21 with 256.
const VISIT: usize = 64;

/// Writes b, whose columns are contiguous, row by row to `to`.
#[inline(always)]
fn rearrange<T: Element>(b: Mat<'_, T>, to: &mut [T]) {
    let width = b.cols;
    for (block, to) in to[..b.rows * width].chunks_mut(VISIT * width).enumerate() {
        for j in 0..width {
            let column = &b.data[block * VISIT + j * b.col_stride..];
            for (to, &from) in to[j..].iter_mut().step_by(width).zip(column) {
                *to = from;
            }
        }
    }
}

/// Hands a product of at most [`DEPTH`] terms to the crate as it is.
fn whole<T: Element>(alpha: T, a: Mat<'_, T>, b: Mat<'_, T>, beta: T, c: Part<'_, '_, T>) {
    // SAFETY: `matmul` has checked that the three views lie within their slices, and parts, pieces and
    // panels lie within the views. c stands for a unique borrow, so it overlaps neither a nor b, and
    // parts of it do not overlap each other.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c.shared.at(c.start),
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
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Views of a and b in each of the four layouts.
    fn product(
        (rows, depth, cols): (usize, usize, usize),
        (a_t, b_t): (bool, bool),
        a: &[f32],
        b: &[f32],
        beta: f32,
        parallel: bool,
    ) -> Vec<f32> {
        let mut c = noise(rows * cols, 3);
        let a = if a_t { Mat::strided(a, depth, rows, 700).t() } else { Mat::rows(a, rows, depth) };
        let b = if b_t { Mat::rows(b, cols, depth).t() } else { Mat::rows(b, depth, cols) };
        matmul(1.0, a, b, beta, MatMut::rows(&mut c, rows, cols), parallel);
        c
    }

    #[test]
    fn a_row_does_not_depend_on_the_number_of_rows_or_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for (depth, cols) in
            [(1, 5), (2, 40), (3, 1), (32, 3), (64, 64), (64, 130), (600, 70), (1100, 33), (7, 257)]
        {
            for layout in [(false, false), (false, true), (true, false), (true, true)] {
                let (a, b) = (noise(700 * depth.max(700), 1), noise(depth * cols, 2));
                for beta in [0.0, 1.0] {
                    let most = 300;
                    let all =
                        pool.install(|| product((most, depth, cols), layout, &a, &b, beta, true));
                    for rows in [1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 129, 299] {
                        let some = product((rows, depth, cols), layout, &a, &b, beta, false);
                        let same = some.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "rows {rows} depth {depth} cols {cols} {layout:?} {beta}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_right() {
        /// Rounding of a sum of at most 1,100 products below 1, against f64.
        const TOLERANCE: f64 = 2e-4;
        for (rows, depth, cols) in
            [(1, 1, 1), (5, 0, 3), (17, 600, 33), (70, 1100, 65), (3, 70, 200), (40, 130, 321)]
        {
            for layout in [(false, false), (false, true), (true, false), (true, true)] {
                let (a, b) = (noise(700 * depth.max(700), 1), noise(depth * cols, 2));
                let before = noise(rows * cols, 3);
                let c = product((rows, depth, cols), layout, &a, &b, 1.0, true);
                for i in 0..rows {
                    for j in 0..cols {
                        let mut expected = f64::from(before[i * cols + j]);
                        for k in 0..depth {
                            let a = if layout.0 { a[k * 700 + i] } else { a[i * depth + k] };
                            let b = if layout.1 { b[j * depth + k] } else { b[k * cols + j] };
                            expected += f64::from(a) * f64::from(b);
                        }
                        assert!((f64::from(c[i * cols + j]) - expected).abs() < TOLERANCE);
                    }
                }
            }
        }
    }
}
