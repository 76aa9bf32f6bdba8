//! Matrix products through cuBLASLt, each planned once.
//!
//! An algorithm is chosen for the shape *without* its number of samples (see [`Shape::reference`]): a
//! layer's product sums in the same order whatever the batch, so that a row of it has the same bits alone
//! as among others. Split-k and other reductions through memory are excluded for the same reason, except
//! for gradients, whose few tiles would leave most multiprocessors idle during their long sums. A product
//! of few rows takes an algorithm of its own if a trial shows that it gives the same bits (see [`trial`]).

use super::descriptors::{BEST_ALIGNMENT, Descriptors, Preference, Shape, failed_lt};
use super::errors::{failed, out_of_memory};
use super::events::Clock;
use super::trial::{self, Noise};
use crate::error::CudaError;
use crate::gemm::{Gemm, Sample};
use crate::libraries::Library;
use core::ffi::c_void;
use core::mem::MaybeUninit;
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;
use cudarc::driver::{CudaStream, result as driver};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Bytes behind the workspace for one bias that is copied to an aligned address.
const BIAS: usize = 1 << 20;
/// Bytes of device memory that products reserve, whatever is computed.
pub(super) const SPACE: usize = WORKSPACE + BIAS;
/// Number of candidate algorithms asked for; they come best first.
const CANDIDATES: usize = 32;

/// A product ready to run: descriptors of its own shape, and an algorithm.
struct Plan {
    descriptors: Descriptors,
    algorithm: Algorithm,
}

type Algorithm = sys::cublasLtMatmulAlgo_t;

/// Addresses of a product's matrices, and the factor for what `out` held before.
#[derive(Clone, Copy)]
struct Addresses {
    a: u64,
    b: u64,
    out: u64,
    before: f32,
}

/// cuBLASLt's handle, its workspace, and what was planned so far.
pub(super) struct Plans {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// Algorithms of reference shapes; `None` where the library has none.
    algorithms: HashMap<Shape, Option<Algorithm>>,
    plans: HashMap<Shape, Plan>,
    /// Shapes that did not take the algorithm of their reference.
    apart: Vec<Shape>,
    /// Reference shapes whose algorithm is not the library's first choice, and the number of the choice that
    /// it is, counted from 0.
    demoted: Vec<(Shape, usize)>,
    /// Number of shapes that run with an algorithm of their own and have the bits of their reference's.
    tried: usize,
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
            apart: Vec::new(),
            demoted: Vec::new(),
            tried: 0,
            stream: Arc::clone(stream),
        };
        // SAFETY: released in `drop`, on the same stream.
        made.workspace = unsafe {
            driver::malloc_async(stream.cu_stream(), SPACE).map_err(out_of_memory(SPACE, 0))?
        };
        Ok(made)
    }

    /// Shapes so far that did not take the algorithm of their reference.
    pub(super) fn apart(&self) -> &[Shape] {
        &self.apart
    }

    /// Notes on the algorithms that were not chosen in the usual way.
    pub(super) fn notes(&self) -> Vec<String> {
        let demoted = self.demoted.iter().map(|(shape, number)| {
            let choice = number + 1;
            format!("choice {choice} of cuBLASLt's, which takes all sizes, computes {shape:?}")
        });
        let apart = self
            .apart
            .iter()
            .map(|shape| format!("an algorithm of its own, not its layer's, computes {shape:?}"));
        let tried = (self.tried > 0).then(|| {
            format!(
                "{} shapes of few rows have faster algorithms with their layers' bits",
                self.tried
            )
        });
        demoted.chain(apart).chain(tried).collect()
    }

    /// Number of shapes of few rows so far that run with an algorithm of their own.
    pub(super) fn tried(&self) -> usize {
        self.tried
    }

    /// Runs a product. While work is being `recorded`, no algorithm can be tried.
    ///
    /// # Safety
    /// Its matrices and bias lie in held memory.
    pub(super) unsafe fn run(
        &mut self,
        stream: CUstream,
        gemm: &Gemm,
        recorded: bool,
    ) -> Result<(), CudaError> {
        // SAFETY: upheld by the caller.
        let bias = unsafe { self.aligned_bias(stream, gemm)? };
        let shape = Shape::of(gemm);
        if !self.plans.contains_key(&shape) {
            let mut plan = self.plan(shape, bias)?;
            if shape.is_of_few_rows() && !recorded {
                // SAFETY: what out holds is not needed: the product below overwrites it.
                plan.algorithm =
                    unsafe { self.for_few_rows(stream, &shape, &plan, gemm.out.address)? };
            }
            self.plans.insert(shape, plan);
        }
        let Some(Plan { descriptors, algorithm }) = self.plans.get(&shape) else {
            return Err(CudaError::device("cublasLtMatmul", format!("no plan for {shape:?}")));
        };
        if let Some(bias) = bias {
            descriptors.set_bias(bias)?;
        }
        let before = if gemm.accumulate { 1.0 } else { 0.0 };
        let (a, b, out) = (gemm.a.address, gemm.b.address, gemm.out.address);
        // SAFETY: upheld by the caller.
        let outcome = unsafe {
            self.multiply(stream, descriptors, algorithm, Addresses { a, b, out, before })
        };
        outcome.map_err(|error| match failed_lt("cublasLtMatmul")(error) {
            CudaError::Device { call, reason } => {
                CudaError::Device { call, reason: format!("{reason} for {shape:?}") }
            }
            other => other,
        })
    }

    /// Issues a product to the stream.
    ///
    /// # Safety
    /// The addresses are of matrices in held memory, which the descriptors describe.
    unsafe fn multiply(
        &self,
        stream: CUstream,
        descriptors: &Descriptors,
        algorithm: &Algorithm,
        Addresses { a, b, out, before }: Addresses,
    ) -> Result<(), lt::CublasError> {
        let one = 1f32;
        // SAFETY: descriptors are alive; addresses are the caller's; scalars are read before return.
        unsafe {
            lt::matmul(
                self.handle,
                descriptors.product,
                (&raw const one).cast(),
                (&raw const before).cast(),
                b as *const c_void,
                descriptors.left,
                a as *const c_void,
                descriptors.right,
                out as *const c_void,
                descriptors.out,
                out as *mut c_void,
                descriptors.out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
    }

    /// The address of the bias, or of an aligned copy if epilogues could not load vectors from the bias.
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
        // SAFETY: the bias is held, as the caller guarantees, and does not overlap the copy. Products that
        // read an earlier copy come before this one in the stream.
        unsafe {
            driver::memcpy_dtod_async(copy, bias, bytes, stream)
                .map_err(failed("cuMemcpyDtoDAsync"))?;
        }
        Ok(Some(copy))
    }

    fn plan(&mut self, shape: Shape, bias: Option<u64>) -> Result<Plan, CudaError> {
        let descriptors = Descriptors::new(&shape, bias)?;
        let of_layer = self.of_layer(&shape, bias)?;
        let mut algorithm = match of_layer.filter(|algorithm| self.fits(&descriptors, algorithm)) {
            Some(algorithm) => algorithm,
            None => {
                // The reference's algorithm does not take this size (in any run): take the shape's own.
                if shape.sample != Sample::All {
                    self.apart.push(shape);
                }
                first(self.candidates(&shape, &descriptors)?, &shape)?
            }
        };
        if shape.may_lose_terms(parts(&algorithm)) {
            let whole = shape.in_one_go();
            algorithm = first(self.candidates(&whole, &descriptors)?, &whole)?;
        }
        Ok(Plan { descriptors, algorithm })
    }

    /// The algorithm of all products that share a shape's reference: the first of the library's choices that
    /// takes all sizes they will have, or simply the first if none does; `None` if the library has none for
    /// the reference.
    fn of_layer(
        &mut self,
        shape: &Shape,
        bias: Option<u64>,
    ) -> Result<Option<Algorithm>, CudaError> {
        let reference = shape.reference();
        if let Some(algorithm) = self.algorithms.get(&reference) {
            return Ok(*algorithm);
        }
        let candidates = self.candidates(&reference, &Descriptors::new(&reference, bias)?)?;
        let met: Result<Vec<_>, _> =
            reference.met().iter().map(|s| Descriptors::new(s, bias)).collect();
        let met = met?;
        let takes_all = |candidate: &Algorithm| met.iter().all(|d| self.fits(d, candidate));
        let number = candidates.iter().position(takes_all).unwrap_or(0);
        if number > 0 {
            self.demoted.push((reference, number));
        }
        let chosen = candidates.get(number).copied();
        self.algorithms.insert(reference, chosen);
        Ok(chosen)
    }

    /// The fastest of the algorithms that give the same bits as a plan's: the plan's own, or one of the
    /// library's choices for the shape. The order of those says little about speed when sums are in one part
    /// (with 2 rows and 4,096 terms, the first with the same bits took 88 µs on an H100, the plan's own 41 and
    /// the best 10). Which one is fastest may differ from run to run, as times do; that the bits do not differ
    /// rests on the trial.
    ///
    /// An algorithm that cannot be timed is not taken; a fault of the device is left for the product to report.
    ///
    /// # Safety
    /// `out` is held, and its contents are not needed.
    unsafe fn for_few_rows(
        &mut self,
        stream: CUstream,
        shape: &Shape,
        plan: &Plan,
        out: u64,
    ) -> Result<Algorithm, CudaError> {
        let Plan { descriptors, algorithm: of_layer } = plan;
        let mut others = self.candidates(shape, descriptors)?;
        others.retain(|candidate| candidate.data != of_layer.data);
        if others.is_empty() {
            return Ok(*of_layer);
        }
        let Some(noise) = Noise::new(stream, shape)? else { return Ok(*of_layer) };
        if shape.has_bias() {
            descriptors.set_bias(noise.bias)?;
        }
        let addresses = Addresses { a: noise.a, b: noise.b, out, before: 0.0 };
        let run = |algorithm: &Algorithm| {
            // SAFETY: noise has the operands' shapes; the caller vouches for out.
            unsafe { self.multiply(stream, descriptors, algorithm, addresses) }
        };
        let outcome = |algorithm: &Algorithm| match run(algorithm) {
            // SAFETY: the rows of out.
            Ok(()) => unsafe { trial::read(stream, out, shape).map(Some) },
            // The algorithm was refused, and has written nothing.
            Err(_) => Ok(None),
        };
        let Some(expected) = outcome(of_layer)? else { return Ok(*of_layer) };
        if expected.iter().all(|byte| *byte == 0) {
            // There is no rounding to compare.
            return Ok(*of_layer);
        }
        let Ok(clock) = Clock::new() else { return Ok(*of_layer) };
        let seconds = |algorithm: &Algorithm| {
            trial::seconds(&clock, stream, || run(algorithm).map_err(failed_lt("cublasLtMatmul")))
        };
        let Ok(mut least) = seconds(of_layer) else { return Ok(*of_layer) };
        let mut fastest = *of_layer;
        for other in others {
            if outcome(&other)?.is_some_and(|found| found == expected)
                && let Ok(taken) = seconds(&other)
                && taken < least
            {
                (fastest, least) = (other, taken);
            }
        }
        self.tried += usize::from(fastest.data != of_layer.data);
        Ok(fastest)
    }

    /// Whether an algorithm takes a shape within the workspace.
    fn fits(&self, d: &Descriptors, algorithm: &Algorithm) -> bool {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: descriptors are alive; the answer is read only if there is one.
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

    /// The algorithms for a shape that sum in a way it allows, the library's first choice first.
    fn candidates(&self, shape: &Shape, d: &Descriptors) -> Result<Vec<Algorithm>, CudaError> {
        let preference = Preference::new(shape, WORKSPACE)?;
        let mut found = [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); CANDIDATES];
        let mut count = 0;
        // SAFETY: descriptors and preference are alive; at most CANDIDATES answers are written.
        unsafe {
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
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
            if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
                return Ok(Vec::new());
            }
            status.result().map_err(failed_lt("cublasLtMatmulAlgoGetHeuristic"))?;
        }
        // SAFETY: the first `count` were written.
        let written = found.iter().take(count.max(0) as usize).map(|c| unsafe { c.assume_init() });
        let usable = written.filter(|c| c.state.result().is_ok() && sums_as(shape, &c.algo));
        Ok(usable.map(|candidate| candidate.algo).collect())
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

/// The first candidate, or an error if there is none.
fn first(candidates: Vec<Algorithm>, shape: &Shape) -> Result<Algorithm, CudaError> {
    candidates.into_iter().next().ok_or_else(|| {
        CudaError::device("cublasLtMatmulAlgoGetHeuristic", format!("no algorithm for {shape:?}"))
    })
}

/// Whether an algorithm sums in a way that the shape's samples allow: over all of k at once, or split among
/// blocks whose sums are added through memory in a fixed order.
fn sums_as(shape: &Shape, algorithm: &Algorithm) -> bool {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    let scheme = setting(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME).unwrap_or(0);
    let whole = (0..=1).contains(&parts(algorithm)) && scheme == 0;
    whole || (scheme != 0 && shape.reductions() == scheme as u32)
}

/// Number of parts that an algorithm splits sums into; 0 and 1 both mean that it does not split. An
/// algorithm without this setting does not.
fn parts(algorithm: &Algorithm) -> i32 {
    use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
    setting(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM).unwrap_or(0)
}

/// A setting of an algorithm, if the algorithm has it.
fn setting(
    algorithm: &Algorithm,
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
