//! Executes the kernels on the CPU, thread by thread, and looks for faults: a device for tests.
//!
//! Kernels are the same sources, compiled by the build script; `emu/` explains what is modelled.
//! Matrix products are computed here, since cuBLASLt is not one of these kernels. Memory is zero before it
//! is first written, but for scratch, which is NaN, and stands between guards that are checked whenever it is
//! read or released.

mod lent;
mod replays;

pub use lent::lend_emulator;

use super::{Device, Launch};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix};
use crate::work::{Tallies, Tally};
use core::ffi::{c_char, c_int, c_void};
use half::bf16;
use replays::Replays;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn sar_emu_launch(
        key: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: u32,
        args: *const *mut c_void,
        os_threads: u32,
        seed: u64,
        error: *mut c_char,
        error_len: usize,
    ) -> c_int;
    /// Sizes of the parameters in bytes, ended by a negative number; null if there is no such kernel.
    fn sar_emu_parameters(key: *const c_char) -> *const c_int;
}

/// Bytes before and after an allocation that must keep what they hold.
const GUARD: usize = 256;
/// What guards and fresh scratch hold: a NaN in every format.
const POISON: u8 = 0xff;

/// Executes kernels on the CPU.
#[derive(Debug)]
pub struct Emulator {
    /// Threads of the operating system that blocks are spread over.
    threads: u32,
    /// Order in which the threads of a block run: 0 natural, 1 reversed, others shuffled.
    order: u64,
    held: Mutex<BTreeMap<u64, usize>>,
    fault: Mutex<Option<String>>,
    peak: AtomicUsize,
    profile: Mutex<Option<Tallies>>,
    replays: Mutex<Replays>,
    allocations: AtomicUsize,
}

impl Emulator {
    /// An emulator with one thread and the natural order.
    pub fn new() -> Self {
        Self::with_order(1, 0)
    }

    /// An emulator with this number of operating-system threads, which runs CUDA threads in this order.
    pub fn with_order(threads: u32, order: u64) -> Self {
        let (held, fault) = (Mutex::default(), Mutex::default());
        Self {
            threads,
            order,
            held,
            fault,
            peak: AtomicUsize::new(0),
            profile: Mutex::default(),
            replays: Mutex::default(),
            allocations: AtomicUsize::new(0),
        }
    }

    /// Number of allocations so far.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Start and length of each allocation, in order of address.
    pub(super) fn allocated(&self) -> Vec<(u64, usize)> {
        self.held().iter().map(|(&start, &bytes)| (start, bytes)).collect()
    }

    /// Notes a launch, whose arguments have been checked, for replays and profiles.
    pub(super) fn note_launch(&self, launch: &Launch<'_>) {
        let values = launch.args.iter().map(|arg| {
            // SAFETY: an argument lies at its place with all its bytes.
            unsafe { core::slice::from_raw_parts(arg.place().cast::<u8>(), arg.bytes()) }
        });
        let values: Vec<&[u8]> = values.collect();
        let name = (launch.variant, launch.kernel.name);
        self.replays().note((name, launch.grid, launch.block, launch.shared, values));
        if let Some(tallies) = self.profile().as_mut() {
            tallies.add(launch.kernel.name, launch.work, 0.0);
        }
    }

    fn replays(&self) -> MutexGuard<'_, Replays> {
        self.replays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that a matrix of a product lies in held memory.
    fn check_matrix(
        &self,
        matrix: &Matrix,
        rows: usize,
        columns: usize,
        batch: usize,
    ) -> Result<(), CudaError> {
        if rows == 0 || columns == 0 || batch == 0 {
            return Ok(());
        }
        let (rows, columns) = if matrix.transposed { (columns, rows) } else { (rows, columns) };
        let last = (batch - 1) * matrix.stride + (rows - 1) * matrix.leading + columns - 1;
        self.check("matrix product", matrix.address, (last + 1) * matrix.data.bytes())
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn profile(&self) -> MutexGuard<'_, Option<Tallies>> {
        self.profile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, fault: String) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    fn faults(&self) -> Result<(), CudaError> {
        match self.fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(fault) => Err(CudaError::device("emulator", fault)),
            None => Ok(()),
        }
    }

    /// Checks that a range lies in an allocation whose guards are intact.
    fn check(&self, what: &str, at: u64, bytes: usize) -> Result<(), CudaError> {
        let held = self.held();
        let inside = held
            .range(..=at)
            .next_back()
            .filter(|&(&start, &len)| at + bytes as u64 <= start + len as u64);
        match inside {
            None => Err(CudaError::device(what, format!("{bytes} bytes at {at:#x} are not held"))),
            // SAFETY: the allocation is held, and its guards with it.
            Some((&start, &len)) if unsafe { guards_intact(start, len) } => Ok(()),
            Some((_, len)) => {
                Err(CudaError::device(what, format!("an allocation of {len} bytes was overrun")))
            }
        }
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?, 256).ok()
}

/// # Safety
/// An allocation of `bytes` bytes between two guards starts at `start`.
unsafe fn guards_intact(start: u64, bytes: usize) -> bool {
    let start = start as *const u8;
    // SAFETY: both guards belong to the allocation.
    let guards = unsafe {
        [
            core::slice::from_raw_parts(start.sub(GUARD), GUARD),
            core::slice::from_raw_parts(start.add(bytes), GUARD),
        ]
    };
    guards.iter().all(|guard| guard.iter().all(|&byte| byte == POISON))
}

impl Device for Emulator {
    fn describe(&self) -> String {
        "kernels executed on the CPU".to_owned()
    }

    fn prepare(&self, _variant: &'static str) -> Result<(), CudaError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.replays().refuse("allocation")?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        let in_use = self.held().values().sum();
        let out_of_memory = CudaError::OutOfMemory { bytes, in_use };
        let Some(layout) = layout(bytes) else { return Err(out_of_memory) };
        // SAFETY: the layout is not empty: it has two guards.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            return Err(out_of_memory);
        }
        // SAFETY: guard, bytes, guard: as allocated.
        let start = unsafe {
            base.write_bytes(POISON, layout.size());
            base.add(GUARD).write_bytes(0, bytes);
            base.add(GUARD) as u64
        };
        let mut held = self.held();
        held.insert(start, bytes);
        self.peak.fetch_max(held.values().sum(), Ordering::Relaxed);
        Ok(start)
    }

    unsafe fn release(&self, address: u64, bytes: usize) {
        if let Err(fault) = self.check("release", address, bytes) {
            self.note(fault.to_string());
        }
        self.held().remove(&address);
        if let Some(layout) = layout(bytes) {
            // SAFETY: allocated with this layout, GUARD bytes before the address.
            unsafe { dealloc((address as *mut u8).sub(GUARD), layout) };
        }
    }

    unsafe fn write(&self, host: &[u8], to: u64) -> Result<(), CudaError> {
        self.replays().refuse("write")?;
        self.check("write", to, host.len())?;
        // SAFETY: the range is held, and host memory is never in it.
        unsafe { core::ptr::copy_nonoverlapping(host.as_ptr(), to as *mut u8, host.len()) };
        self.faults()
    }

    unsafe fn read(&self, from: u64, host: &mut [u8]) -> Result<(), CudaError> {
        self.replays().refuse("read")?;
        self.check("read", from, host.len())?;
        // SAFETY: the range is held, and host memory is never in it.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, host.as_mut_ptr(), host.len()) };
        self.faults()
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        self.replays().note(("zero", at, bytes));
        self.check("zero", at, bytes)?;
        // SAFETY: the range is held.
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.replays().note(("copy", from, to, bytes));
        self.check("copy", from, bytes)?;
        self.check("copy", to, bytes)?;
        // SAFETY: both ranges are held.
        unsafe { core::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let name = format!("{}/{}", launch.variant, launch.kernel.name);
        let key = CString::new(name.as_str()).map_err(|e| CudaError::device(&*name, e))?;
        let sizes: Vec<c_int> = launch.args.iter().map(|arg| arg.bytes() as c_int).collect();
        // SAFETY: the key ends in a null; the answer is a static array ended by a negative number.
        let expected = unsafe { parameters(&key) };
        if expected.as_deref() != Some(&sizes) {
            let reason = format!("parameters of {expected:?} bytes, arguments of {sizes:?}");
            return Err(CudaError::device(name, reason));
        }
        let args: Vec<*mut c_void> = launch.args.iter().map(|arg| arg.place()).collect();
        self.note_launch(launch);
        let mut error = [0u8; 512];
        // SAFETY: arguments have the sizes of the parameters; what they point to is the caller's.
        let code = unsafe {
            sar_emu_launch(
                key.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                args.as_ptr(),
                self.threads,
                self.order,
                error.as_mut_ptr().cast(),
                error.len(),
            )
        };
        if code == 0 {
            return Ok(());
        }
        let end = error.iter().position(|&byte| byte == 0).unwrap_or(error.len());
        Err(CudaError::device(name, String::from_utf8_lossy(&error[..end])))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        self.replays().note(format!("{gemm:?}"));
        self.check_matrix(&gemm.a, gemm.m, gemm.k, gemm.batch)?;
        self.check_matrix(&gemm.b, gemm.k, gemm.n, gemm.batch)?;
        self.check_matrix(&gemm.out, gemm.m, gemm.n, gemm.batch)?;
        if let Some(bias) = gemm.bias {
            self.check("bias of a product", bias, gemm.n * gemm.out.data.bytes())?;
        }
        for product in 0..gemm.batch {
            // SAFETY: the matrices lie in held memory, as the caller guarantees.
            unsafe { multiply(gemm, product) };
        }
        if let Some(tallies) = self.profile().as_mut() {
            tallies.add(&gemm.name(), gemm.work(), 0.0);
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.replays().refuse("synchronisation")?;
        self.faults()
    }

    unsafe fn forget(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        self.check("scratch", at, bytes)?;
        // SAFETY: the range is held.
        unsafe { (at as *mut u8).write_bytes(POISON, bytes) };
        Ok(())
    }

    fn replay(
        &self,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        self.replays().begin(key)?;
        let outcome = work();
        match outcome {
            Ok(()) => self.replays().end(key),
            Err(error) => {
                self.replays().abandon();
                Err(error)
            }
        }
    }

    fn begin_profile(&self) -> Result<(), CudaError> {
        *self.profile() = Some(Tallies::default());
        Ok(())
    }

    fn end_profile(&self) -> Result<Vec<Tally>, CudaError> {
        Ok(self.profile().take().map_or(Vec::new(), Tallies::finish))
    }

    fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }
}

/// # Safety
/// As `sar_emu_parameters` promises.
unsafe fn parameters(key: &CString) -> Option<Vec<c_int>> {
    // SAFETY: the key ends in a null.
    let first = unsafe { sar_emu_parameters(key.as_ptr()) };
    if first.is_null() {
        return None;
    }
    // SAFETY: an array that a negative number ends.
    let sizes = (0..).map(|i| unsafe { *first.add(i) }).take_while(|&size| size >= 0);
    Some(sizes.collect())
}

/// Computes one product of a batch in f32, each sum in the order of k, so that a row depends only on itself.
///
/// # Safety
/// As [`Device::gemm`].
unsafe fn multiply(gemm: &Gemm, product: usize) {
    let Gemm { m, n, k, a, b, out, .. } = *gemm;
    // SAFETY: upheld by the caller; each matrix is read within its bounds.
    let (a_mk, b_kn) = unsafe { (gathered(a, product, m, k), gathered(b, product, k, n)) };
    let bias: Vec<f32> = match gemm.bias {
        None => vec![0.0; n],
        // SAFETY: n elements, stored as out is.
        Some(bias) => (0..n).map(|j| unsafe { load(out.data, bias, j) }).collect(),
    };
    let mut row_n = vec![0.0f32; n];
    for i in 0..m {
        row_n.fill(0.0);
        for (a, b_n) in a_mk[i * k..][..k].iter().zip(b_kn.chunks_exact(n)) {
            row_n.iter_mut().zip(b_n).for_each(|(sum, b)| *sum += a * b);
        }
        for (j, sum) in row_n.iter().enumerate() {
            let at = product * out.stride + i * out.leading + j;
            // SAFETY: within out.
            unsafe {
                let before = if gemm.accumulate { load(out.data, out.address, at) } else { 0.0 };
                store(out.data, out.address, at, before + (sum + bias[j]));
            }
        }
    }
}

/// A matrix of a batch as f32, row-major `[rows, columns]`, after the transposition that it asks for.
///
/// # Safety
/// The matrix lies in held memory.
unsafe fn gathered(matrix: Matrix, product: usize, rows: usize, columns: usize) -> Vec<f32> {
    let start = product * matrix.stride;
    let at = |i: usize, j: usize| match matrix.transposed {
        false => start + i * matrix.leading + j,
        true => start + j * matrix.leading + i,
    };
    (0..rows)
        .flat_map(|i| (0..columns).map(move |j| (i, j)))
        // SAFETY: within the matrix.
        .map(|(i, j)| unsafe { load(matrix.data, matrix.address, at(i, j)) })
        .collect()
}

/// # Safety
/// The element lies in held memory.
unsafe fn load(data: DataType, address: u64, at: usize) -> f32 {
    // SAFETY: upheld by the caller.
    unsafe {
        match data {
            DataType::F32 => (address as *const f32).add(at).read_unaligned(),
            DataType::Bf16 => (address as *const bf16).add(at).read_unaligned().to_f32(),
        }
    }
}

/// # Safety
/// The element lies in held memory.
unsafe fn store(data: DataType, address: u64, at: usize, value: f32) {
    // SAFETY: upheld by the caller.
    unsafe {
        match data {
            DataType::F32 => (address as *mut f32).add(at).write_unaligned(value),
            DataType::Bf16 => {
                (address as *mut bf16).add(at).write_unaligned(bf16::from_f32(value));
            }
        }
    }
}
