//! A matrix product, described once for both devices.

use crate::work::Work;

/// How the elements of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataType {
    /// 32 bits.
    F32,
    /// 16 bits, eight of them significant.
    Bf16,
}

impl DataType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A row-major matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// First element.
    pub address: u64,
    /// How elements are stored.
    pub data: DataType,
    /// Elements from one row to the next.
    pub leading: usize,
    /// Whether the product takes its transpose.
    pub transposed: bool,
    /// Elements from the matrix of one product of a batch to that of the next.
    pub stride: usize,
}

impl Matrix {
    /// The matrix that starts at a stored row of this one.
    const fn row(self, row: usize) -> Self {
        let offset = row * self.leading * self.data.bytes();
        Self { address: self.address + offset as u64, ..self }
    }
}

/// Largest number of elements of a product's matrix. From 2³¹ on, an algorithm that a library offers may fail when it
/// runs: cuBLASLt 13.6.0 has one in f32 (NVIDIA/raft, issue 3097), and what serves a layer is chosen for fewer rows.
pub(crate) const MOST_ELEMENTS: usize = i32::MAX as usize;
/// Number of rows that parts of a product are multiples of, except for the last part, so that they have
/// whole vectors and whole tiles.
const PART_ROWS: usize = 256;

/// The part of a result that belongs to one sample; its bits must not change with the number of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sample {
    /// Each row of `out`: it depends, to the bit, on the same row of `a` and not on `m`.
    Row,
    /// Each product of the batch: it does not depend on how many there are.
    Product,
    /// Nothing: a gradient, which sums over samples or is never compared with another batch's. A sum may
    /// be split into parts, which are added in an order that the shape determines.
    All,
}

/// `out[m, n] = a[m, k]·b[k, n]` (plus `bias[n]` in every row, plus what `out` held), `batch` times.
///
/// Sums are taken in f32, and f32 operands are multiplied as such, not rounded to a narrower format.
/// The same product has the same bits each time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of out.
    pub m: usize,
    /// Columns of out.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// `[m, k]`, after the transposition that the matrix asks for.
    pub a: Matrix,
    /// `[k, n]`, after the transposition that the matrix asks for; stored as `a` is.
    pub b: Matrix,
    /// `[m, n]`, never transposed.
    pub out: Matrix,
    /// Whether the product is added to what `out` holds.
    pub accumulate: bool,
    /// Address of `[n]` elements, stored as `out` is; needs only the alignment of an element.
    pub bias: Option<u64>,
    /// Number of products.
    pub batch: usize,
    /// What must have the same bits whatever else the product computes.
    pub sample: Sample,
}

impl Gemm {
    /// The work if operands are read once and the result is written once (and read if it is added to).
    pub const fn work(&self) -> Work {
        let Self { m, n, k, batch, .. } = *self;
        let operands = (m * k + k * n) * self.a.data.bytes();
        let result = m * n * self.out.data.bytes() * if self.accumulate { 2 } else { 1 };
        Work { bytes: (batch * (operands + result)) as u64, flops: (2 * m * n * k * batch) as u64 }
    }

    /// Name of the product in tables, without its rows: those of a layer differ from schedule to schedule.
    pub fn name(&self) -> String {
        match self.a.transposed {
            false => format!("product [.., {}]·[{}, {}]", self.k, self.k, self.n),
            true => format!("product [{}, ..]·[.., {}]", self.m, self.n),
        }
    }

    /// Products that, run in order, compute this one: itself if no matrix has more than `most` elements,
    /// otherwise parts of its rows, or of the terms of its sums where the operands store those row by row;
    /// none if it is empty.
    ///
    /// A row has the same bits in any part, as [`Sample::Row`] requires. A batch is not split: each of its
    /// products is far smaller.
    pub fn parts(&self, most: usize) -> impl Iterator<Item = Self> + use<> {
        let whole = *self;
        let of_sums = whole.a.transposed && !whole.b.transposed;
        let (side, other) = if of_sums { (whole.k, whole.b) } else { (whole.m, whole.out) };
        let row = whole.a.leading.max(other.leading).max(1);
        let fit = most / row / PART_ROWS * PART_ROWS;
        let parted = whole.batch == 1 && (of_sums || !whole.a.transposed);
        let whole_fits = side.saturating_mul(row) <= most;
        let step = if parted && !whole_fits { fit.max(PART_ROWS) } else { side.max(1) };
        // Sums without terms are a result too, and take one product.
        let end = if whole.is_empty() { 0 } else { side.max(1) };
        (0..end).step_by(step).map(move |first| {
            let rows = step.min(side - first);
            let (a, next) = (whole.a.row(first), other.row(first));
            if of_sums {
                let accumulate = whole.accumulate || first > 0;
                Self { k: rows, a, b: next, accumulate, ..whole }
            } else {
                Self { m: rows, a, out: next, ..whole }
            }
        })
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a product on `memory` of f32 numbers; addresses are byte offsets in it.
    fn run(gemm: &Gemm, memory: &mut [f32]) {
        let at = |matrix: &Matrix, row: usize, column: usize| {
            let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
            matrix.address as usize / 4 + row * matrix.leading + column
        };
        for (i, j) in (0..gemm.m).flat_map(|i| (0..gemm.n).map(move |j| (i, j))) {
            let term = |l| memory[at(&gemm.a, i, l)] * memory[at(&gemm.b, l, j)];
            let bias = gemm.bias.map_or(0.0, |bias| memory[bias as usize / 4 + j]);
            let sum = (0..gemm.k).map(term).sum::<f32>() + bias;
            let out = &mut memory[at(&gemm.out, i, j)];
            *out = if gemm.accumulate { *out + sum } else { sum };
        }
    }

    /// A layer's product, or its weight gradient. The operands are small whole numbers, so that sums are
    /// exact.
    fn product(of_sums: bool, accumulate: bool, rows: usize) -> (Gemm, Vec<f32>) {
        let (m, n, k) = if of_sums { (3, 5, rows) } else { (rows, 3, 5) };
        let (a, b, out) = (0, m * k, m * k + k * n);
        let bias = out + m * n;
        let matrix = |at: usize, leading, transposed| {
            let address = 4 * at as u64;
            Matrix { address, data: DataType::F32, leading, transposed, stride: 0 }
        };
        let gemm = Gemm {
            m,
            n,
            k,
            a: matrix(a, if of_sums { m } else { k }, of_sums),
            b: matrix(b, if of_sums { n } else { k }, !of_sums),
            out: matrix(out, n, false),
            accumulate,
            bias: (!of_sums).then_some(4 * bias as u64),
            batch: 1,
            sample: if of_sums { Sample::All } else { Sample::Row },
        };
        let memory = (0..bias + n).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        (gemm, memory)
    }

    #[test]
    fn parts_are_the_product_and_no_larger_than_asked() {
        let most = 256 * 5 + 3;
        for (of_sums, accumulate) in [(false, false), (true, false), (true, true)] {
            for (rows, count) in [(1, 1), (256, 1), (257, 2), (1000, 4)] {
                let (gemm, mut whole) = product(of_sums, accumulate, rows);
                let mut parted = whole.clone();
                run(&gemm, &mut whole);
                let parts: Vec<Gemm> = gemm.parts(most).collect();
                assert_eq!(parts.len(), count, "{rows} rows");
                for part in &parts {
                    run(part, &mut parted);
                    let Gemm { m, n, k, .. } = *part;
                    assert!((m * k).max(k * n).max(m * n) <= most, "{part:?}");
                }
                assert_eq!(parted, whole, "{rows} rows");
            }
        }
    }

    #[test]
    fn what_is_small_enough_is_one_product() {
        let (gemm, _) = product(false, false, 1000);
        assert_eq!(gemm.parts(MOST_ELEMENTS).collect::<Vec<_>>(), [gemm]);
        // A sum of nothing is zero and must be written; a result without elements needs no product.
        let empty = Gemm { k: 0, ..product(true, false, 1).0 };
        assert_eq!(empty.parts(MOST_ELEMENTS).collect::<Vec<_>>(), [empty]);
        assert_eq!(Gemm { m: 0, ..gemm }.parts(MOST_ELEMENTS).count(), 0);
        // Neither a batch nor sums whose terms are not stored row by row are split.
        assert_eq!(Gemm { batch: 2, ..gemm }.parts(1).count(), 1);
        let (of_sums, _) = product(true, false, 1000);
        let b = Matrix { transposed: true, leading: 1000, ..of_sums.b };
        assert_eq!(Gemm { b, ..of_sums }.parts(1).count(), 1);
    }

    /// Depth 24 at 350,200 rows: the product of the first of a block's wide layers.
    #[test]
    fn a_layer_of_350_thousand_rows_is_parted() {
        let rows = 515 * 680;
        let (gemm, _) = product(false, false, 1);
        let out = Matrix { leading: 6144, ..gemm.out };
        let wide = Gemm { m: rows, n: 6144, k: 1536, out, ..gemm };
        let parts: Vec<usize> = wide.parts(MOST_ELEMENTS).map(|part| part.m).collect();
        assert_eq!(parts, [349_440, rows - 349_440]);
    }
}
