//! What cuBLASLt is told about a product: shapes without addresses, and descriptors of them.
//!
//! cuBLASLt is column-major, so `out[m, n] = a·b` is asked of it as `outᵀ = bᵀ·aᵀ`: its left operand
//! is our `b`, its right one our `a`, its m our n.

use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, MOST_ELEMENTS, Matrix, Sample};
use core::ffi::c_void;
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;

/// Rows for which the algorithm of a layer is chosen: a training step's, of the order of 64 images.
const REFERENCE_ROWS: usize = 1 << 15;
/// Rows up to which other algorithms are tried: with tiles of 128×256, the usual ones for many rows, 2,048 of
/// 1,024 columns fill half of an H100.
const FEW_ROWS: usize = 1 << 11;
/// Elements of a weight up to which they are: a trial needs another matrix of its size, and one that is larger, as that
/// of all blocks' modulations, has tiles enough for a GPU whatever the rows. Layers of depth 36 have 21 million.
const LARGEST_TRIED: usize = 1 << 25;
/// Terms that a sum must have for a trial to show its order; of fewer, most are exact.
const FEWEST_TERMS: usize = 16;
/// Terms that an algorithm takes at a time: which, it does not tell.
const BLOCKS: [usize; 6] = [8, 16, 32, 64, 128, 256];
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts lie in the workspace as f32 and are added in order.
const IN_COMPUTE_TYPE: u32 = 2;
/// Alignments beyond this one change nothing; a bias needs it.
pub(super) const BEST_ALIGNMENT: u64 = 16;

/// Names the call in an error of cuBLASLt's, which loads its kernels where they are first needed: a want of
/// memory is one whatever was called.
pub(super) fn failed_lt(call: &'static str) -> impl Fn(CublasError) -> CudaError {
    move |error| match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => CudaError::NoRoom { call: call.into() },
        _ => CudaError::device(call, error),
    }
}

/// All that a plan depends on: a product without its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    m: usize,
    n: usize,
    k: usize,
    a: Operand,
    b: Operand,
    out: Operand,
    accumulate: bool,
    bias: bool,
    batch: usize,
    pub(super) sample: Sample,
}

/// A matrix without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operand {
    data: DataType,
    leading: usize,
    transposed: bool,
    stride: usize,
    alignment: u64,
}

impl Operand {
    fn of(matrix: &Matrix) -> Self {
        let Matrix { address, data, leading, transposed, stride } = *matrix;
        let alignment = 1 << address.trailing_zeros().min(BEST_ALIGNMENT.trailing_zeros());
        Self { data, leading, transposed, stride, alignment }
    }
}

impl Shape {
    /// Whether columns and terms are whole vectors. The library has dot-product kernels for narrower ones,
    /// whose sums may follow the occupancy of a GPU.
    pub(super) fn is_ordinary(&self) -> bool {
        [self.n, self.k].iter().all(|side| side.is_multiple_of(8))
    }

    pub(super) fn of(gemm: &Gemm) -> Self {
        Self {
            m: gemm.m,
            n: gemm.n,
            k: gemm.k,
            a: Operand::of(&gemm.a),
            b: Operand::of(&gemm.b),
            out: Operand::of(&gemm.out),
            accumulate: gemm.accumulate,
            bias: gemm.bias.is_some(),
            batch: gemm.batch,
            sample: gemm.sample,
        }
    }

    pub(super) fn m(&self) -> usize {
        self.m
    }

    pub(super) fn n(&self) -> usize {
        self.n
    }

    pub(super) fn k(&self) -> usize {
        self.k
    }

    pub(super) fn has_bias(&self) -> bool {
        self.bias
    }

    /// How the operands' elements are stored.
    pub(super) fn data(&self) -> DataType {
        self.a.data
    }

    pub(super) fn out_data(&self) -> DataType {
        self.out.data
    }

    pub(super) fn out_leading(&self) -> usize {
        self.out.leading
    }

    /// Elements from one row of `a` to the next, and of `b`.
    pub(super) fn leading(&self) -> [usize; 2] {
        [self.a.leading, self.b.leading]
    }

    /// Elements that `a` and `b` take, of a layer's product.
    pub(super) fn operand_lengths(&self) -> [usize; 2] {
        [self.m * self.a.leading, self.n * self.b.leading]
    }

    /// Whether it is a layer's product of so few rows that the reference's tiles may leave a GPU idle.
    pub(super) fn is_of_few_rows(&self) -> bool {
        let layer = self.sample == Sample::Row && !self.a.transposed && self.b.transposed;
        let shows = self.k >= FEWEST_TERMS;
        let small = self.m <= FEW_ROWS && self.n * self.k <= LARGEST_TRIED;
        layer && shows && small && self.batch == 1 && !self.accumulate
    }

    /// Shapes that the algorithm of a reference will meet.
    pub(super) fn met(self) -> Vec<Self> {
        match self.sample {
            Sample::Row => vec![Self { m: 1, ..self }, Self { m: 17, ..self }],
            Sample::Product => {
                let Self { m, n, k, a, b, out, .. } = self;
                // One behind another, without gaps.
                let next = |of: Operand, rows: usize, columns: usize| Operand {
                    stride: of.leading * if of.transposed { columns } else { rows },
                    ..of
                };
                let (a, b, out) = (next(a, m, k), next(b, k, n), next(out, m, n));
                vec![Self { a, b, out, batch: 2, ..self }]
            }
            Sample::All => Vec::new(),
        }
    }

    /// The same product, its sums in one part.
    pub(super) fn in_one_go(self) -> Self {
        Self { sample: Sample::Product, ..self }
    }

    /// Whether a sum in so many parts may lack its last terms.
    ///
    /// Split sums of cuBLASLt 12 and 13 on H100 and newer were seen to leave out what follows the last whole
    /// block of terms where the parts share the blocks evenly and are more than the terms that are left
    /// (facebookexperimental/triton, pull request 2767): of sums over rows a few go missing, which no tolerance
    /// shows.
    pub(super) fn may_lose_terms(&self, parts: i32) -> bool {
        let parts = usize::try_from(parts).unwrap_or(0);
        parts > 1
            && BLOCKS.iter().any(|block| {
                let left = self.k % block;
                left > 0 && left < parts && (self.k / block).is_multiple_of(parts)
            })
    }

    /// The shape that stands for all that must share an algorithm.
    ///
    /// Where rows are samples their number is free, as the number of products is. Of a gradient the
    /// rows, or the terms k where `a` is transposed, go by powers of two, so that random schedules do
    /// not plan anew each step; where both operands are transposed, the leading dimension of `b` bounds
    /// k, which stays. None has more elements than a product may ([`MOST_ELEMENTS`]), though the next power of two
    /// might.
    pub(super) fn reference(self) -> Self {
        let alone = |operand: Operand| Operand { stride: 0, ..operand };
        let (a, b, out) = (alone(self.a), alone(self.b), alone(self.out));
        let one = Self { a, b, out, batch: 1, ..self };
        let of_rows = |rows| addressable(rows, a.leading.max(out.leading));
        let of_terms = |terms| addressable(terms, a.leading.max(b.leading));
        match (self.sample, self.a.transposed, self.b.transposed) {
            (Sample::Row, false, _) => Self { m: of_rows(REFERENCE_ROWS), ..one },
            (Sample::All, false, _) => Self { m: of_rows(self.m.next_power_of_two()), ..one },
            (Sample::All, true, false) => Self { k: of_terms(self.k.next_power_of_two()), ..one },
            // Rows of a transposed `a` are bounded by its leading dimension.
            (Sample::Row, true, _) | (Sample::All, true, true) | (Sample::Product, ..) => one,
        }
    }

    /// Ways to add the parts of a split sum that an algorithm may have: bits of cuBLASLt's mask. Adding
    /// in place is never one: its order is that in which blocks happen to end.
    pub(super) fn reductions(&self) -> u32 {
        match self.sample {
            Sample::Row | Sample::Product => 0,
            Sample::All => IN_COMPUTE_TYPE,
        }
    }
}

/// The largest power of two of rows, up to `rows`, which is one, whose elements 31 bits can count.
fn addressable(rows: usize, leading: usize) -> usize {
    let most = (MOST_ELEMENTS / leading.max(1)).max(1);
    rows.min(1 << most.ilog2())
}

/// Descriptors of a product, destroyed when dropped.
pub(super) struct Descriptors {
    pub(super) product: sys::cublasLtMatmulDesc_t,
    pub(super) left: sys::cublasLtMatrixLayout_t,
    pub(super) right: sys::cublasLtMatrixLayout_t,
    pub(super) out: sys::cublasLtMatrixLayout_t,
}

impl Descriptors {
    pub(super) fn new(shape: &Shape, bias: Option<u64>) -> Result<Self, CudaError> {
        let Shape { m, n, k, a, b, out, batch, .. } = *shape;
        // Stored rows and columns of a row-major matrix are the columns and rows of cuBLASLt's.
        let stored = |of: Operand, rows: usize, columns: usize| match of.transposed {
            false => layout(of, columns, rows, batch),
            true => layout(of, rows, columns, batch),
        };
        let mut made = Self {
            product: std::ptr::null_mut(),
            left: std::ptr::null_mut(),
            right: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = sys::cudaDataType_t::CUDA_R_32F;
        made.product = lt::create_matmul_desc(compute, scale)
            .map_err(failed_lt("cublasLtMatmulDescCreate"))?;
        made.left = stored(b, k, n)?;
        made.right = stored(a, m, k)?;
        made.out = layout(out, n, m, batch)?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(b))?;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(a))?;
        if let Some(address) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            made.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            made.set_bias(address)?;
        }
        Ok(made)
    }

    /// Sets the address of the bias, which must be known before an algorithm is looked for.
    pub(super) fn set_bias(&self, address: u64) -> Result<(), CudaError> {
        let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        self.set(pointer, &address)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), CudaError> {
        // SAFETY: the descriptor is alive, and the value of the attribute's type.
        unsafe {
            let value = core::ptr::from_ref(value).cast::<c_void>();
            lt::set_matmul_desc_attribute(self.product, attribute, value, size_of::<T>())
                .map_err(failed_lt("cublasLtMatmulDescSetAttribute"))
        }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: made by `new`, in part where it failed; a failure to free is nobody's to mend here.
        unsafe {
            for layout in [self.left, self.right, self.out] {
                if !layout.is_null() {
                    let _ = lt::destroy_matrix_layout(layout);
                }
            }
            if !self.product.is_null() {
                let _ = lt::destroy_matmul_desc(self.product);
            }
        }
    }
}

/// `CUBLAS_OP_N` and `CUBLAS_OP_T` of cublas_api.h, which cudarc gives with cuBLAS alone.
const AS_STORED: i32 = 0;
const TRANSPOSED: i32 = 1;

fn operation(operand: Operand) -> i32 {
    if operand.transposed { TRANSPOSED } else { AS_STORED }
}

/// A column-major layout of so many rows and columns.
fn layout(
    of: Operand,
    rows: usize,
    columns: usize,
    batch: usize,
) -> Result<sys::cublasLtMatrixLayout_t, CudaError> {
    let data = match of.data {
        DataType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DataType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    };
    let made = lt::create_matrix_layout(data, rows as u64, columns as u64, of.leading as i64)
        .map_err(failed_lt("cublasLtMatrixLayoutCreate"))?;
    if batch > 1 {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (count, stride) = (batch as i32, of.stride as i64);
        // SAFETY: the layout was just made; a count is 32 bits, an offset 64.
        let outcome = unsafe {
            let count = (&raw const count).cast::<c_void>();
            let stride = (&raw const stride).cast::<c_void>();
            let batches = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            let offset = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            lt::set_matrix_layout_attribute(made, batches, count, 4)
                .and_then(|()| lt::set_matrix_layout_attribute(made, offset, stride, 8))
        };
        if let Err(error) = outcome {
            // SAFETY: made above and given to nobody.
            let _ = unsafe { lt::destroy_matrix_layout(made) };
            return Err(CudaError::device("cublasLtMatrixLayoutSetAttribute", error));
        }
    }
    Ok(made)
}

/// What a search is told, destroyed when dropped.
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new(shape: &Shape, workspace: usize) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let made =
            Self(lt::create_matmul_pref().map_err(failed_lt("cublasLtMatmulPreferenceCreate"))?);
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace as u64)?;
        // Reduction scheme NONE is 0, whose mask has no bit.
        let reductions = shape.reductions();
        made.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions)?;
        let alignments = [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.out),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.out),
        ];
        for (attribute, operand) in alignments {
            made.set(attribute, operand.alignment as u32)?;
        }
        Ok(made)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), CudaError> {
        // SAFETY: the preference is alive, and the value of the attribute's type.
        unsafe {
            let value = (&raw const value).cast::<c_void>();
            lt::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>())
                .map_err(failed_lt("cublasLtMatmulPreferenceSetAttribute"))
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(leading: usize, transposed: bool) -> Matrix {
        Matrix { address: 256, data: DataType::Bf16, leading, transposed, stride: 0 }
    }

    /// The first part of depth 24's widest gradients at 350,200 rows, and all modulation at once.
    #[test]
    fn a_reference_is_no_larger_than_a_product_may_be() {
        let (rows, wide, width) = (349_440, 6144, 1536);
        let input = Gemm {
            m: rows,
            n: width,
            k: wide,
            a: matrix(wide, false),
            b: matrix(width, false),
            out: matrix(width, false),
            accumulate: false,
            bias: None,
            batch: 1,
            sample: Sample::All,
        };
        let weight = Gemm {
            m: wide,
            k: rows,
            a: matrix(wide, true),
            b: matrix(width, false),
            out: Matrix { data: DataType::F32, ..matrix(width, false) },
            ..input
        };
        let modulation = 6 * 24 * width;
        let layer = Gemm {
            m: 64,
            n: modulation,
            k: width,
            a: matrix(width, false),
            b: matrix(width, true),
            out: matrix(modulation, false),
            sample: Sample::Row,
            ..input
        };
        let [input, weight, layer] =
            [input, weight, layer].map(|gemm| Shape::of(&gemm).reference());
        assert_eq!((input.m, weight.k), (1 << 18, 1 << 18));
        assert_eq!(layer.m, 1 << 13);
        assert!(layer.m * modulation <= MOST_ELEMENTS && 2 * layer.m * modulation > MOST_ELEMENTS);
        let narrow = Shape { out: Operand::of(&matrix(width, false)), ..layer };
        assert_eq!(narrow.reference().m, REFERENCE_ROWS);
    }
}
