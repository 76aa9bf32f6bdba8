//! A device that neither has memory nor computes: it counts allocations, so that the memory a run will need is
//! known before there is a GPU to run it on.

use super::{Device, Launch};
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::work::Tally;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Alignment that [`Device::allocate`] promises.
const ALIGN: u64 = 256;

/// Counts memory and does nothing else; all that is read from it is zero.
#[derive(Debug, Default)]
pub struct Dry {
    /// Bytes of addresses handed out so far; no address is handed out twice, and none is null.
    given: AtomicU64,
    held: AtomicUsize,
    peak: AtomicUsize,
}

impl Dry {
    /// Bytes that are allocated now.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed) as u64
    }
}

impl Device for Dry {
    fn describe(&self) -> String {
        "no device: memory is counted, nothing is computed".into()
    }

    fn prepare(&self, _variant: &'static str) -> Result<(), CudaError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        let taken = (bytes as u64).next_multiple_of(ALIGN);
        Ok(ALIGN + self.given.fetch_add(taken, Ordering::Relaxed))
    }

    unsafe fn release(&self, _address: u64, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    unsafe fn write(&self, _host: &[u8], _to: u64) -> Result<(), CudaError> {
        Ok(())
    }

    unsafe fn read(&self, _from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        host.fill(0);
        Ok(())
    }

    unsafe fn zero(&self, _at: u64, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    unsafe fn copy(&self, _from: u64, _to: u64, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    unsafe fn launch(&self, _launch: &Launch<'_>) -> Result<(), CudaError> {
        Ok(())
    }

    unsafe fn gemm(&self, _gemm: &Gemm) -> Result<(), CudaError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }

    unsafe fn forget(&self, _at: u64, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    fn replay(
        &self,
        _key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        work()
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        Ok(Vec::new())
    }

    fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}
