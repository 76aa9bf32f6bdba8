//! The devices behind one trait: a GPU; [`Dry`], which only counts memory; and in tests the CPU, which
//! executes the kernels' sources or the PTX that NVRTC makes of them.

mod args;
mod driver;
mod dry;
#[cfg(feature = "emulator")]
mod emulator;
#[cfg(feature = "emulator")]
mod ptx;
#[cfg(feature = "emulator")]
mod testing;

pub use args::{GuidanceRamp, KernelArg, ScaleTable, ScaleWeights};
pub use driver::Driver;
pub use dry::Dry;
#[cfg(feature = "emulator")]
pub use emulator::{Emulator, lend_emulator};
#[cfg(feature = "emulator")]
pub use ptx::PtxDevice;
#[cfg(feature = "emulator")]
pub use testing::{ORDERS, TestDevice};

use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::work::{Tally, Work};

/// A kernel: the file that has it, and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Stem of the file in `kernels/`.
    pub file: &'static str,
    /// Name of the function.
    pub name: &'static str,
}

/// A kernel on its grid, with its arguments.
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// Its variant: `Storage::NAME`.
    pub variant: &'static str,
    /// Number of blocks in each dimension.
    pub grid: [u32; 3],
    /// Number of threads of a block in each dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// The least that it moves and computes.
    pub work: Work,
    /// Arguments, in the order of the kernel's parameters.
    pub args: &'a [&'a dyn KernelArg],
}

/// Device memory, transfers and work on one stream, carried out in the order in which they are issued.
///
/// Addresses are device addresses in allocations that are still held; the caller must ensure this,
/// hence the `unsafe`. Work may be asynchronous: `read` and `synchronize` wait for it.
pub trait Device: Send + Sync + Sized + 'static {
    /// Describes the device for people to read.
    fn describe(&self) -> String;

    /// Bytes of shared memory that a block may have: on an A100, unless a device knows better.
    fn shared_bytes(&self) -> usize {
        163 << 10
    }

    /// Makes every kernel of a variant ready, so that no later launch stops to compile one.
    ///
    /// # Errors
    /// A kernel cannot be compiled or loaded.
    fn prepare(&self, variant: &'static str) -> Result<(), CudaError>;

    /// Allocates zeroed memory, aligned to 256 bytes.
    ///
    /// # Errors
    /// The device is out of memory.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;

    /// Frees memory once the work issued so far is done.
    ///
    /// # Safety
    /// `allocate` returned the address for `bytes` bytes, and nothing uses the memory any more.
    unsafe fn release(&self, address: u64, bytes: usize);

    /// Copies from the host, which may reuse its memory on return.
    ///
    /// # Safety
    /// The range lies in held memory.
    ///
    /// # Errors
    /// The device has failed; likewise for all methods below.
    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError>;

    /// Copies to the host, once the work issued so far is done.
    ///
    /// # Safety
    /// The range lies in held memory.
    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The range lies in held memory.
    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError>;

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges lie in held memory and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments match the kernel's parameters, and the kernel stays within the memory that they
    /// point to.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError>;

    /// Runs a matrix product.
    ///
    /// # Safety
    /// All matrices and the bias lie in held memory; `out` does not overlap the others.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError>;

    /// Waits until all work issued so far is done.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// Marks scratch memory as undefined; a device that looks for faults fills it with NaN.
    ///
    /// # Safety
    /// The range lies in held memory.
    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError>;

    /// Runs `work`, or replays what it issued to the device under the same `key` before.
    ///
    /// The caller ensures that `work` makes the same launches whenever the key is the same, and that it
    /// neither allocates, nor frees memory, nor moves anything between host and device.
    ///
    /// # Errors
    /// An error of `work`, or a fault of the device.
    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError>;

    /// Begins a profile, which counts and times every launch and product from now on.
    ///
    /// # Errors
    /// The device cannot take a profile.
    fn begin_profile(&self) -> Result<(), CudaError>;

    /// Ends the profile, after waiting for the work in it, and returns its tallies from most time to
    /// least; empty if no profile was begun.
    ///
    /// # Errors
    /// A fault of the device.
    fn end_profile(&self) -> Result<Vec<Tally>, CudaError>;

    /// Notes for readers of a profile on how algorithms for matrix products were chosen, one line each;
    /// empty if all products run by the library's first choice.
    fn product_notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The largest number of bytes held at once.
    fn peak_bytes(&self) -> usize;
}
