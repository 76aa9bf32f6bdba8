//! The backend: a device, scratch memory, and the buffers' trait.

use crate::device::{Device, Kernel, KernelArg, Launch};
use crate::error::CudaError;
use crate::gemm::{Gemm, MOST_ELEMENTS};
use crate::memory::{Address, Buffer};
use crate::ops::elementwise;
use crate::params::{Params, stored};
use crate::storage::Storage;
use crate::work::Work;
use core::marker::PhantomData;
use sar_math::backend::{Buffers, ShapeError, Slot};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Bytes that the inside of ops has from the start: what a mid-size training step needs. It grows where an
/// op needs more.
pub const SCRATCH: usize = 1 << 20;

/// Activations stored as `S` on the device `D`; one stream of work, given by one thread at a time:
/// ops share scratch memory, so that the type is `Send` and not `Sync`.
pub struct CudaBackend<S, D: Device> {
    device: Arc<D>,
    scratch: RefCell<Buffer<u32, D>>,
    /// Work of the next launch.
    expected: Cell<Work>,
    storage: PhantomData<S>,
}

impl<S: Storage, D: Device> CudaBackend<S, D> {
    /// A backend on a device.
    ///
    /// # Errors
    /// Kernels that cannot be compiled or loaded; out of memory.
    pub fn new(device: D) -> Result<Self, CudaError> {
        device.prepare(S::NAME)?;
        let device = Arc::new(device);
        let scratch = RefCell::new(Buffer::zeroed(&device, SCRATCH / 4)?);
        Ok(Self { device, scratch, expected: Cell::default(), storage: PhantomData })
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Bytes that the inside of ops has by now.
    pub fn scratch_bytes(&self) -> usize {
        4 * self.scratch.borrow().len()
    }

    /// Memory for the inside of one op: `bytes` of it, undefined, aligned to 256 bytes.
    ///
    /// It is the op's until the next call. Work is in one stream, so an op whose kernels are given
    /// may not yet have run when the next op takes the same memory: it will have run before.
    pub(crate) fn scratch(&self, bytes: usize) -> Result<Address<u32>, CudaError> {
        let mut held = self.scratch.borrow_mut();
        if held.len() * 4 < bytes {
            // The next power of two, so that growing schedules do not allocate step after step; and the
            // old memory first, in the order of the stream, so that both are not held at once.
            *held = Buffer::zeroed(&self.device, 0)?;
            *held = Buffer::zeroed(&self.device, bytes.next_power_of_two() / 4)?;
        }
        let address = held.head("scratch", "bytes", bytes.div_ceil(4))?;
        // SAFETY: the scratch buffer holds as many bytes.
        unsafe { self.device.forget(address.raw(), bytes)? };
        Ok(address)
    }

    /// Says what the next launch moves and computes at least: so many elements of activations, bytes
    /// of other kinds, and FLOPs.
    pub(crate) fn expect(&self, activations: usize, bytes: usize, flops: usize) {
        let bytes = (activations * size_of::<S>() + bytes) as u64;
        self.expected.set(Work { bytes, flops: flops as u64 });
    }

    /// Runs a kernel of this backend's variant; nothing where the grid is empty.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub(crate) unsafe fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &[&dyn KernelArg],
    ) -> Result<(), CudaError> {
        let work = self.expected.take();
        if grid.contains(&0) {
            return Ok(());
        }
        let limits = [i32::MAX as usize, 0xffff, 0xffff];
        for (blocks, limit) in grid.into_iter().zip(limits) {
            ShapeError::at_least(kernel.name, "blocks of a grid", blocks, limit)?;
        }
        let launch = Launch {
            kernel,
            variant: S::NAME,
            grid: grid.map(|blocks| blocks as u32),
            block: [threads as u32, 1, 1],
            shared: shared as u32,
            work,
            args,
        };
        // SAFETY: passed on to the caller.
        unsafe { self.device.launch(&launch) }
    }

    /// Runs a matrix product, in parts where one of its matrices is beyond what libraries index; nothing where it
    /// is empty.
    ///
    /// # Safety
    /// As [`Device::gemm`].
    pub(crate) unsafe fn gemm(&self, gemm: &Gemm) -> Result<(), CudaError> {
        for part in gemm.parts(MOST_ELEMENTS) {
            // SAFETY: passed on to the caller; a part has the rows or terms of the whole.
            unsafe { self.device.gemm(&part)? };
        }
        Ok(())
    }

    /// Sets elements to zero.
    ///
    /// # Safety
    /// The elements lie in held memory.
    pub(crate) unsafe fn zero<T>(&self, at: Address<T>, len: usize) -> Result<(), CudaError> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: passed on to the caller.
        unsafe { self.device.zero(at.raw(), len * size_of::<T>()) }
    }
}

impl<S: Storage, D: Device> Buffers for CudaBackend<S, D> {
    type Host = f32;
    type Activation = Buffer<S, D>;
    type Accum = Buffer<f32, D>;
    type Params = Params<S, D>;
    type Ids = Buffer<u32, D>;
    type Error = CudaError;

    fn activation(&self, len: usize) -> Result<Buffer<S, D>, CudaError> {
        Buffer::zeroed(&self.device, len)
    }

    fn accum(&self, len: usize) -> Result<Buffer<f32, D>, CudaError> {
        Buffer::zeroed(&self.device, len)
    }

    fn params(&self, len: usize) -> Result<Params<S, D>, CudaError> {
        Params::zeroed(&self.device, len)
    }

    fn frozen_params(&self, host: &[f32], exact: &[Slot]) -> Result<Params<S, D>, CudaError> {
        Params::frozen(&self.device, host, exact)
    }

    fn ids(&self, len: usize) -> Result<Buffer<u32, D>, CudaError> {
        Buffer::zeroed(&self.device, len)
    }

    fn upload(&self, host: &[f32], to: &mut Buffer<S, D>, offset: usize) -> Result<(), CudaError> {
        to.put("upload", &stored::<S>(host), offset)
    }

    fn upload_accum(
        &self,
        host: &[f32],
        to: &mut Buffer<f32, D>,
        offset: usize,
    ) -> Result<(), CudaError> {
        to.put("upload_accum", host, offset)
    }

    fn upload_params(
        &self,
        host: &[f32],
        to: &mut Params<S, D>,
        offset: usize,
    ) -> Result<(), CudaError> {
        to.put("upload_params", host, offset)
    }

    fn upload_ids(
        &self,
        host: &[u32],
        to: &mut Buffer<u32, D>,
        offset: usize,
    ) -> Result<(), CudaError> {
        to.put("upload_ids", host, offset)
    }

    fn download(
        &self,
        from: &Buffer<S, D>,
        offset: usize,
        host: &mut [f32],
    ) -> Result<(), CudaError> {
        let mut held = vec![S::default(); host.len()];
        from.get("download", offset, &mut held)?;
        host.iter_mut().zip(held).for_each(|(to, from)| *to = from.load());
        Ok(())
    }

    fn download_accum(
        &self,
        from: &Buffer<f32, D>,
        offset: usize,
        host: &mut [f32],
    ) -> Result<(), CudaError> {
        from.get("download_accum", offset, host)
    }

    fn download_params(
        &self,
        from: &Params<S, D>,
        offset: usize,
        host: &mut [f32],
    ) -> Result<(), CudaError> {
        const OP: &str = "download_params";
        from.master(OP)?.get(OP, offset, host)
    }

    fn download_ids(
        &self,
        from: &Buffer<u32, D>,
        offset: usize,
        host: &mut [u32],
    ) -> Result<(), CudaError> {
        from.get("download_ids", offset, host)
    }

    fn zero_accum(
        &self,
        accum: &mut Buffer<f32, D>,
        offset: usize,
        len: usize,
    ) -> Result<(), CudaError> {
        let accum = accum.head_mut("zero_accum", "accum", offset.saturating_add(len))?;
        // SAFETY: the end was just checked.
        unsafe { self.zero(accum.at(offset), len) }
    }

    fn copy(
        &self,
        from: &Buffer<S, D>,
        from_offset: usize,
        to: &mut Buffer<S, D>,
        to_offset: usize,
        len: usize,
    ) -> Result<(), CudaError> {
        let from = from.head("copy", "from", from_offset.saturating_add(len))?.at(from_offset);
        let to = to.head_mut("copy", "to", to_offset.saturating_add(len))?.at(to_offset);
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the lengths were just checked, and `to` is borrowed by nothing else.
        unsafe { self.device.copy(from.raw(), to.raw(), len * size_of::<S>()) }
    }

    fn add(&self, from: &Buffer<S, D>, to: &mut Buffer<S, D>, len: usize) -> Result<(), CudaError> {
        let from = from.head("add", "from", len)?;
        elementwise::add(self, len, from, to.head_mut("add", "to", len)?)
    }

    fn replay(
        &self,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        // What was recorded works in the scratch memory of that time.
        let scratch = self.scratch.borrow().head("scratch", "bytes", 0)?.raw();
        self.device.replay((key, scratch), work)
    }

    fn params_key(&self, params: &Params<S, D>) -> u64 {
        params.key
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.device.synchronize()
    }
}
