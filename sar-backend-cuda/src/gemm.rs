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

    /// Whether there is nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }
}
