//! A model's weights: trained ones in f32 with a narrow copy, frozen ones only as ops read them.

use crate::device::Device;
use crate::error::CudaError;
use crate::memory::{Address, Buffer};
use crate::storage::Storage;
use sar_math::backend::{ShapeError, Slot, next_replay_key};
use std::sync::Arc;

/// Weights in f32 and, where activations are narrow, their narrow copy for matrix products. Frozen
/// weights that have a narrow copy hold little more than that copy.
pub struct Params<S, D: Device> {
    /// The weights that the optimiser changes; for frozen weights that have a narrow copy, only the
    /// tensors of `exact`.
    master: Buffer<f32, D>,
    /// For frozen weights that have a narrow copy: the tensors held in `master`, in ascending order.
    exact: Option<Vec<Exact>>,
    /// All weights, rounded; `None` where S is f32.
    narrow: Option<Buffer<S, D>>,
    /// Distinguishes these weights from others that are later allocated at the same address.
    pub(crate) key: u64,
}

/// The buffers that the optimiser writes.
pub(crate) struct Trained<'a, S, D: Device> {
    pub(crate) master: &'a mut Buffer<f32, D>,
    pub(crate) narrow: Option<&'a mut Buffer<S, D>>,
}

/// A tensor of frozen weights that is held in f32.
struct Exact {
    slot: Slot,
    /// Index of its first element in `master`.
    at: usize,
}

/// Number of elements modulo which [`packed`] keeps a tensor's offset, so that vector loads of the tensor
/// stay aligned as they were.
const ALIGNMENT: usize = 16;

/// Places the tensors that are held in f32 one after the other; returns them and the number of elements
/// that they take.
fn packed(exact: &[Slot]) -> (Vec<Exact>, usize) {
    let mut slots = exact.to_vec();
    slots.sort_by_key(|slot| slot.offset);
    let mut end = 0;
    let place = |slot: Slot| {
        let at = usize::next_multiple_of(end, ALIGNMENT) + slot.offset % ALIGNMENT;
        end = at + slot.len;
        Exact { slot, at }
    };
    (slots.into_iter().map(place).collect(), end)
}

impl<S: Storage, D: Device> Params<S, D> {
    pub(crate) fn zeroed(device: &Arc<D>, len: usize) -> Result<Self, CudaError> {
        let narrow = S::NARROW.then(|| Buffer::zeroed(device, len)).transpose()?;
        let master = Buffer::zeroed(device, len)?;
        Ok(Self { master, exact: None, narrow, key: next_replay_key() })
    }

    /// See [`sar_math::backend::Buffers::frozen_params`].
    pub(crate) fn frozen(device: &Arc<D>, host: &[f32], exact: &[Slot]) -> Result<Self, CudaError> {
        const OP: &str = "frozen_params";
        let end = exact.iter().map(|slot| slot.offset.saturating_add(slot.len)).max().unwrap_or(0);
        ShapeError::at_least(OP, "weights (last exact tensor's end)", end, host.len())?;
        let mut params = if S::NARROW {
            let (exact, len) = packed(exact);
            let master = Buffer::zeroed(device, len)?;
            let narrow = Some(Buffer::zeroed(device, host.len())?);
            Self { master, exact: Some(exact), narrow, key: next_replay_key() }
        } else {
            Self::zeroed(device, host.len())?
        };
        params.put(OP, host, 0)?;
        Ok(params)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.narrow.as_ref().map_or(self.master.len(), Buffer::len)
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All weights in f32, which training and saving need; an error for frozen weights that hold only some.
    pub(crate) fn master(&self, op: &'static str) -> Result<&Buffer<f32, D>, ShapeError> {
        self.whole(op)?;
        Ok(&self.master)
    }

    /// Like [`Params::master`], together with the narrow copy, for writing.
    pub(crate) fn trained_mut(
        &mut self,
        op: &'static str,
    ) -> Result<Trained<'_, S, D>, ShapeError> {
        self.whole(op)?;
        Ok(Trained { master: &mut self.master, narrow: self.narrow.as_mut() })
    }

    fn whole(&self, op: &'static str) -> Result<(), ShapeError> {
        if self.exact.is_none() {
            return Ok(());
        }
        let operand = "weights in f32 (frozen ones are held narrow)";
        Err(ShapeError { op, operand, expected: self.len(), found: self.master.len() })
    }

    /// Copies weights from the host.
    pub(crate) fn put(
        &mut self,
        op: &'static str,
        host: &[f32],
        offset: usize,
    ) -> Result<(), CudaError> {
        ShapeError::at_least(op, "buffer", offset.saturating_add(host.len()), self.len())?;
        match &self.exact {
            None => self.master.put(op, host, offset)?,
            Some(exact) => {
                let all = offset..offset + host.len();
                for Exact { slot, at } in exact {
                    let part = slot.offset.max(all.start)..slot.end().min(all.end);
                    if !part.is_empty() {
                        let host = &host[part.start - offset..part.end - offset];
                        self.master.put(op, host, at + (part.start - slot.offset))?;
                    }
                }
            }
        }
        match &mut self.narrow {
            None => Ok(()),
            Some(narrow) => narrow.put(op, &stored::<S>(host), offset),
        }
    }

    /// Address of a tensor's weights in f32.
    pub(crate) fn slot(
        &self,
        op: &'static str,
        operand: &'static str,
        slot: Slot,
        len: usize,
    ) -> Result<Address<f32>, ShapeError> {
        let Some(exact) = &self.exact else { return self.master.slot(op, operand, slot, len) };
        ShapeError::equal(op, operand, len, slot.len)?;
        let end = slot.offset.saturating_add(slot.len);
        let before = exact.partition_point(|exact| exact.slot.offset <= slot.offset);
        let held = before.checked_sub(1).map(|last| &exact[last]);
        let Some(held) = held.filter(|held| end <= held.slot.end()) else {
            let operand = "weights in f32 (frozen ones hold none of this tensor)";
            return Err(ShapeError { op, operand, expected: len, found: 0 });
        };
        let offset = held.at + (slot.offset - held.slot.offset);
        self.master.slot(op, operand, Slot { offset, len }, len)
    }

    /// Address of a tensor's weights as matrix products take them.
    pub(crate) fn weights(
        &self,
        op: &'static str,
        operand: &'static str,
        slot: Slot,
        len: usize,
    ) -> Result<Address<S>, ShapeError> {
        match &self.narrow {
            Some(narrow) => narrow.slot(op, operand, slot, len),
            None => Ok(self.master.slot(op, operand, slot, len)?.cast()),
        }
    }
}

/// Numbers as the device stores them.
pub(crate) fn stored<S: Storage>(host: &[f32]) -> Vec<S> {
    host.iter().map(|&value| S::store(value)).collect()
}
