//! Transfers from the host that do not wait for the device.
//!
//! A copy from ordinary memory makes the driver synchronise first. These transfers go through pinned
//! memory instead: a ring of slots, each free again once its event has passed. A transfer larger than a
//! slot (the images of a batch) takes several.

use super::failed;
use crate::error::CudaError;
use core::ffi::c_void;
use cudarc::driver::{result, sys};

/// Slots of the ring, and so the largest number of transfers under way at once.
const SLOTS: usize = 16;
/// Bytes of a slot: an image of 256×256 pixels in f32 fits, and labels leave most of it unused.
const SLOT: usize = 1 << 20;

/// Pinned memory and the events of its slots.
pub(super) struct Staging {
    pinned: *mut c_void,
    events: Vec<sys::CUevent>,
    next: usize,
}

impl Staging {
    /// Allocates pinned memory in the current context.
    pub(super) fn new() -> Result<Self, CudaError> {
        // SAFETY: freed in `drop`. Portable memory that the host can also read at full speed.
        let pinned = unsafe {
            result::malloc_host(SLOTS * SLOT, sys::CU_MEMHOSTALLOC_PORTABLE)
                .map_err(failed("cuMemHostAlloc"))?
        };
        let mut staging = Self { pinned, events: Vec::with_capacity(SLOTS), next: 0 };
        for _ in 0..SLOTS {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            staging.events.push(result::event::create(flags).map_err(failed("cuEventCreate"))?);
        }
        Ok(staging)
    }

    /// Copies from the host; on return the host's memory may be reused.
    ///
    /// # Safety
    /// The range lies in held memory of the stream's context.
    pub(super) unsafe fn write(
        &mut self,
        stream: sys::CUstream,
        host: &[u8],
        to: u64,
    ) -> Result<(), CudaError> {
        for (i, part) in host.chunks(SLOT).enumerate() {
            // SAFETY: upheld by the caller.
            unsafe { self.write_slot(stream, part, to + (i * SLOT) as u64)? };
        }
        Ok(())
    }

    /// Like [`Staging::write`], for at most a slot.
    ///
    /// # Safety
    /// As for [`Staging::write`].
    unsafe fn write_slot(
        &mut self,
        stream: sys::CUstream,
        host: &[u8],
        to: u64,
    ) -> Result<(), CudaError> {
        let slot = self.next;
        self.next = (slot + 1) % SLOTS;
        // SAFETY: the slot is within the pinned memory, and nothing reads it once its event has
        // passed (an event that was never recorded has).
        unsafe {
            result::event::synchronize(self.events[slot]).map_err(failed("cuEventSynchronize"))?;
            let pinned = self.pinned.cast::<u8>().add(slot * SLOT);
            pinned.copy_from_nonoverlapping(host.as_ptr(), host.len());
            let staged = core::slice::from_raw_parts(pinned, host.len());
            result::memcpy_htod_async(to, staged, stream).map_err(failed("cuMemcpyHtoDAsync"))?;
            result::event::record(self.events[slot], stream).map_err(failed("cuEventRecord"))
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: made by `new`. Events are waited for, so that no copy still reads the memory;
        // nothing can be done here about a failure to free it.
        unsafe {
            for &event in &self.events {
                let _ = result::event::synchronize(event);
                let _ = result::event::destroy(event);
            }
            let _ = result::free_host(self.pinned);
        }
    }
}
