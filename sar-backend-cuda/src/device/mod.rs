//! The devices behind one trait: a GPU; none, where memory is counted; and in tests the CPU, which executes the kernels'
//! sources or what NVRTC makes of them.

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
pub use emulator::Emulator;
#[cfg(feature = "emulator")]
pub use ptx::PtxDevice;
#[cfg(feature = "emulator")]
pub use testing::{ORDERS, TestDevice};

use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::work::{Tally, Work};

/// A kernel: the file it stands in, and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Stem of the file in `kernels/`.
    pub file: &'static str,
    /// Name of the function.
    pub name: &'static str,
}

/// A kernel on its grid, with its arguments.
pub struct Launch<'a> {
    /// Which one.
    pub kernel: Kernel,
    /// Which variant of it: `Storage::NAME`.
    pub variant: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// What it moves and computes at least.
    pub work: Work,
    /// In the order of the kernel's parameters.
    pub args: &'a [&'a dyn KernelArg],
}

/// Device memory, transfers and work, in the order given: one stream.
///
/// Addresses are device addresses of allocations that are still held; that is the caller's to see
/// to, hence the `unsafe`. Work may be asynchronous: `read` and `synchronize` wait for it.
pub trait Device: Send + Sync + Sized + 'static {
    /// What it is, for people.
    fn describe(&self) -> String;

    /// Makes every kernel of a variant ready, so that no later launch stops to compile one.
    ///
    /// # Errors
    /// A kernel that cannot be compiled or loaded.
    fn prepare(&self, variant: &'static str) -> Result<(), CudaError>;

    /// Zeroed memory, aligned to 256 bytes.
    ///
    /// # Errors
    /// Out of memory.
    fn allocate(&self, bytes: usize) -> Result<u64, CudaError>;

    /// Gives memory back once the work given so far is done.
    ///
    /// # Safety
    /// The address is one that `allocate` gave for so many bytes, and nothing uses it any more.
    unsafe fn release(&self, address: u64, bytes: usize);

    /// Copies from the host, which may reuse its memory on return.
    ///
    /// # Safety
    /// The range lies in held memory.
    ///
    /// # Errors
    /// A fault of the device; likewise for all below.
    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError>;

    /// Copies to the host, once the work given so far is done.
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
    /// Arguments are those of the kernel's parameters, and it stays within the memory they name.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError>;

    /// Runs a matrix product.
    ///
    /// # Safety
    /// All matrices and the bias lie in held memory; `out` does not overlap the others.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError>;

    /// Waits until all work given so far is done.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// Marks scratch memory as holding nothing: where faults are looked for, it then holds NaN.
    ///
    /// # Safety
    /// The range lies in held memory.
    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError>;

    /// Runs `work`, or replays what it gave to the device when `key` was seen before.
    ///
    /// The caller sees to it that `work` gives the same launches whenever the key is the same, and
    /// that it neither allocates, nor gives memory back, nor moves anything between host and device.
    ///
    /// # Errors
    /// The work's; a fault of the device.
    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError>;

    /// Keeps account of every launch and product from now on.
    ///
    /// # Errors
    /// A device that cannot.
    fn begin_profile(&self) -> Result<(), CudaError>;

    /// Ends the account, waiting for the work in it: from most time to least. Empty where none was
    /// begun.
    ///
    /// # Errors
    /// A fault of the device.
    fn end_profile(&self) -> Result<Vec<Tally>, CudaError>;

    /// What a reader of a profile should know of how matrix products were chosen, a line each; nothing where they
    /// all run by the library's first choice.
    fn product_notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The most bytes that were held at once.
    fn peak_bytes(&self) -> usize;
}
