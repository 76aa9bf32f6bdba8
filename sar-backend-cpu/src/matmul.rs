//! Matrix products, shared out over the threads and handed to the `gemm` crate in the layout it likes best.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use crate::Element;
use crate::mat::{Mat, MatMut, Onto, tail};
use crate::simd::{Shared, carve, sum2, vectorized, with_scratch};
use rayon::prelude::*;

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

/// `c = alpha·a·b + onto`, in whole or in part, for one thread. Parts that are done at the same time do not
/// overlap in c.
#[derive(Clone, Copy)]
struct Product<'p, 'c, T> {
    alpha: T,
    a: Mat<'p, T>,
    b: Mat<'p, T>,
    onto: Onto<'p, T>,
    c: Part<'p, 'c, T>,
}

/// Terms added up in registers before they go to c. The crate's choice depends on the number of
/// rows; a product of at most this many terms is done in one piece whatever it chooses.
const DEPTH: usize = 512;

/// Up to so many elements of c the crate has a kernel of its own for products of contiguous rows,
/// which adds in another order.
const SMALL: usize = 16 * 16;

/// Width of the crate's tiles.
const TILE: usize = 64;

/// Elements of a cache line of f32.
const LINE: usize = 16;

/// Rows of a transposed a that are turned around at a time: with [`DEPTH`] terms a mebibyte of f32.
const TURN: usize = 512;

/// Products of fewer multiplications are not worth handing to another thread.
const TASK: usize = 1 << 19;

/// `c = alpha·a·b + onto`, on one thread or on the pool.
///
/// An element of c is the same to the bit whatever `parallel` is, and whatever number of rows of a
/// there are: the crate's kernels add in an order that does not depend on the tile, and the cases where
/// it would choose another algorithm because there are few rows are led around here (long inner
/// dimensions are cut; a single row or a tiny c gets more rows).
pub(crate) fn matmul<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    onto: Onto<'_, T>,
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
    if let Onto::Row(row) = onto {
        assert!(row.len() == c.cols, "matmul: row");
    }
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    // Rows from which on the crate takes neither its vector nor its tiny-product path.
    let needed = if b.row_stride == 1 { 2.max(SMALL / c.cols + 1) } else { 2 };
    if c.cols == 1 {
        column(alpha, a, b, onto, c);
    } else if c.rows < needed {
        with_more_rows(alpha, a, b, onto, c, needed);
    } else {
        split(alpha, a, b, onto, c, parallel);
    }
}

/// Shares the product out over the threads: by columns of c, since each then rearranges its own part of b
/// alone; by rows where c has too few columns for every thread, and where a is transposed, so that it is
/// rearranged as well, and not smaller than b.
fn split<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    onto: Onto<'_, T>,
    c: MatMut<'_, T>,
    parallel: bool,
) {
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let narrow = c.cols < 2 * TILE * threads && c.rows > c.cols;
    let by_rows =
        c.cols < 2 * TILE || narrow || (a.col_stride != 1 && c.rows >= c.cols.max(2 * TILE));
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
            Product { alpha, a, b: b_all, onto, c: c.at(from * stride) }.cut();
        } else {
            let b = Mat { data: &b_all.data[from * b_all.col_stride..], cols: count, ..b_all };
            let onto = onto.columns_from(from);
            Product { alpha, a: a_all, b, onto, c: c.at(from) }.cut();
        }
    };
    if parts == 1 {
        product(0);
    } else {
        (0..parts).into_par_iter().for_each(product);
    }
}

/// A product with a vector: one dot product per row.
fn column<T: Element>(alpha: T, a: Mat<'_, T>, b: Mat<'_, T>, onto: Onto<'_, T>, c: MatMut<'_, T>) {
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
            *c = match onto {
                Onto::Nothing => product,
                Onto::Itself => *c + product,
                Onto::Row(row) => row[0] + product,
            };
        }
    });
}

/// The product with rows of zeros appended to a and c.
fn with_more_rows<T: Element>(
    alpha: T,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    onto: Onto<'_, T>,
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
            if let Onto::Itself = onto {
                let row = i * c.row_stride;
                more_c[i * cols..][..cols].copy_from_slice(&c.data[row..row + cols]);
            }
        }
        let a = Mat::rows(more_a, rows, depth);
        let shared = Shared::new(more_c);
        let c_all = Part { shared: &shared, start: 0, row_stride: cols };
        Product { alpha, a, b, onto, c: c_all }.cut();
        for i in 0..c.rows {
            c.data[i * c.row_stride..][..cols].copy_from_slice(&more_c[i * cols..][..cols]);
        }
    });
}

impl<T: Element> Product<'_, '_, T> {
    /// In pieces of at most [`DEPTH`] terms of nearly equal size.
    fn cut(self) {
        let Self { a, b, mut onto, .. } = self;
        let pieces = a.cols.div_ceil(DEPTH).max(1);
        let size = a.cols.div_ceil(pieces);
        for piece in 0..pieces {
            let first = piece * size;
            let depth = size.min(a.cols - first);
            let a = Mat { data: tail(a.data, first * a.col_stride), cols: depth, ..a };
            let b = b.some_rows(first..first + depth);
            let piece = Product { a, b, onto, ..self };
            // Up to two tiles the crate reads a transposed a where it lies.
            if a.row_stride == 1 && a.col_stride != 1 && b.cols > 2 * TILE {
                piece.by_turned_rows();
            } else {
                piece.arranged();
            }
            onto = Onto::Itself;
        }
    }

    /// With a transposed a turned around, some rows at a time: the crate would rearrange it six rows at a
    /// time, in narrow loads and stores.
    fn by_turned_rows(self) {
        let Self { a, c, .. } = self;
        let pieces = a.rows.div_ceil(TURN).max(1);
        // Of nearly equal size: a single row left over would be no matrix to the crate.
        let start = |piece| a.rows * piece / pieces;
        // Rows a power of two apart would share few sets of the caches.
        let stride = a.cols.next_multiple_of(LINE) + LINE;
        with_scratch(a.rows.div_ceil(pieces) * stride, |scratch: &mut [T]| {
            for piece in 0..pieces {
                let rows = start(piece)..start(piece + 1);
                a.some_rows(rows.clone()).t().transpose_into(scratch, stride);
                let turned = Mat::strided(&*scratch, rows.len(), a.cols, stride);
                Product { a: turned, c: c.at(rows.start * c.row_stride), ..self }.arranged();
            }
        });
    }

    /// With b as the crate wants it.
    fn arranged(self) {
        if self.b.row_stride == 1 && self.b.col_stride != 1 {
            self.by_panels();
        } else {
            self.whole();
        }
    }

    /// With b rearranged: its columns a tile at a time, row behind row.
    ///
    /// The crate does so itself where b is transposed, as weights are, but in an order that waits for
    /// memory: with few rows of a, as in sampling, a quarter of all time.
    fn by_panels(self) {
        let Self { b, onto, c, .. } = self;
        // The last panel has what is left over as well: a panel of one column is no matrix to the crate.
        let panels = (b.cols / TILE).max(1);
        let widest = b.cols - (panels - 1) * TILE;
        with_scratch(b.rows * widest, |scratch: &mut [T]| {
            for panel in 0..panels {
                let first = panel * TILE;
                let width = if panel + 1 == panels { widest } else { TILE };
                b.t().some_rows(first..first + width).transpose_into(scratch, width);
                let b = Mat::rows(&*scratch, b.rows, width);
                Product { b, onto: onto.columns_from(first), c: c.at(first), ..self }.whole();
            }
        });
    }

    /// Hands it to the crate as it is; it has at most [`DEPTH`] terms.
    fn whole(self) {
        let Self { alpha, a, b, onto, c } = self;
        if let Onto::Row(row) = onto {
            for i in 0..a.rows {
                // SAFETY: within the part of c that is this task's alone.
                let to = unsafe { c.shared.part(c.start + i * c.row_stride, b.cols) };
                to.copy_from_slice(&row[..b.cols]);
            }
        }
        let (read, beta) = match onto {
            Onto::Nothing => (false, T::zero()),
            Onto::Itself | Onto::Row(_) => (true, T::one()),
        };
        // SAFETY: `matmul` has checked that the three views lie within their slices, and parts, pieces and
        // panels lie within the views or are copies of them. c stands for a unique borrow, so it overlaps
        // neither a nor b, and parts of it do not overlap each other.
        unsafe {
            gemm::gemm(
                a.rows,
                b.cols,
                a.cols,
                c.shared.at(c.start),
                1,
                c.row_stride as isize,
                read,
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
}
