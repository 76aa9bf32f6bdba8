//! Matrix products, shared out over the threads and handed to the `gemm` crate in the layout it likes best.

#[cfg(test)]
mod tests;

use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut, some_rows, strided, transpose};
use crate::simd::{carve, sum2, vectorized, with_scratch};
use core::ops::Range;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};

/// `c = alpha·a·b + onto`, in whole or in part.
struct Product<'p, T> {
    alpha: T,
    a: ArrayView2<'p, T>,
    b: ArrayView2<'p, T>,
    onto: Onto<'p, T>,
    c: ArrayViewMut2<'p, T>,
}

/// Terms added up in registers before they go to c. The crate's choice depends on the number of
/// rows; a product of at most this many terms is done in one piece whatever it chooses.
const DEPTH: usize = 512;

/// Up to this many elements of c, the crate has a separate kernel for products of contiguous rows,
/// which adds in another order.
const SMALL: usize = 16 * 16;

/// Width of the crate's tiles.
const TILE: usize = 64;

/// Elements of a cache line of f32.
const LINE: usize = 16;

/// Rows of a transposed a that are turned around at a time: with [`DEPTH`] terms, a mebibyte of
/// f32.
const TURN: usize = 512;

/// Products of fewer multiplications are not worth handing to another thread.
const TASK: usize = 1 << 19;

/// The rows of c.
const ROWS: Axis = Axis(0);
/// The columns of c.
const COLUMNS: Axis = Axis(1);

/// `c = alpha·a·b + onto`, on one thread or on the pool. Elements of a row of c lie next to each other.
///
/// An element of c has the same bits whatever `parallel` is and however many rows a has: the
/// crate's kernels add in an order that does not depend on the tile, and the cases where it would
/// choose another algorithm because there are few rows are avoided here (long inner dimensions are
/// cut; a single row or a tiny c gets more rows).
pub(crate) fn matmul<T: Element>(
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    onto: Onto<'_, T>,
    c: ArrayViewMut2<'_, T>,
    parallel: bool,
) {
    let (rows, cols) = c.dim();
    assert!(a.dim() == (rows, b.nrows()) && b.ncols() == cols, "matmul: inner shapes");
    if rows == 0 || cols == 0 {
        return; // strides of what is empty are zero
    }
    assert!(cols == 1 || c.strides()[1] == 1, "matmul: rows of c in one piece");
    if let Onto::Row(row) = onto {
        assert!(row.len() == cols, "matmul: row");
    }
    // Number of rows from which on the crate takes neither its vector nor its tiny-product path.
    let needed = if columns_in_one_piece(b) { 2.max(SMALL / cols + 1) } else { 2 };
    let product = Product { alpha, a, b, onto, c };
    if cols == 1 {
        product.column();
    } else if rows < needed {
        product.with_more_rows(needed);
    } else {
        product.share(parallel);
    }
}

/// Whether elements of a column lie next to each other.
fn columns_in_one_piece<T>(of: ArrayView2<'_, T>) -> bool {
    of.strides()[0] == 1
}

/// Whether a matrix is the transpose of a row-major one, and has more than one column.
fn transposed<T>(of: ArrayView2<'_, T>) -> bool {
    columns_in_one_piece(of) && of.strides()[1] != 1 && of.ncols() > 1
}

impl<T: Element> Product<'_, T> {
    /// Shares the product out over the threads: by columns of c, since each thread then rearranges
    /// only its own part of b; by rows where c has too few columns for all threads, or where a is
    /// transposed, and so must be rearranged as well, and is not smaller than b.
    fn share(self, parallel: bool) {
        let (rows, cols) = self.c.dim();
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        let narrow = cols < 2 * TILE * threads && rows > cols;
        let turned = self.a.strides()[1] != 1 && rows >= cols.max(2 * TILE);
        let by_rows = cols < 2 * TILE || narrow || turned;
        let (axis, extent, other) =
            if by_rows { (ROWS, rows, cols) } else { (COLUMNS, cols, rows) };
        // A part has whole tiles and more than SMALL elements, so that the crate takes the same path as
        // for the whole.
        let tiles = extent / TILE;
        let least = (SMALL / other + 1).div_ceil(TILE);
        let work = extent.saturating_mul(other).saturating_mul(self.a.ncols());
        let parts = threads.min(work / TASK).min(tiles / least).max(1);
        self.halve(axis, 0..parts, &|part| tiles * part / parts * TILE);
    }

    /// Computes, on the pool, the parts in `range`, each beginning at `start(part)` of `axis`.
    fn halve(self, axis: Axis, range: Range<usize>, start: &(impl Fn(usize) -> usize + Sync)) {
        if range.len() == 1 {
            return self.cut();
        }
        let middle = range.start + range.len() / 2;
        let (first, second) = self.split_at(axis, start(middle) - start(range.start));
        rayon::join(
            || first.halve(axis, range.start..middle, start),
            || second.halve(axis, middle..range.end, start),
        );
    }

    /// The part of the product before position `at` of `axis`, and the rest.
    fn split_at(self, axis: Axis, at: usize) -> (Self, Self) {
        let Self { alpha, a, b, onto, c } = self;
        let (first_c, second_c) = c.split_at(axis, at);
        let (mut first, mut second) =
            (Self { alpha, a, b, onto, c: first_c }, Self { alpha, a, b, onto, c: second_c });
        if axis == ROWS {
            (first.a, second.a) = a.split_at(ROWS, at);
        } else {
            (first.b, second.b) = b.split_at(COLUMNS, at);
            (first.onto, second.onto) = onto.split_at(at);
        }
        (first, second)
    }

    /// A product with a vector: one dot product per row.
    fn column(self) {
        let Self { alpha, a, b, onto, mut c } = self;
        let depth = a.ncols();
        with_scratch(2 * depth, |scratch: &mut [T]| {
            let [row, vector] = carve(scratch, [depth, depth]);
            ArrayViewMut1::from(&mut *vector).assign(&b.column(0));
            for (c, a) in c.column_mut(0).iter_mut().zip(a.rows()) {
                ArrayViewMut1::from(&mut *row).assign(&a);
                let product = alpha * vectorized!(sum2(row, vector, |a, b| a * b));
                *c = match onto {
                    Onto::Nothing => product,
                    Onto::Itself => *c + product,
                    Onto::Row(row) => row[0] + product,
                };
            }
        });
    }

    /// The product with rows of zeros appended to a and c, so that there are `needed` of them.
    fn with_more_rows(self, needed: usize) {
        let Self { alpha, a, b, onto, mut c } = self;
        let ((rows, depth), cols) = (a.dim(), b.ncols());
        with_scratch(needed * (depth + cols), |scratch: &mut [T]| {
            scratch.fill(T::zero());
            let [more_a, more_c] = carve(scratch, [needed * depth, needed * cols]);
            let mut more_a = matrix_mut(more_a, needed, depth);
            let mut more_c = matrix_mut(more_c, needed, cols);
            more_a.slice_mut(s![..rows, ..]).assign(&a);
            if let Onto::Itself = onto {
                more_c.slice_mut(s![..rows, ..]).assign(&c);
            }
            Product { alpha, a: more_a.view(), b, onto, c: more_c.view_mut() }.cut();
            c.assign(&more_c.slice(s![..rows, ..]));
        });
    }

    /// Computes the product in pieces of at most [`DEPTH`] terms and of nearly equal size.
    fn cut(mut self) {
        let depth = self.a.ncols();
        let pieces = depth.div_ceil(DEPTH).max(1);
        let size = depth.div_ceil(pieces);
        for piece in 0..pieces {
            let terms = piece * size..depth.min((piece + 1) * size);
            let (a, b) = (self.a.slice_move(s![.., terms.clone()]), some_rows(self.b, terms));
            let piece = Product { a, b, c: self.c.view_mut(), ..self };
            // Up to two tiles, the crate reads a transposed a where it lies.
            if transposed(a) && b.ncols() > 2 * TILE {
                piece.by_turned_rows();
            } else {
                piece.arranged();
            }
            self.onto = Onto::Itself;
        }
    }

    /// Computes the product with a transposed a turned around, some rows at a time; the crate would
    /// rearrange it six rows at a time, in narrow loads and stores.
    fn by_turned_rows(self) {
        let Self { alpha, a, b, onto, mut c } = self;
        let (rows, depth) = a.dim();
        let pieces = rows.div_ceil(TURN).max(1);
        // Pieces of nearly equal size: the crate would not treat a single row left over as a
        // matrix.
        let start = |piece| rows * piece / pieces;
        // Rows a power of two apart would share few sets of the caches.
        let stride = depth.next_multiple_of(LINE) + LINE;
        with_scratch(rows.div_ceil(pieces) * stride, |scratch: &mut [T]| {
            for piece in 0..pieces {
                let rows = start(piece)..start(piece + 1);
                transpose(some_rows(a, rows.clone()).reversed_axes(), scratch, stride);
                let a = strided(scratch, rows.len(), depth, stride);
                Product { alpha, a, b, onto, c: c.slice_mut(s![rows, ..]) }.arranged();
            }
        });
    }

    /// Computes the product with b in the layout that the crate wants.
    fn arranged(self) {
        if transposed(self.b) { self.by_panels() } else { self.whole() }
    }

    /// Computes the product with b rearranged: its columns a tile at a time, row after row.
    ///
    /// Where b is transposed, as weights are, the crate rearranges it itself, but in an order that
    /// waits for memory: with few rows of a, as in sampling, this takes a quarter of all time.
    fn by_panels(self) {
        let (depth, cols) = self.b.dim();
        // The last panel also takes what is left over: the crate would not treat one column as a
        // matrix.
        let panels = (cols / TILE).max(1);
        let widest = cols - (panels - 1) * TILE;
        with_scratch(depth * widest, |scratch: &mut [T]| {
            let mut rest = self;
            for _ in 1..panels {
                let (panel, others) = rest.split_at(COLUMNS, TILE);
                panel.rearranged(scratch);
                rest = others;
            }
            rest.rearranged(scratch);
        });
    }

    /// Computes the product with all of b rearranged.
    fn rearranged(self, scratch: &mut [T]) {
        let (depth, cols) = self.b.dim();
        transpose(self.b.reversed_axes(), scratch, cols);
        Product { b: matrix(scratch, depth, cols), ..self }.whole();
    }

    /// Hands the product to the crate as it is; it has at most [`DEPTH`] terms.
    fn whole(self) {
        let Self { alpha, a, b, onto, mut c } = self;
        if let Onto::Row(row) = onto {
            let row = ArrayView1::from(row);
            c.rows_mut().into_iter().for_each(|mut to| to.assign(&row));
        }
        let (read, beta) = match onto {
            Onto::Nothing => (false, T::zero()),
            Onto::Itself | Onto::Row(_) => (true, T::one()),
        };
        // SAFETY: the dimensions and strides are those of the three views, and their shapes fit (`matmul`
        // has checked that, and parts, pieces and panels are cut alike). c is a unique borrow, so it
        // overlaps neither a nor b.
        unsafe {
            gemm::gemm(
                a.nrows(),
                b.ncols(),
                a.ncols(),
                c.as_mut_ptr(),
                c.strides()[1],
                c.strides()[0],
                read,
                a.as_ptr(),
                a.strides()[1],
                a.strides()[0],
                b.as_ptr(),
                b.strides()[1],
                b.strides()[0],
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
