//! Memory of the stream, from the driver's own pool.

use super::errors::{failed, out_of_memory};
use super::locked;
use crate::error::CudaError;
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts of the bytes held from the pool, now and at most.
pub(super) struct Pool {
    pool: sys::CUmemoryPool,
    held: AtomicUsize,
    peak: AtomicUsize,
    /// Memory released while the stream was recorded.
    released: Mutex<Vec<u64>>,
}

impl Pool {
    /// The pool of a context, of which `kept` bytes are held from the start.
    pub(super) fn of(context: &CudaContext, kept: usize) -> Result<Self, CudaError> {
        Ok(Self {
            pool: keeping_freed_memory(context)?,
            held: AtomicUsize::new(kept),
            peak: AtomicUsize::new(kept),
            released: Mutex::default(),
        })
    }

    /// Allocates zeroed memory, in the stream's order. Where there is no room, what the pool keeps in pieces that are too
    /// small is given back to the system first.
    pub(super) fn allocate(&self, stream: sys::CUstream, bytes: usize) -> Result<u64, CudaError> {
        let in_use = self.held.load(Ordering::Relaxed);
        // SAFETY: memory of the stream, zeroed in its order before the address is returned.
        let address = unsafe {
            let allocated = match result::malloc_async(stream, bytes) {
                Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) if self.trim(stream) => {
                    result::malloc_async(stream, bytes)
                }
                allocated => allocated,
            };
            let address = allocated.map_err(out_of_memory(bytes, in_use))?;
            if let Err(error) = result::memset_d8_async(address, 0, bytes, stream) {
                let _ = result::free_async(address, stream);
                return Err(failed("cuMemsetD8Async")(error));
            }
            address
        };
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(address)
    }

    /// Gives freed memory back to the system once the work that used it has ended; whether that could be done.
    fn trim(&self, stream: sys::CUstream) -> bool {
        // SAFETY: the stream is alive, and the pool is the device's own.
        unsafe {
            result::stream::synchronize(stream).is_ok()
                && sys::cuMemPoolTrimTo(self.pool, 0).result().is_ok()
        }
    }

    /// Frees memory, in the stream's order.
    ///
    /// # Safety
    /// The memory is from this pool, and no work issued to the stream later uses it.
    pub(super) unsafe fn release(&self, stream: sys::CUstream, address: u64, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        // SAFETY: upheld by the caller. A failure stems from earlier work; the next call reports it.
        let _ = unsafe { result::free_async(address, stream) };
    }

    /// Holds back memory that is released while the stream is recorded: a recording can free only what it
    /// allocated itself.
    pub(super) fn defer(&self, address: u64, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        locked(&self.released).push(address);
    }

    /// Frees what [`Pool::defer`] held back, and returns the number of allocations.
    pub(super) fn release_deferred(&self, stream: sys::CUstream) -> usize {
        let released = std::mem::take(&mut *locked(&self.released));
        for &address in &released {
            // SAFETY: the caller of `Device::release` ensured that nothing uses the memory any more.
            let _ = unsafe { result::free_async(address, stream) };
        }
        released.len()
    }

    /// The largest number of bytes held at once.
    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

/// The driver's pool, made to keep freed memory, which it would otherwise return to the system at every
/// synchronisation.
fn keeping_freed_memory(context: &CudaContext) -> Result<sys::CUmemoryPool, CudaError> {
    let most = u64::MAX;
    // SAFETY: the device is a valid one, and the attribute a 64-bit number.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).map_err(no_pool)?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw const most).cast_mut().cast())
            .result()
            .map_err(failed("cuMemPoolSetAttribute"))?;
        Ok(pool)
    }
}

/// The error where the device gives no pool. Some virtual GPUs have none.
fn no_pool(error: DriverError) -> CudaError {
    if error.0 != sys::CUresult::CUDA_ERROR_NOT_SUPPORTED {
        return failed("cuDeviceGetMemPool")(error);
    }
    let what = "this GPU has no memory pools, from which all memory is taken; a virtual GPU has them where its host \
                enables unified memory, or take another GPU with --device"
        .to_owned();
    CudaError::Unsupported { op: "GPU memory", what }
}
