//! Device memory as the backend's buffers.

use crate::device::Device;
use crate::error::CudaError;
use crate::storage::Stored;
use core::marker::PhantomData;
use sar_math::backend::{ShapeError, Slot};
use std::sync::Arc;

/// A typed device address.
#[repr(transparent)]
pub struct Address<T> {
    raw: u64,
    element: PhantomData<*const T>,
}

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Address<T> {}

impl<T> core::fmt::Debug for Address<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.raw)
    }
}

impl<T> Address<T> {
    /// The null address, which a kernel is given for an operand that is absent.
    pub const NULL: Self = Self::new(0);

    pub(crate) const fn new(raw: u64) -> Self {
        Self { raw, element: PhantomData }
    }

    /// The address as a number.
    pub const fn raw(self) -> u64 {
        self.raw
    }

    /// The address `elements` elements further on.
    pub const fn at(self, elements: usize) -> Self {
        Self::new(self.raw + (elements * size_of::<T>()) as u64)
    }

    /// The same address, of elements of another type.
    pub const fn cast<U>(self) -> Address<U> {
        Address::new(self.raw)
    }
}

/// A flat, zero-initialised buffer in device memory.
pub struct Buffer<T, D: Device> {
    device: Arc<D>,
    address: Address<T>,
    len: usize,
}

// SAFETY: an address is a number; the device that owns the memory is Send and Sync.
unsafe impl<T: Send, D: Device> Send for Buffer<T, D> {}
// SAFETY: as above; a shared buffer is only read from, through the device.
unsafe impl<T: Sync, D: Device> Sync for Buffer<T, D> {}

impl<T: Stored, D: Device> Buffer<T, D> {
    pub(crate) fn zeroed(device: &Arc<D>, len: usize) -> Result<Self, CudaError> {
        let address = match len {
            0 => 0,
            len => device.allocate(len.saturating_mul(size_of::<T>()))?,
        };
        Ok(Self { device: Arc::clone(device), address: Address::new(address), len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the first `len` elements; an error of `op` about `operand` if there are fewer.
    pub(crate) fn head(
        &self,
        op: &'static str,
        operand: &'static str,
        len: usize,
    ) -> Result<Address<T>, ShapeError> {
        ShapeError::at_least(op, operand, len, self.len)?;
        Ok(self.address)
    }

    /// Like [`Buffer::head`], for writing.
    pub(crate) fn head_mut(
        &mut self,
        op: &'static str,
        operand: &'static str,
        len: usize,
    ) -> Result<Address<T>, ShapeError> {
        self.head(op, operand, len)
    }

    /// Address of the elements of a slot, which must have `len` of them.
    pub(crate) fn slot(
        &self,
        op: &'static str,
        operand: &'static str,
        slot: Slot,
        len: usize,
    ) -> Result<Address<T>, ShapeError> {
        ShapeError::equal(op, operand, len, slot.len)?;
        ShapeError::at_least(op, operand, slot.offset.saturating_add(slot.len), self.len)?;
        Ok(self.address.at(slot.offset))
    }

    /// Like [`Buffer::slot`], for writing.
    pub(crate) fn slot_mut(
        &mut self,
        op: &'static str,
        operand: &'static str,
        slot: Slot,
        len: usize,
    ) -> Result<Address<T>, ShapeError> {
        self.slot(op, operand, slot, len)
    }

    /// Copies elements from the host.
    pub(crate) fn put(
        &mut self,
        op: &'static str,
        host: &[T],
        offset: usize,
    ) -> Result<(), CudaError> {
        ShapeError::at_least(op, "buffer", offset.saturating_add(host.len()), self.len)?;
        if host.is_empty() {
            return Ok(());
        }
        // SAFETY: any element is plain bytes, and the range was just checked.
        unsafe {
            let bytes = core::slice::from_raw_parts(host.as_ptr().cast(), size_of_val(host));
            self.device.write(bytes, self.address.at(offset).raw())
        }
    }

    /// Copies elements to the host.
    pub(crate) fn get(
        &self,
        op: &'static str,
        offset: usize,
        host: &mut [T],
    ) -> Result<(), CudaError> {
        ShapeError::at_least(op, "buffer", offset.saturating_add(host.len()), self.len)?;
        if host.is_empty() {
            return Ok(());
        }
        // SAFETY: any bytes are an element of f32, bf16 or u32, and the range was just checked.
        unsafe {
            let bytes =
                core::slice::from_raw_parts_mut(host.as_mut_ptr().cast(), size_of_val(host));
            self.device.read(self.address.at(offset).raw(), bytes)
        }
    }
}

impl<T, D: Device> Drop for Buffer<T, D> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with this size, and borrowed by nothing any more.
            unsafe { self.device.release(self.address.raw(), self.len * size_of::<T>()) };
        }
    }
}
