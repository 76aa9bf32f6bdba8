//! A GPU: memory, kernels and products on one stream of the CUDA driver.

mod descriptors;
mod errors;
mod events;
mod functions;
mod plans;
mod pool;
mod profile;
mod recordings;
mod staging;
mod trial;

use super::{Device, Launch};
use crate::cache::Cache;
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::probe::{self, Gpu};
use crate::work::{Tally, Work};
use core::ffi::c_void;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use errors::{failed, failed_unless_full};
use functions::Functions;
use plans::Plans;
use pool::Pool;
use profile::Profile;
use recordings::{Gate, Next, Recordings, State};
use staging::Staging;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard};

/// A GPU of this machine.
pub struct Driver {
    gpu: Gpu,
    shared_bytes: usize,
    pool: Pool,
    /// Whether work is never recorded for replay, but run anew each time.
    unrecorded: bool,
    gate: Gate,
    // Fields are dropped in this order: what belongs to the context is dropped before it.
    profile: Mutex<Option<Profile>>,
    recordings: Mutex<Recordings>,
    staging: Mutex<Staging>,
    plans: Mutex<Plans>,
    functions: Functions,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Access to the stream, which no other thread records while this is held.
struct Turn<'a> {
    stream: sys::CUstream,
    _pass: Option<RwLockReadGuard<'a, ()>>,
}

// SAFETY: handles of the driver and of cuBLASLt may be used from any thread; those that must not be
// used from two at once are behind mutexes, and the context is bound on each entry.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// Creates a stream in a GPU's context. The process keeps the context, because libraries that hold on to it
/// do not survive its release with the last [`Driver`] and its creation anew with the next. A context that a
/// fault has made unusable is released.
fn stream_of(ordinal: usize) -> Result<Arc<CudaStream>, CudaError> {
    static CONTEXTS: Mutex<BTreeMap<usize, Arc<CudaContext>>> = Mutex::new(BTreeMap::new());
    let mut contexts = locked(&CONTEXTS);
    if let Some(stream) = contexts.get(&ordinal).and_then(|context| context.new_stream().ok()) {
        return Ok(stream);
    }
    contexts.remove(&ordinal);
    let context = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
    // SAFETY: all work is in the order of one stream, so events need not track it.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
    contexts.insert(ordinal, context);
    Ok(stream)
}

impl Driver {
    /// Bytes of GPU memory that matrix products reserve, whatever is computed.
    pub const PRODUCT_SPACE: usize = plans::SPACE;

    /// Opens GPU number `ordinal`, with kernels from the user's cache.
    ///
    /// # Errors
    /// The error of [`probe::usable`]; [`CudaError::Device`] if the driver fails.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        Self::with_cache(ordinal, Cache::of_user()?)
    }

    /// Like [`Driver::new`], with kernels kept in a folder of the caller's choice.
    ///
    /// # Errors
    /// As [`Driver::new`].
    pub fn with_cache(ordinal: usize, cache: Cache) -> Result<Self, CudaError> {
        let gpu = probe::usable(ordinal)?;
        let stream = stream_of(ordinal)?;
        let context = Arc::clone(stream.context());
        // Before anything is allocated from it.
        let pool = Pool::of(&context, plans::SPACE)?;
        let plans = Plans::new(&stream)?;
        let shared = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let shared = context.attribute(shared).map_err(failed("cuDeviceGetAttribute"))?;
        Ok(Self {
            shared_bytes: shared.max(0) as usize,
            profile: Mutex::default(),
            functions: Functions::new(cache, gpu.arch()),
            staging: Mutex::new(Staging::new()?),
            recordings: Mutex::default(),
            plans: Mutex::new(plans),
            pool,
            unrecorded: recordings::switched_off()?,
            gate: Gate::default(),
            gpu,
            context,
            stream,
        })
    }

    /// What is known about the GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Descriptions of the product shapes so far whose rows may differ in bits from the same rows of another
    /// batch, because they do not run with the algorithm that was chosen for their layer.
    pub fn products_apart(&self) -> Vec<String> {
        locked(&self.plans).apart().iter().map(|shape| format!("{shape:?}")).collect()
    }

    /// Number of [`Driver::products_apart`] whose columns and terms are whole vectors, as those of models are.
    pub fn ordinary_products_apart(&self) -> usize {
        locked(&self.plans).apart().iter().filter(|shape| shape.is_ordinary()).count()
    }

    /// Number of shapes of few rows so far that run with an algorithm of their own, which a trial showed to
    /// give the same bits as their layer's.
    pub fn products_tried(&self) -> usize {
        locked(&self.plans).tried()
    }

    /// Number of sequences of launches that are recorded as graphs.
    pub fn recorded(&self) -> usize {
        locked(&self.recordings).recorded()
    }

    /// Access to the stream, for work that may be recorded.
    fn enter(&self) -> Result<Turn<'_>, CudaError> {
        let turn = Turn { _pass: self.gate.pass(), stream: self.stream.cu_stream() };
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        Ok(turn)
    }

    /// Like [`Driver::enter`], for calls that a recording would carry out only once, or not at all; an error
    /// while this thread records.
    fn enter_unrecorded(&self, what: &'static str) -> Result<Turn<'_>, CudaError> {
        if self.gate.is_recorder() {
            return Err(CudaError::device(what, "not while work is recorded to be replayed"));
        }
        self.enter()
    }

    /// Computes a product without terms: zero, or the bias.
    ///
    /// # Safety
    /// As [`Device::gemm`].
    unsafe fn without_terms(&self, gemm: &Gemm) -> Result<(), CudaError> {
        let bytes = gemm.out.data.bytes();
        if gemm.accumulate {
            return match gemm.bias {
                None => Ok(()),
                Some(_) => Err(CudaError::Unsupported {
                    op: "matrix product",
                    what: "a bias alone cannot be added to what is there".to_owned(),
                }),
            };
        }
        for (product, row) in (0..gemm.batch).flat_map(|p| (0..gemm.m).map(move |row| (p, row))) {
            let at = (product * gemm.out.stride + row * gemm.out.leading) * bytes;
            let row = gemm.out.address + at as u64;
            // SAFETY: a row of out; the bias has as many elements of the same type.
            unsafe {
                match gemm.bias {
                    None => self.zero(row, gemm.n * bytes)?,
                    Some(bias) => self.copy(bias, row, gemm.n * bytes)?,
                }
            }
        }
        Ok(())
    }

    /// Issues work to the stream, and notes it in the profile if one is being taken.
    fn accounted(
        &self,
        turn: &Turn<'_>,
        name: impl FnOnce() -> String,
        work: Work,
        launch: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        match locked(&self.profile).as_mut() {
            None => launch(),
            Some(profile) => profile.span(turn.stream, name(), work, launch),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropping the fields requires the context, which this thread may never have used, and that
        // all work has ended. A fault of that work can no longer be reported to anyone.
        let _ = self.context.bind_to_thread();
        let _ = self.synchronize();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Driver {
    fn describe(&self) -> String {
        self.gpu.to_string()
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        let _turn = self.enter_unrecorded("loading kernels")?;
        self.functions.prepare(variant)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let turn = self.enter_unrecorded("allocation")?;
        self.pool.allocate(turn.stream, bytes)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        if self.gate.is_recorder() {
            self.pool.defer(address, bytes);
        } else if let Ok(turn) = self.enter() {
            // SAFETY: upheld by the caller.
            unsafe { self.pool.release(turn.stream, address, bytes) }
        }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        let turn = self.enter_unrecorded("upload")?;
        // SAFETY: the range lies in held memory, as the caller guarantees.
        unsafe { locked(&self.staging).write(turn.stream, host, to) }
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        let turn = self.enter_unrecorded("download")?;
        // SAFETY: the range lies in held memory, as the caller guarantees; the host's outlives the wait.
        unsafe {
            result::memcpy_dtoh_async(host, from, turn.stream)
                .map_err(failed("cuMemcpyDtoHAsync"))?;
            result::stream::synchronize(turn.stream).map_err(failed("cuStreamSynchronize"))
        }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        let turn = self.enter()?;
        // SAFETY: the range lies in held memory, as the caller guarantees.
        unsafe {
            result::memset_d8_async(at, 0, bytes, turn.stream).map_err(failed("cuMemsetD8Async"))
        }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        let turn = self.enter()?;
        // SAFETY: both ranges lie in held memory, as the caller guarantees.
        unsafe {
            result::memcpy_dtod_async(to, from, bytes, turn.stream)
                .map_err(failed("cuMemcpyDtoDAsync"))
        }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let turn = self.enter()?;
        let function = self.functions.get(launch)?;
        let mut args: Vec<*mut c_void> = launch.args.iter().map(|arg| arg.place()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        self.accounted(
            &turn,
            || launch.kernel.name.to_owned(),
            launch.work,
            || {
                let (grid, block) = ((gx, gy, gz), (bx, by, bz));
                // SAFETY: the function is of a module that stays loaded; arguments are the caller's.
                unsafe {
                    result::launch_kernel(
                        function,
                        grid,
                        block,
                        launch.shared,
                        turn.stream,
                        &mut args,
                    )
                    .map_err(failed(launch.kernel.name))
                }
            },
        )
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        if gemm.k == 0 {
            // SAFETY: the matrices lie in held memory, as the caller guarantees.
            return unsafe { self.without_terms(gemm) };
        }
        let turn = self.enter()?;
        self.accounted(
            &turn,
            || gemm.name(),
            gemm.work(),
            || {
                // SAFETY: as above.
                unsafe { locked(&self.plans).run(turn.stream, gemm, self.gate.is_recorder()) }
            },
        )
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        let turn = self.enter_unrecorded("waiting for the device")?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(turn.stream).map_err(failed("cuStreamSynchronize")) }
    }

    unsafe fn forget(&self, _at: u64, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        // The kernels of a recording cannot be timed one by one.
        if locked(&self.profile).is_some() || self.unrecorded {
            return work();
        }
        let next = {
            let turn = self.enter_unrecorded("a recording")?;
            Recordings::next(&self.recordings, turn.stream, key)?
        };
        match next {
            Next::Launched => Ok(()),
            Next::Run => {
                work()?;
                locked(&self.recordings).remember(key, State::Warm);
                Ok(())
            }
            Next::Record => {
                // Of a recording that a panic ended; not while another thread records.
                self.enter().map(|turn| self.pool.release_deferred(turn.stream))?;
                let recorded = self.gate.record(self.stream.cu_stream(), work);
                let released = self.pool.release_deferred(self.stream.cu_stream());
                let recording = State::Recorded(recorded?);
                if released > 0 {
                    let what = "memory was given back while work was recorded to be replayed";
                    return Err(CudaError::device("a recording", what));
                }
                locked(&self.recordings).remember(key, recording);
                let turn = self.enter()?;
                Recordings::next(&self.recordings, turn.stream, key).map(|_| ())
            }
        }
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        let _turn = self.enter_unrecorded("beginning a profile")?;
        *locked(&self.profile) = Some(Profile::begin()?);
        Ok(())
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        let _turn = self.enter_unrecorded("ending a profile")?;
        let profile = locked(&self.profile).take();
        profile.map_or(Ok(Vec::new()), Profile::finish)
    }

    fn product_notes(&self) -> Vec<String> {
        locked(&self.plans).notes()
    }

    fn peak_bytes(&self) -> usize {
        self.pool.peak()
    }
}
