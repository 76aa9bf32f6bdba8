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
    /// The matrix from a stored row on.
    const fn row(self, row: usize) -> Self {
        let offset = row * self.leading * self.data.bytes();
        Self { address: self.address + offset as u64, ..self }
    }
}

/// Elements of a matrix that libraries index in 32 bits: beyond, cuBLASLt was seen to offer algorithms that then fail
/// (a part of 2³¹ elements and more, in f32).
pub(crate) const MOST_ELEMENTS: usize = i32::MAX as usize;
/// Parts of a product have multiples of so many rows: whole vectors, and whole tiles but for the last.
const PART_ROWS: usize = 256;

/// What of a result belongs to one sample, whose bits must not change with the number of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sample {
    /// Each row of `out`: it depends, to the bit, on the same row of `a` and not on `m`.
    Row,
    /// Each product of the batch: it does not depend on how many there are.
    Product,
    /// Nothing: a gradient, which sums over samples or is compared with no other batch's. A sum may be
    /// split into parts that are added in an order of the shape's.
    All,
}

/// `out[m, n] = a[m, k]·b[k, n]` (plus `bias[n]` in every row, plus what `out` held), `batch` times.
///
/// Sums are taken in f32, and an f32 product is one of f32 numbers: no narrower format in between.
/// The same product has the same bits each time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of out.
    pub m: usize,
    /// Columns of out.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// `[m, k]` once transposed as it says.
    pub a: Matrix,
    /// `[k, n]` once transposed as it says; stored as `a` is.
    pub b: Matrix,
    /// `[m, n]`, never transposed.
    pub out: Matrix,
    /// Whether the product is added to what `out` holds.
    pub accumulate: bool,
    /// Address of `[n]` elements, stored as `out` is; any address that elements may have.
    pub bias: Option<u64>,
    /// Number of products.
    pub batch: usize,
    /// What must have the same bits in other company.
    pub sample: Sample,
}

impl Gemm {
    /// Operands read once, the result written once (and read where it is added to).
    pub const fn work(&self) -> Work {
        let Self { m, n, k, batch, .. } = *self;
        let operands = (m * k + k * n) * self.a.data.bytes();
        let result = m * n * self.out.data.bytes() * if self.accumulate { 2 } else { 1 };
        Work { bytes: (batch * (operands + result)) as u64, flops: (2 * m * n * k * batch) as u64 }
    }

    /// What a table calls it: the rows of a layer's products differ from schedule to schedule.
    pub fn name(&self) -> String {
        match self.a.transposed {
            false => format!("product [.., {}]·[{}, {}]", self.k, self.k, self.n),
            true => format!("product [{}, ..]·[.., {}]", self.m, self.n),
        }
    }

    /// Products that together are this one, one after the other: itself where no matrix has more than `most` elements,
    /// else parts of its rows, or of its sums where those lie one behind another; none where it is empty.
    ///
    /// A row has the same bits in any part, as [`Sample::Row`] has it. A batch, of products that are far smaller each,
    /// stays whole.
    pub fn parts(&self, most: usize) -> impl Iterator<Item = Self> + use<> {
        let whole = *self;
        let of_sums = whole.a.transposed && !whole.b.transposed;
        let (side, other) = if of_sums { (whole.k, whole.b) } else { (whole.m, whole.out) };
        let row = whole.a.leading.max(other.leading).max(1);
        let fit = most / row / PART_ROWS * PART_ROWS;
        let parted = whole.batch == 1 && (of_sums || !whole.a.transposed);
        let step = if parted { fit.max(PART_ROWS) } else { side.max(1) };
        // Sums without terms are a result, too.
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

    /// Runs a product on memory of f32 numbers, whose addresses are places in it.
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

    /// A layer's product, or its weight gradient: what it reads are small whole numbers, so that sums are exact.
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
        // A sum of nothing is zero and is written; a result of no elements is none.
        let empty = Gemm { k: 0, ..product(true, false, 1).0 };
        assert_eq!(empty.parts(MOST_ELEMENTS).collect::<Vec<_>>(), [empty]);
        assert_eq!(Gemm { m: 0, ..gemm }.parts(MOST_ELEMENTS).count(), 0);
        // Neither a batch nor sums that do not lie one behind another are parted.
        assert_eq!(Gemm { batch: 2, ..gemm }.parts(1).count(), 1);
        let (of_sums, _) = product(true, false, 1000);
        let b = Matrix { transposed: true, leading: 1000, ..of_sums.b };
        assert_eq!(Gemm { b, ..of_sums }.parts(1).count(), 1);
    }

    /// Depth 24 at 262,144 rows and more: the product behind the first of a block's wide layers.
    #[test]
    fn a_layer_of_half_a_million_rows_is_parted() {
        let rows = 515 * 680;
        let (gemm, _) = product(false, false, 1);
        let out = Matrix { leading: 6144, ..gemm.out };
        let wide = Gemm { m: rows, n: 6144, k: 1536, out, ..gemm };
        let parts: Vec<usize> = wide.parts(MOST_ELEMENTS).map(|part| part.m).collect();
        assert_eq!(parts, [349_440, rows - 349_440]);
    }
}
