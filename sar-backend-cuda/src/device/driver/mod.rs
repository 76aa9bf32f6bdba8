//! A GPU: memory, kernels and products on one stream of the CUDA driver.

mod descriptors;
mod functions;
mod plans;
mod recordings;
mod staging;

use super::{Device, Launch};
use crate::cache::Cache;
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::probe::{self, Gpu};
use core::ffi::c_void;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use functions::Functions;
use plans::Plans;
use recordings::Recordings;
use staging::Staging;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A GPU of this machine.
pub struct Driver {
    gpu: Gpu,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: Functions,
    plans: Mutex<Plans>,
    staging: Mutex<Staging>,
    recordings: Mutex<Recordings>,
    held: AtomicUsize,
    peak: AtomicUsize,
}

// SAFETY: handles of the driver and of cuBLASLt may be used from any thread; those that must not be
// used from two at once are behind mutexes, and the context is bound on each entry.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// GPU number `ordinal`, with kernels from the user's cache.
    ///
    /// # Errors
    /// What [`probe::usable`] finds wrong; [`CudaError::Device`] where the driver fails.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        Self::with_cache(ordinal, Cache::of_user()?)
    }

    /// As [`Driver::new`], with kernels kept in a folder of the caller's.
    ///
    /// # Errors
    /// As [`Driver::new`].
    pub fn with_cache(ordinal: usize, cache: Cache) -> Result<Self, CudaError> {
        let gpu = probe::usable(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: there is one stream, whose order is the order of work: nothing is tracked by events.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
        keep_freed_memory(&context)?;
        let plans = Plans::new(&stream)?;
        Ok(Self {
            functions: Functions::new(cache, gpu.arch()),
            staging: Mutex::new(Staging::new()?),
            recordings: Mutex::default(),
            plans: Mutex::new(plans),
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            gpu,
            context,
            stream,
        })
    }

    /// What is known about the GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn enter(&self) -> Result<sys::CUstream, CudaError> {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        Ok(self.stream.cu_stream())
    }
}

/// Names the call in a driver's error.
fn failed(call: &str) -> impl Fn(DriverError) -> CudaError + '_ {
    move |error| CudaError::device(call, error)
}

/// As [`failed`], of an allocation of so many bytes.
fn out_of_memory(bytes: usize, in_use: usize) -> impl Fn(DriverError) -> CudaError {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes, in_use },
        _ => failed("cuMemAllocAsync")(error),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's pool gives memory back to the system at every synchronisation unless told to keep it.
fn keep_freed_memory(context: &CudaContext) -> Result<(), CudaError> {
    let most = u64::MAX;
    // SAFETY: the device is a valid one, and the attribute a 64-bit number.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device())
            .map_err(failed("cuDeviceGetMemPool"))?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw const most).cast_mut().cast())
            .result()
            .map_err(failed("cuMemPoolSetAttribute"))
    }
}

impl Device for Driver {
    fn describe(&self) -> String {
        self.gpu.to_string()
    }

    fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        self.enter()?;
        self.functions.prepare(variant)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let stream = self.enter()?;
        let in_use = self.held.load(Ordering::Relaxed);
        // SAFETY: memory of the stream, zeroed in its order before anyone is given the address.
        let address = unsafe {
            let address = result::malloc_async(stream, bytes).map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes, in_use },
                _ => failed("cuMemAllocAsync")(error),
            })?;
            result::memset_d8_async(address, 0, bytes, stream)
                .map_err(failed("cuMemsetD8Async"))?;
            address
        };
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(address)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        if let Ok(stream) = self.enter() {
            // SAFETY: the caller's. A failure is one of earlier work, which the next call reports.
            let _ = unsafe { result::free_async(address, stream) };
        }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: the range lies in held memory, says the caller.
        unsafe { locked(&self.staging).write(stream, host, to) }
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: the range lies in held memory, says the caller; the host's outlives the wait.
        unsafe {
            result::memcpy_dtoh_async(host, from, stream).map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        self.synchronize()
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: the range lies in held memory, says the caller.
        unsafe { result::memset_d8_async(at, 0, bytes, stream).map_err(failed("cuMemsetD8Async")) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: both ranges lie in held memory, says the caller.
        unsafe {
            result::memcpy_dtod_async(to, from, bytes, stream).map_err(failed("cuMemcpyDtoDAsync"))
        }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let stream = self.enter()?;
        let function = self.functions.get(launch)?;
        let mut args: Vec<*mut c_void> = launch.args.iter().map(|arg| arg.place()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: the function is of a module that is never unloaded; arguments are the caller's.
        unsafe {
            let (grid, block) = ((gx, gy, gz), (bx, by, bz));
            result::launch_kernel(function, grid, block, launch.shared, stream, &mut args)
                .map_err(failed(launch.kernel.name))
        }
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: the matrices lie in held memory, says the caller.
        unsafe { locked(&self.plans).run(stream, gemm) }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        let stream = self.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(stream).map_err(failed("cuStreamSynchronize")) }
    }

    unsafe fn forget(&self, _at: u64, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let stream = self.enter()?;
        Recordings::replay(&self.recordings, stream, key, work)
    }

    fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}
