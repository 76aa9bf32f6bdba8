//! Operands on a backend, and the ways in which they are made awkward.

use super::case::Numbers;
use crate::Real;
use crate::backend::{Buffers, Slot};
use alloc::vec::Vec;
use core::cell::Cell;

/// What ids hold before an op writes them.
pub(super) const GARBAGE_ID: u32 = 77;

/// Makes and reads a run's operands.
///
/// Every buffer is longer than needed by `slack` elements of garbage, which must not change; an
/// output starts as garbage. At most one operand, counted in the order in which they are made, is
/// one element too short instead.
pub(super) struct Rig<'a, B: Buffers> {
    pub(super) backend: &'a B,
    /// What outputs hold before an op writes them.
    pub(super) garbage: f64,
    slack: usize,
    short: Option<usize>,
    made: Cell<usize>,
    shortened: Cell<Option<&'static str>>,
    spilled: Cell<Option<&'static str>>,
}

impl<'a, B: Buffers> Rig<'a, B> {
    pub(super) fn new(backend: &'a B, slack: usize, garbage: f64) -> Self {
        Self {
            backend,
            garbage,
            slack,
            short: None,
            made: Cell::new(0),
            shortened: Cell::new(None),
            spilled: Cell::new(None),
        }
    }

    /// A rig whose operand number `short` is one element too short.
    pub(super) fn shortening(backend: &'a B, short: usize) -> Self {
        Self { short: Some(short), ..Self::new(backend, 0, 7.5) }
    }

    /// The operand that was made too short, if the run got that far.
    pub(super) fn shortened(&self) -> Option<&'static str> {
        self.shortened.get()
    }

    /// An operand written past its end.
    pub(super) fn spilled(&self) -> Option<&'static str> {
        self.spilled.get()
    }

    fn room(&self, name: &'static str, len: usize) -> usize {
        if len == 0 {
            return self.slack;
        }
        let number = self.made.get();
        self.made.set(number + 1);
        if self.short == Some(number) {
            self.shortened.set(Some(name));
            return len - 1;
        }
        len + self.slack
    }

    fn host(&self, values: &[f64], room: usize) -> Vec<B::Host> {
        let garbage = core::iter::repeat(&self.garbage);
        values.iter().chain(garbage).take(room).map(|&v| B::Host::of(v)).collect()
    }

    /// An activation that holds `values`.
    pub(super) fn activation(
        &self,
        name: &'static str,
        values: &[f64],
    ) -> Result<B::Activation, B::Error> {
        let host = self.host(values, self.room(name, values.len()));
        let mut buffer = self.backend.activation(host.len())?;
        self.backend.upload(&host, &mut buffer, 0)?;
        Ok(buffer)
    }

    /// An activation for an op to write.
    pub(super) fn blank(&self, name: &'static str, len: usize) -> Result<B::Activation, B::Error> {
        self.activation(name, &alloc::vec![self.garbage; len])
    }

    /// An accumulation buffer that holds `values`.
    pub(super) fn accum(&self, name: &'static str, values: &[f64]) -> Result<B::Accum, B::Error> {
        let host = self.host(values, self.room(name, values.len()));
        let mut buffer = self.backend.accum(host.len())?;
        self.backend.upload_accum(&host, &mut buffer, 0)?;
        Ok(buffer)
    }

    /// An accumulation buffer for an op to write.
    pub(super) fn blank_accum(&self, name: &'static str, len: usize) -> Result<B::Accum, B::Error> {
        self.accum(name, &alloc::vec![self.garbage; len])
    }

    /// Parameters that hold `values`.
    pub(super) fn params(&self, name: &'static str, values: &[f64]) -> Result<B::Params, B::Error> {
        let host = self.host(values, self.room(name, values.len()));
        let mut buffer = self.backend.params(host.len())?;
        self.backend.upload_params(&host, &mut buffer, 0)?;
        Ok(buffer)
    }

    /// Ids that hold `values`.
    pub(super) fn ids(&self, name: &'static str, values: &[u32]) -> Result<B::Ids, B::Error> {
        let room = self.room(name, values.len());
        let host: Vec<u32> =
            values.iter().copied().chain(core::iter::repeat(GARBAGE_ID)).take(room).collect();
        let mut buffer = self.backend.ids(room)?;
        self.backend.upload_ids(&host, &mut buffer, 0)?;
        Ok(buffer)
    }

    /// Ids for an op to write.
    pub(super) fn blank_ids(&self, name: &'static str, len: usize) -> Result<B::Ids, B::Error> {
        self.ids(name, &alloc::vec![GARBAGE_ID; len])
    }

    fn checked(&self, name: &'static str, host: &[B::Host], len: usize) -> Vec<f64> {
        if host[len..].iter().any(|&v| v != B::Host::of(self.garbage)) {
            self.spilled.set(Some(name));
        }
        host[..len].iter().map(|v| v.wide()).collect()
    }

    /// The first `len` elements of an activation.
    pub(super) fn read(
        &self,
        name: &'static str,
        from: &B::Activation,
        len: usize,
    ) -> Result<Vec<f64>, B::Error> {
        let mut host = alloc::vec![B::Host::of(0.0); len + self.slack];
        self.backend.download(from, 0, &mut host)?;
        Ok(self.checked(name, &host, len))
    }

    /// As [`Rig::read`], for an accumulation buffer.
    pub(super) fn read_accum(
        &self,
        name: &'static str,
        from: &B::Accum,
        len: usize,
    ) -> Result<Vec<f64>, B::Error> {
        let mut host = alloc::vec![B::Host::of(0.0); len + self.slack];
        self.backend.download_accum(from, 0, &mut host)?;
        Ok(self.checked(name, &host, len))
    }

    /// As [`Rig::read`], for parameters.
    pub(super) fn read_params(
        &self,
        name: &'static str,
        from: &B::Params,
        len: usize,
    ) -> Result<Vec<f64>, B::Error> {
        let mut host = alloc::vec![B::Host::of(0.0); len + self.slack];
        self.backend.download_params(from, 0, &mut host)?;
        Ok(self.checked(name, &host, len))
    }

    /// As [`Rig::read`], for ids, which every f64 holds exactly.
    pub(super) fn read_ids(
        &self,
        name: &'static str,
        from: &B::Ids,
        len: usize,
    ) -> Result<Vec<f64>, B::Error> {
        let mut host = alloc::vec![0; len + self.slack];
        self.backend.download_ids(from, 0, &mut host)?;
        if host[len..].iter().any(|&id| id != GARBAGE_ID) {
            self.spilled.set(Some(name));
        }
        Ok(host[..len].iter().map(|&id| f64::from(id)).collect())
    }

    /// Copies what a forward left in an activation into a new buffer for its backward, which may
    /// rely on what it is given and on nothing else.
    pub(super) fn hand_over(
        &self,
        name: &'static str,
        from: &B::Activation,
        len: usize,
    ) -> Result<B::Activation, B::Error> {
        self.activation(name, &self.read(name, from, len)?)
    }

    /// As [`Rig::hand_over`], for an accumulation buffer.
    pub(super) fn hand_over_accum(
        &self,
        name: &'static str,
        from: &B::Accum,
        len: usize,
    ) -> Result<B::Accum, B::Error> {
        self.accum(name, &self.read_accum(name, from, len)?)
    }
}

/// A flat parameter buffer with gaps between its slots.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// The whole buffer.
    pub(super) values: Vec<f64>,
    /// Which elements belong to a tensor.
    pub(super) slots: Vec<Slot>,
}

impl Layout {
    /// Appends a tensor after a gap of up to two elements that belong to no tensor.
    pub(super) fn push(&mut self, numbers: &mut Numbers, tensor: &[f64]) -> Slot {
        for _ in 0..numbers.between(0, 2) {
            self.values.push(numbers.value());
        }
        let slot = Slot { offset: self.values.len(), len: tensor.len() };
        self.values.extend_from_slice(tensor);
        self.slots.push(slot);
        slot
    }

    /// Appends a tensor of random values.
    pub(super) fn draw(&mut self, numbers: &mut Numbers, len: usize) -> Slot {
        let tensor = numbers.values(len);
        self.push(numbers, &tensor)
    }

    /// A tensor's values.
    pub(super) fn get(&self, slot: Slot) -> Vec<f64> {
        self.values[slot.range()].to_vec()
    }

    /// Whether an element belongs to a tensor.
    pub(super) fn owns(&self, index: usize) -> bool {
        self.slots.iter().any(|slot| slot.range().contains(&index))
    }
}
