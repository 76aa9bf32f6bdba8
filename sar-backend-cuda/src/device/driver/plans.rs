//! Matrix products through cuBLASLt, each planned once.
//!
//! An algorithm is chosen for the shape *without* its samples (see [`Shape::reference`]): one product of
//! a layer sums in the same order whatever the batch, so that a row of it has the same bits alone as
//! among others. Split-k and other reductions through memory are excluded for the same reason, but for
//! gradients, whose few tiles would leave most multiprocessors idle while the sum is long.

use super::descriptors::{BEST_ALIGNMENT, Descriptors, Preference, Shape, failed_lt};
use super::{failed, out_of_memory};
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::libraries::Library;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaStream, result as driver};
use std::collections::HashMap;
use std::sync::Arc;

/// Memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Memory behind the workspace for one bias that is moved to an aligned address.
const BIAS: usize = 1 << 20;
/// Bytes that products keep of the device, whatever is computed.
pub(super) const SPACE: usize = WORKSPACE + BIAS;
/// Candidates asked for, best first.
const CANDIDATES: usize = 16;

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
    /// Shapes that did not take the algorithm of their reference.
    apart: usize,
    /// The workspace is the stream's memory: it must outlive this.
    stream: Arc<CudaStream>,
}

impl Plans {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaError> {
        Library::CublasLt.open()?;
        let mut made = Self {
            handle: lt::create_handle().map_err(failed_lt("cublasLtCreate"))?,
            workspace: 0,
            algorithms: HashMap::new(),
            plans: HashMap::new(),
            apart: 0,
            stream: Arc::clone(stream),
        };
        // SAFETY: released in `drop`, on the same stream.
        made.workspace = unsafe {
            driver::malloc_async(stream.cu_stream(), SPACE).map_err(out_of_memory(SPACE, 0))?
        };
        Ok(made)
    }

    /// Shapes so far that did not take the algorithm of their reference.
    pub(super) fn apart(&self) -> usize {
        self.apart
    }

    /// Runs a product.
    ///
    /// # Safety
    /// Its matrices and bias lie in held memory.
    pub(super) unsafe fn run(&mut self, stream: CUstream, gemm: &Gemm) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        let bias = unsafe { self.aligned_bias(stream, gemm)? };
        let shape = Shape::of(gemm);
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape, bias)?;
            self.plans.insert(shape, plan);
        }
        let Some(Plan { descriptors, algorithm }) = self.plans.get(&shape) else {
            return Err(CudaError::device("cublasLtMatmul", format!("no plan for {shape:?}")));
        };
        if let Some(bias) = bias {
            descriptors.set_bias(bias)?;
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

    /// The address of the bias, or of a copy where epilogues could not load vectors from it.
    ///
    /// # Safety
    /// The bias lies in held memory.
    unsafe fn aligned_bias(&self, stream: CUstream, gemm: &Gemm) -> Result<Option<u64>, CudaError> {
        let Some(bias) = gemm.bias.filter(|bias| !bias.is_multiple_of(BEST_ALIGNMENT)) else {
            return Ok(gemm.bias);
        };
        let bytes = gemm.n * gemm.out.data.bytes();
        if bytes > BIAS {
            let what = format!("a bias of {bytes} bytes that is not aligned; at most {BIAS}");
            return Err(CudaError::Unsupported { op: "linear", what });
        }
        let copy = self.workspace + WORKSPACE as u64;
        // SAFETY: the bias is held, says the caller, and is none of ours. Products of the stream that
        // read an earlier copy have done so when this one is made.
        unsafe {
            driver::memcpy_dtod_async(copy, bias, bytes, stream)
                .map_err(failed("cuMemcpyDtoDAsync"))?;
        }
        Ok(Some(copy))
    }

    fn plan(&mut self, shape: Shape, bias: Option<u64>) -> Result<Plan, CudaError> {
        let descriptors = Descriptors::new(&shape, bias)?;
        let reference = shape.reference();
        let algorithm = match self.algorithms.get(&reference) {
            Some(algorithm) => *algorithm,
            None => {
                let chosen = choose(self.handle, &reference, &Descriptors::new(&reference, bias)?)?;
                self.algorithms.insert(reference, chosen);
                chosen
            }
        };
        if self.fits(&descriptors, &algorithm) {
            return Ok(Plan { descriptors, algorithm });
        }
        // The reference's algorithm does not take this size, for all runs alike: take its own.
        self.apart += 1;
        let algorithm = choose(self.handle, &shape, &descriptors)?;
        Ok(Plan { descriptors, algorithm })
    }

    /// Whether an algorithm takes a shape within the workspace.
    fn fits(&self, d: &Descriptors, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
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
            if self.workspace != 0 {
                let _ = driver::free_async(self.workspace, self.stream.cu_stream());
            }
            let _ = lt::destroy_handle(self.handle);
        }
    }
}

/// The library's first choice among algorithms that sum as the shape allows.
fn choose(
    handle: sys::cublasLtHandle_t,
    shape: &Shape,
    d: &Descriptors,
) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
    let preference = Preference::new(shape, WORKSPACE)?;
    let mut found = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
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
            found.as_mut_ptr().cast(),
            &mut count,
        );
        status.result().map_err(failed_lt("cublasLtMatmulAlgoGetHeuristic"))?;
    }
    // SAFETY: the first `count` were written.
    let written = found.iter().take(count.max(0) as usize).map(|c| unsafe { c.assume_init() });
    let mut usable = written.filter(|c| c.state.result().is_ok() && sums_as(shape, &c.algo));
    usable.next().map(|chosen| chosen.algo).ok_or_else(|| {
        CudaError::device("cublasLtMatmulAlgoGetHeuristic", format!("no algorithm for {shape:?}"))
    })
}

/// Whether an algorithm adds as the shape's samples allow: k in one go, or split among blocks whose sums
/// are added through memory in a fixed order.
fn sums_as(shape: &Shape, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    // An algorithm without these settings does not split; 0 and 1 part are one, and so is "none".
    let parts = setting(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM).unwrap_or(0);
    let scheme = setting(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME).unwrap_or(0);
    let whole = (0..=1).contains(&parts) && scheme == 0;
    whole || (scheme != 0 && shape.reductions() == scheme as u32)
}

/// A setting of an algorithm, where it has it.
fn setting(
    algorithm: &sys::cublasLtMatmulAlgo_t,
    attribute: sys::cublasLtMatmulAlgoConfigAttributes_t,
) -> Option<i32> {
    let (mut value, mut written) = (0i32, 0);
    // SAFETY: the settings that are asked for have 32 bits.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            attribute,
            (&raw mut value).cast(),
            size_of::<i32>(),
            &mut written,
        )
    };
    status.result().is_ok().then_some(value)
}
