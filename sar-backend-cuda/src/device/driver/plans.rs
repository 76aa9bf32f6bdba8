//! Matrix products through cuBLASLt, each planned once.
//!
//! cuBLASLt is column-major, so `out[m, n] = a·b` is asked of it as `outᵀ = bᵀ·aᵀ`: its left operand
//! is our `b`, its right one our `a`, its m our n.
//!
//! An algorithm is chosen for the shape *without* its rows (see [`Shape::reference`]): one product of
//! a layer sums in the same order whatever the batch, so that a row of it has the same bits alone as
//! among others. Split-k and other reductions through memory are excluded for the same reason.

use super::failed;
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix};
use crate::libraries::Library;
use core::ffi::c_void;
use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaStream, result as driver};
use std::collections::HashMap;
use std::sync::Arc;

/// Memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Candidates asked for, best first.
const CANDIDATES: usize = 16;
/// Rows for which the algorithm of a layer is chosen: a training step's, of the order of 64 images.
const REFERENCE_ROWS: usize = 1 << 15;
/// Alignments beyond this one change nothing.
const BEST_ALIGNMENT: u64 = 16;

fn failed_lt(call: &'static str) -> impl Fn(CublasError) -> CudaError {
    move |error| CudaError::device(call, error)
}

/// All that a plan depends on: a product without its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    a: Operand,
    b: Operand,
    out: Operand,
    accumulate: bool,
    bias: bool,
    batch: usize,
}

/// A matrix without its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operand {
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
    fn of(gemm: &Gemm) -> Self {
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
        }
    }

    /// The shape that stands for all that must share an algorithm.
    ///
    /// Of a layer's outputs and input gradients (`a` as it is stored), rows and batch are free. Of a
    /// weight gradient (`a` transposed) the rows are its terms k, and one image more changes its sums
    /// anyway: k goes by powers of two, so that random schedules do not plan anew each step.
    fn reference(self) -> Self {
        let alone = |operand: Operand| Operand { stride: 0, ..operand };
        let one = Self { a: alone(self.a), b: alone(self.b), out: alone(self.out), ..self };
        match self.a.transposed {
            true => Self { k: self.k.next_power_of_two(), batch: 1, ..one },
            false => Self { m: REFERENCE_ROWS, batch: 1, ..one },
        }
    }
}

/// Descriptors of a product, destroyed when dropped.
struct Descriptors {
    product: sys::cublasLtMatmulDesc_t,
    left: sys::cublasLtMatrixLayout_t,
    right: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
}

impl Descriptors {
    fn new(shape: &Shape) -> Result<Self, CudaError> {
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
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            made.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        Ok(made)
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

/// A product ready to run: descriptors of its own shape, the algorithm of its reference.
struct Plan {
    descriptors: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt's handle, its workspace, and what was planned so far.
pub(super) struct Plans {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    algorithms: HashMap<Shape, sys::cublasLtMatmulAlgo_t>,
    plans: HashMap<Shape, Plan>,
    /// The workspace is the stream's memory: it must outlive this.
    stream: Arc<CudaStream>,
}

impl Plans {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        Library::CublasLt.open()?;
        let handle = lt::create_handle().map_err(failed_lt("cublasLtCreate"))?;
        // SAFETY: released in `drop`, on the same stream.
        let workspace = unsafe {
            driver::malloc_async(stream.cu_stream(), WORKSPACE)
                .map_err(failed("cuMemAllocAsync"))?
        };
        let (algorithms, plans) = (HashMap::new(), HashMap::new());
        Ok(Self { handle, workspace, algorithms, plans, stream: Arc::clone(stream) })
    }

    /// Runs a product.
    ///
    /// # Safety
    /// Its matrices and bias lie in held memory.
    pub(super) unsafe fn run(
        &mut self,
        stream: cudarc::driver::sys::CUstream,
        gemm: &Gemm,
    ) -> Result<(), CudaError> {
        let shape = Shape::of(gemm);
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape)?;
            self.plans.insert(shape, plan);
        }
        let Some(Plan { descriptors, algorithm }) = self.plans.get(&shape) else { return Ok(()) };
        if let Some(bias) = gemm.bias {
            let pointer = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            descriptors.set(pointer, &bias)?;
        }
        let (one, before) = (1f32, if gemm.accumulate { 1f32 } else { 0f32 });
        // SAFETY: descriptors are alive; addresses are the caller's; scalars are read before return.
        unsafe {
            lt::matmul(
                self.handle,
                descriptors.product,
                (&raw const one).cast(),
                (&raw const before).cast(),
                gemm.b.address as *const c_void,
                descriptors.left,
                gemm.a.address as *const c_void,
                descriptors.right,
                gemm.out.address as *const c_void,
                descriptors.out,
                gemm.out.address as *mut c_void,
                descriptors.out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
            .map_err(|error| CudaError::device("cublasLtMatmul", format!("{error} for {shape:?}")))
        }
    }

    fn plan(&mut self, shape: Shape) -> Result<Plan, CudaError> {
        let descriptors = Descriptors::new(&shape)?;
        let reference = shape.reference();
        let algorithm = match self.algorithms.get(&reference) {
            Some(algorithm) => *algorithm,
            None => {
                let chosen = choose(self.handle, &reference, &Descriptors::new(&reference)?)?;
                self.algorithms.insert(reference, chosen);
                chosen
            }
        };
        if self.fits(&descriptors, &algorithm) {
            return Ok(Plan { descriptors, algorithm });
        }
        // The reference's algorithm does not take this size, for all runs alike: take its own.
        let algorithm = choose(self.handle, &shape, &descriptors)?;
        Ok(Plan { descriptors, algorithm })
    }

    /// Whether an algorithm takes a shape within the workspace.
    fn fits(&self, d: &Descriptors, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = core::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: descriptors are alive; the answer is read only where there is one.
        unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                d.product,
                d.left,
                d.right,
                d.out,
                d.out,
                algorithm,
                found.as_mut_ptr(),
            );
            status.result().is_ok() && found.assume_init().workspaceSize <= WORKSPACE
        }
    }
}

impl Drop for Plans {
    fn drop(&mut self) {
        // SAFETY: made by `new`; freed in the order of the stream, after the products that use it.
        unsafe {
            let _ = driver::free_async(self.workspace, self.stream.cu_stream());
            let _ = lt::destroy_handle(self.handle);
        }
    }
}

/// The library's first choice among algorithms that sum in one go.
fn choose(
    handle: sys::cublasLtHandle_t,
    shape: &Shape,
    d: &Descriptors,
) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
    let preference = Preference::new(shape)?;
    let mut found =
        [core::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
    let mut count = 0;
    // SAFETY: descriptors and preference are alive; at most CANDIDATES answers are written.
    unsafe {
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            d.product,
            d.left,
            d.right,
            d.out,
            d.out,
            preference.0,
            CANDIDATES as i32,
            found[0].as_mut_ptr(),
            &mut count,
        );
        status.result().map_err(failed_lt("cublasLtMatmulAlgoGetHeuristic"))?;
    }
    // SAFETY: the first `count` were written.
    let written = found.iter().take(count.max(0) as usize).map(|c| unsafe { c.assume_init() });
    let mut usable = written.filter(|c| c.state.result().is_ok() && sums_in_one_go(&c.algo));
    usable.next().map(|chosen| chosen.algo).ok_or_else(|| {
        CudaError::device("cublasLtMatmulAlgoGetHeuristic", format!("no algorithm for {shape:?}"))
    })
}

/// Whether k is not split among blocks.
fn sums_in_one_go(algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    let mut parts = 0i32;
    let mut written = 0;
    // SAFETY: the number of parts is 32 bits.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
            (&raw mut parts).cast(),
            size_of::<i32>(),
            &mut written,
        )
    };
    // An algorithm that does not have the setting does not split.
    status.result().is_err() || (0..=1).contains(&parts)
}

/// What a search is told, destroyed when dropped.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(shape: &Shape) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let made =
            Self(lt::create_matmul_pref().map_err(failed_lt("cublasLtMatmulPreferenceCreate"))?);
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // Reduction scheme NONE is 0, whose mask has no bit: k is not split.
        made.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 0u32)?;
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
