//! The device that tests run on: the emulator; the PTX that NVRTC makes of the kernels, carried out on the
//! CPU, if `SAR_PTX` names an architecture; or the GPU, if `SAR_REQUIRE_GPU` is set.

use super::{Device, Driver, Emulator, Launch, PtxDevice, lend_emulator};
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::work::Tally;

/// Environment variable that is set if tests must run on a GPU, and fail if there is none.
const REQUIRE_GPU: &str = "SAR_REQUIRE_GPU";
/// Environment variable with the architecture, as in `sm_80`, whose PTX tests are to run.
const PTX: &str = "SAR_PTX";

/// The emulator, unless the environment has `SAR_REQUIRE_GPU` or `SAR_PTX`.
// There is one per test: the size of the largest variant does not matter.
#[allow(clippy::large_enum_variant)]
pub enum TestDevice {
    /// Kernels executed on the CPU.
    Emulated(Emulator),
    /// PTX that NVRTC made of the kernels, carried out on the CPU.
    Compiled(PtxDevice),
    /// A GPU.
    Gpu(Driver),
}

/// Settings that results must not depend on: how many threads of the host carry out the blocks of a launch,
/// and in which order the threads of a block run. The first is one thread and the natural order.
pub const ORDERS: [(u32, u64); 4] = [(1, 0), (1, 1), (2, 7), (4, 12345)];

impl TestDevice {
    /// The orders of this device: [`ORDERS`], or the first two of them if PTX is carried out, which uses one
    /// thread and is slow. A GPU has an order of its own, and must give the same bits each time.
    pub fn orders() -> &'static [(u32, u64)] {
        if std::env::var_os(PTX).is_some() { &ORDERS[..2] } else { &ORDERS }
    }

    /// A device for each of [`TestDevice::orders`].
    ///
    /// # Errors
    /// As [`TestDevice::new`].
    pub fn in_every_order() -> impl Iterator<Item = Result<Self, CudaError>> {
        Self::orders().iter().map(|&(threads, order)| Self::with_order(threads, order))
    }

    /// A device with one host thread and the natural order of threads, where these are emulated.
    ///
    /// # Errors
    /// A GPU or a compiler is asked for and cannot be used.
    pub fn new() -> Result<Self, CudaError> {
        Self::with_order(1, 0)
    }

    /// The GPU of this machine; or the fake CUDA of the tests, if that is where the environment leads.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn gpu() -> Result<Driver, CudaError> {
        let driver = Driver::new(0)?;
        lend_emulator()?;
        Ok(driver)
    }

    /// Like [`Emulator::with_order`]; PTX is carried out by one thread, and a GPU has an order of its own.
    ///
    /// # Errors
    /// As [`TestDevice::new`].
    pub fn with_order(threads: u32, order: u64) -> Result<Self, CudaError> {
        if std::env::var_os(REQUIRE_GPU).is_some() {
            return Self::gpu().map(Self::Gpu);
        }
        match std::env::var_os(PTX) {
            // If the name is not an architecture, NVRTC reports it.
            Some(arch) => PtxDevice::new(&arch.to_string_lossy(), order).map(Self::Compiled),
            None => Ok(Self::Emulated(Emulator::with_order(threads, order))),
        }
    }
}

/// Calls a method of whichever device it is.
macro_rules! either {
    ($self:ident.$method:ident($($arg:expr),*)) => {
        match $self {
            TestDevice::Emulated(device) => device.$method($($arg),*),
            TestDevice::Compiled(device) => device.$method($($arg),*),
            TestDevice::Gpu(device) => device.$method($($arg),*),
        }
    };
}

impl Device for TestDevice {
    fn describe(&self) -> String {
        either!(self.describe())
    }

    fn shared_bytes(&self) -> usize {
        either!(self.shared_bytes())
    }

    fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        either!(self.prepare(variant))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        either!(self.allocate(bytes))
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        // SAFETY: upheld by the caller; likewise for all below.
        unsafe { either!(self.release(address, bytes)) }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.write(host, to)) }
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.read(from, host)) }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.zero(at, bytes)) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.copy(from, to, bytes)) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.launch(launch)) }
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.gemm(gemm)) }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        either!(self.synchronize())
    }

    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { either!(self.forget(at, bytes)) }
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        either!(self.replay(key, work))
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        either!(self.begin_profile())
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        either!(self.end_profile())
    }

    fn product_notes(&self) -> Vec<String> {
        either!(self.product_notes())
    }

    fn peak_bytes(&self) -> usize {
        either!(self.peak_bytes())
    }
}
