//! Host memory as the backend's buffers.

use crate::{CpuBackend, CpuError, Element};
use rayon::prelude::*;
use sar_math::backend::{Buffers, ShapeError};

/// Elements that one task copies, adds or clears.
const PIECE: usize = 1 << 16;

/// A flat, zero-initialised host buffer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buffer<T>(Vec<T>);

impl<T: Copy + Default> Buffer<T> {
    /// Allocates `len` zeros; the system hands out zeroed pages, so untouched parts cost nothing.
    pub(crate) fn zeroed(len: usize) -> Result<Self, CpuError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut data = Vec::new();
        if bytes > isize::MAX as usize || data.try_reserve_exact(len).is_err() {
            return Err(CpuError::OutOfMemory { bytes });
        }
        drop(data);
        data = vec![T::default(); len];
        Ok(Self(data))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    /// The elements, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.0
    }

    /// The first `len` elements, or the error of `op` about `operand`.
    pub(crate) fn head(
        &self,
        op: &'static str,
        operand: &'static str,
        len: usize,
    ) -> Result<&[T], ShapeError> {
        ShapeError::at_least(op, operand, len, self.0.len())?;
        Ok(&self.0[..len])
    }

    /// As [`Buffer::head`], for writing.
    pub(crate) fn head_mut(
        &mut self,
        op: &'static str,
        operand: &'static str,
        len: usize,
    ) -> Result<&mut [T], ShapeError> {
        ShapeError::at_least(op, operand, len, self.0.len())?;
        Ok(&mut self.0[..len])
    }

    /// The elements of a slot that must have `len` of them.
    pub(crate) fn slot(
        &self,
        op: &'static str,
        operand: &'static str,
        slot: sar_math::backend::Slot,
        len: usize,
    ) -> Result<&[T], ShapeError> {
        ShapeError::equal(op, operand, len, slot.len)?;
        ShapeError::at_least(op, operand, slot.end(), self.0.len())?;
        Ok(&self.0[slot.range()])
    }

    /// As [`Buffer::slot`], for writing.
    pub(crate) fn slot_mut(
        &mut self,
        op: &'static str,
        operand: &'static str,
        slot: sar_math::backend::Slot,
        len: usize,
    ) -> Result<&mut [T], ShapeError> {
        ShapeError::equal(op, operand, len, slot.len)?;
        ShapeError::at_least(op, operand, slot.end(), self.0.len())?;
        Ok(&mut self.0[slot.range()])
    }
}

fn put<T: Copy>(
    op: &'static str,
    host: &[T],
    to: &mut Buffer<T>,
    at: usize,
) -> Result<(), CpuError> {
    ShapeError::at_least(op, "buffer", at.saturating_add(host.len()), to.0.len())?;
    to.0[at..at + host.len()].copy_from_slice(host);
    Ok(())
}

fn get<T: Copy>(
    op: &'static str,
    from: &Buffer<T>,
    at: usize,
    host: &mut [T],
) -> Result<(), CpuError> {
    ShapeError::at_least(op, "buffer", at.saturating_add(host.len()), from.0.len())?;
    host.copy_from_slice(&from.0[at..at + host.len()]);
    Ok(())
}

impl<T: Element> Buffers for CpuBackend<T> {
    type Host = T;
    type Activation = Buffer<T>;
    type Accum = Buffer<T>;
    type Params = Buffer<T>;
    type Ids = Buffer<u32>;
    type Error = CpuError;

    fn activation(&self, len: usize) -> Result<Buffer<T>, CpuError> {
        Buffer::zeroed(len)
    }

    fn accum(&self, len: usize) -> Result<Buffer<T>, CpuError> {
        Buffer::zeroed(len)
    }

    fn params(&self, len: usize) -> Result<Buffer<T>, CpuError> {
        Buffer::zeroed(len)
    }

    fn ids(&self, len: usize) -> Result<Buffer<u32>, CpuError> {
        Buffer::zeroed(len)
    }

    fn upload(&self, host: &[T], to: &mut Buffer<T>, offset: usize) -> Result<(), CpuError> {
        put("upload", host, to, offset)
    }

    fn upload_accum(&self, host: &[T], to: &mut Buffer<T>, offset: usize) -> Result<(), CpuError> {
        put("upload_accum", host, to, offset)
    }

    fn upload_params(&self, host: &[T], to: &mut Buffer<T>, offset: usize) -> Result<(), CpuError> {
        put("upload_params", host, to, offset)
    }

    fn upload_ids(
        &self,
        host: &[u32],
        to: &mut Buffer<u32>,
        offset: usize,
    ) -> Result<(), CpuError> {
        put("upload_ids", host, to, offset)
    }

    fn download(&self, from: &Buffer<T>, offset: usize, host: &mut [T]) -> Result<(), CpuError> {
        get("download", from, offset, host)
    }

    fn download_accum(
        &self,
        from: &Buffer<T>,
        offset: usize,
        host: &mut [T],
    ) -> Result<(), CpuError> {
        get("download_accum", from, offset, host)
    }

    fn download_params(
        &self,
        from: &Buffer<T>,
        offset: usize,
        host: &mut [T],
    ) -> Result<(), CpuError> {
        get("download_params", from, offset, host)
    }

    fn download_ids(
        &self,
        from: &Buffer<u32>,
        offset: usize,
        host: &mut [u32],
    ) -> Result<(), CpuError> {
        get("download_ids", from, offset, host)
    }

    fn zero_accum(&self, accum: &mut Buffer<T>, offset: usize, len: usize) -> Result<(), CpuError> {
        let end = offset.saturating_add(len);
        let accum = &mut accum.head_mut("zero_accum", "accum", end)?[offset..];
        accum.par_chunks_mut(PIECE).for_each(|piece| piece.fill(T::zero()));
        Ok(())
    }

    fn copy(
        &self,
        from: &Buffer<T>,
        from_offset: usize,
        to: &mut Buffer<T>,
        to_offset: usize,
        len: usize,
    ) -> Result<(), CpuError> {
        let from = from.head("copy", "from", from_offset.saturating_add(len))?;
        let to = to.head_mut("copy", "to", to_offset.saturating_add(len))?;
        let pairs =
            to[to_offset..].par_chunks_mut(PIECE).zip(from[from_offset..].par_chunks(PIECE));
        pairs.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }

    fn add(&self, from: &Buffer<T>, to: &mut Buffer<T>, len: usize) -> Result<(), CpuError> {
        let (from, to) = (from.head("add", "from", len)?, to.head_mut("add", "to", len)?);
        let pairs = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
        pairs.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, &from)| *to += from));
        Ok(())
    }

    fn replay(
        &self,
        _key: u64,
        work: &mut dyn FnMut() -> Result<(), CpuError>,
    ) -> Result<(), CpuError> {
        // A launch is a function call, so recording it would save nothing.
        work()
    }

    fn synchronize(&self) -> Result<(), CpuError> {
        Ok(())
    }
}
