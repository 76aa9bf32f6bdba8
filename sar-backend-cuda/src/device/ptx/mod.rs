//! Carries out on the CPU what NVRTC makes of the kernels: a device for tests.
//!
//! The emulator runs the kernels as a C++ compiler understands them. Here NVRTC compiles them as for a GPU,
//! and the resulting code for its virtual machine (PTX) is carried out. This covers the order that the
//! compiler chose for reads and writes, its fused products, the operands of inline PTX in the kernels, and
//! addresses that a GPU would refuse. Only a GPU shows what `ptxas` does after that, the errors of
//! approximate instructions, how tensor cores round, and time.
//!
//! Matrix products and memory are the emulator's.

mod grid;
mod hazards;
mod memory;
mod operands;
mod operations;
mod program;
mod tensor_core;
#[cfg(test)]
mod tests;
mod warp;

use super::{Device, Emulator, Launch};
use crate::error::CudaError;
use crate::gemm::Gemm;
use crate::kernels::source;
use crate::nvrtc::Nvrtc;
use crate::work::Tally;
use grid::{Order, Shape};
use memory::Global;
use program::{Program, programs};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A file's kernels by their names.
type Programs = HashMap<String, Program>;

/// Compiled files, by architecture, variant and stem: one compilation serves all tests of a process.
type Compiled = HashMap<(String, &'static str, &'static str), Arc<Programs>>;

static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);

/// Carries out PTX on the CPU.
pub struct PtxDevice {
    memory: Emulator,
    nvrtc: Nvrtc,
    /// The architecture, as in `sm_80`.
    arch: String,
    order: u64,
}

impl PtxDevice {
    /// A device for the kernels of an architecture; `order` is that of blocks and warps, as in
    /// [`Emulator::with_order`].
    ///
    /// # Errors
    /// [`CudaError::Library`] if there is no NVRTC.
    pub fn new(arch: &str, order: u64) -> Result<Self, CudaError> {
        let memory = Emulator::with_order(1, order);
        Ok(Self { memory, nvrtc: Nvrtc::load()?, arch: arch.to_owned(), order })
    }

    fn programs(&self, launch: &Launch<'_>) -> Result<Arc<Programs>, CudaError> {
        let file = launch.kernel.file;
        let key = (self.arch.clone(), launch.variant, file);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        if let Some(found) = compiled.get(&key) {
            return Ok(found.clone());
        }
        let ptx = self.nvrtc.compile(source(file)?, launch.variant, &self.arch)?.ptx;
        let read = programs(&ptx).map_err(|reason| CudaError::device(file, reason))?;
        Ok(compiled.entry(key).or_insert(Arc::new(read)).clone())
    }
}

/// The arguments, laid out as in the memory of the parameters.
fn arguments(program: &Program, launch: &Launch<'_>) -> Result<Vec<u8>, String> {
    let expected: Vec<usize> = program.parameters.iter().map(|&(_, bytes)| bytes).collect();
    let found: Vec<usize> = launch.args.iter().map(|arg| arg.bytes()).collect();
    if expected != found {
        return Err(format!("parameters of {expected:?} bytes, arguments of {found:?}"));
    }
    let mut memory = vec![memory::POISON; program.names.parameter_bytes()];
    for (&(offset, bytes), arg) in program.parameters.iter().zip(launch.args) {
        // SAFETY: an argument lies at its place with all its bytes.
        let value = unsafe { core::slice::from_raw_parts(arg.place().cast::<u8>(), bytes) };
        memory[offset..][..bytes].copy_from_slice(value);
    }
    Ok(memory)
}

impl Device for PtxDevice {
    fn describe(&self) -> String {
        let (major, minor) = self.nvrtc.version;
        format!("PTX of NVRTC {major}.{minor} for {}, carried out on the CPU", self.arch)
    }

    fn prepare(&self, variant: &'static str) -> Result<(), CudaError> {
        self.memory.prepare(variant)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.memory.allocate(bytes)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        // SAFETY: upheld by the caller; likewise for all below.
        unsafe { self.memory.release(address, bytes) }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.write(host, to) }
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.read(from, host) }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.zero(at, bytes) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.copy(from, to, bytes) }
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let name = format!("{}/{}", launch.variant, launch.kernel.name);
        let failed = |reason: String| CudaError::device(&*name, reason);
        let programs = self.programs(launch)?;
        let program = programs
            .get(launch.kernel.name)
            .ok_or_else(|| failed("there is no kernel of this name".to_owned()))?;
        let parameters = arguments(program, launch).map_err(failed)?;
        self.memory.note_launch(launch);
        let [threads, 1, 1] = launch.block else {
            return Err(failed("blocks are of one dimension".to_owned()));
        };
        let shape =
            Shape { grid: launch.grid, threads: threads as usize, shared: launch.shared as usize };
        let mut global = Global::new(self.memory.allocated());
        grid::run(program, shape, &parameters, &mut global, Order(self.order)).map_err(failed)
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.gemm(gemm) }
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.memory.synchronize()
    }

    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { self.memory.forget(at, bytes) }
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.memory.replay(key, work)
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        self.memory.begin_profile()
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        self.memory.end_profile()
    }

    fn peak_bytes(&self) -> usize {
        self.memory.peak_bytes()
    }
}
