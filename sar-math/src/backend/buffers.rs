//! Memory: who owns it, what may be narrow, and when work is done.

use super::BackendError;
use crate::{Real, ShapeError};

/// A tensor's place in the flat parameter buffer, and so in its gradient, moments and average.
///
/// Parameters, gradients and optimiser state are each *one* flat buffer of the same layout: the
/// optimiser is one pass over it, and an op that needs a weight and its gradient needs one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Slot {
    /// One past the last element; saturates at `usize::MAX`, where no buffer ends.
    pub const fn end(self) -> usize {
        self.offset.saturating_add(self.len)
    }

    /// The elements as a range.
    pub const fn range(self) -> core::ops::Range<usize> {
        self.offset..self.end()
    }
}

/// Draws a key for [`Buffers::replay`] that this process has not drawn before.
///
/// Available on targets that have atomic counters; on other targets callers keep a counter of their
/// own.
#[cfg(target_has_atomic = "ptr")]
pub fn next_replay_key() -> u64 {
    use core::sync::atomic::{AtomicUsize, Ordering};
    static DRAWN: AtomicUsize = AtomicUsize::new(0);
    // Only the number itself is shared, so its order with other memory accesses does not matter.
    DRAWN.fetch_add(1, Ordering::Relaxed) as u64
}

/// Allocation, transfer and synchronisation.
///
/// Allocation happens here and nowhere else: no op allocates device memory that outlives it, and a
/// training loop allocates nothing after its first step. Buffers are flat; an op is given the
/// dimensions and requires a buffer of *at least* that many elements, so one buffer sized for the
/// longest schedule serves all shorter ones.
pub trait Buffers {
    /// The host's number type: what `upload` takes and `download` gives.
    type Host: Real;
    /// Activations and their gradients; may be stored narrower than `Host` (bf16 on CUDA).
    type Activation;
    /// Statistics, losses, gradients, moments, averages: always f32 or wider.
    type Accum;
    /// Weights. Trained weights are f32 or wider and may carry a narrow copy for matrix products;
    /// frozen weights may consist of that copy alone.
    type Params;
    /// Token ids and labels, `u32`.
    type Ids;
    /// The backend's error.
    type Error: BackendError;

    /// A zeroed activation buffer of `len` elements.
    ///
    /// # Errors
    /// Out of memory; the same holds for `accum`, `params` and `ids`.
    fn activation(&self, len: usize) -> Result<Self::Activation, Self::Error>;
    /// A zeroed accumulation buffer of `len` elements.
    fn accum(&self, len: usize) -> Result<Self::Accum, Self::Error>;
    /// A zeroed parameter buffer of `len` elements.
    fn params(&self, len: usize) -> Result<Self::Params, Self::Error>;
    /// Allocates weights that hold `host` and are only read, by ops that take no part in training.
    ///
    /// `exact` lists the tensors, which must be disjoint, that ops read as wide as they are
    /// trained: tables, and biases of heads. The others are weights and biases of layers; of these
    /// a backend may keep only the narrow copy for matrix products. Ops give the same bits as with
    /// weights from [`Buffers::params`]. Where values are not held at full width, the backend may
    /// refuse operations that need them: training, and a download.
    ///
    /// # Errors
    /// As [`Buffers::params`]; a shape error if a tensor of `exact` lies outside `host`.
    fn frozen_params(
        &self,
        host: &[Self::Host],
        exact: &[Slot],
    ) -> Result<Self::Params, Self::Error> {
        for slot in exact {
            let end = slot.offset.saturating_add(slot.len);
            let operand = "weights (exact tensor's end)";
            ShapeError::at_least("frozen_params", operand, end, host.len())?;
        }
        let mut params = self.params(host.len())?;
        self.upload_params(host, &mut params, 0)?;
        Ok(params)
    }
    /// A zeroed id buffer of `len` elements.
    fn ids(&self, len: usize) -> Result<Self::Ids, Self::Error>;

    /// Copies `host` to `to[offset..offset + host.len()]`. The host slice may be reused on return.
    ///
    /// # Errors
    /// A shape error if the range does not lie in the buffer; the same holds for all transfers.
    fn upload(
        &self,
        host: &[Self::Host],
        to: &mut Self::Activation,
        offset: usize,
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::upload`], to an accumulation buffer.
    fn upload_accum(
        &self,
        host: &[Self::Host],
        to: &mut Self::Accum,
        offset: usize,
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::upload`], to parameters (and their narrow copy, where there is one).
    fn upload_params(
        &self,
        host: &[Self::Host],
        to: &mut Self::Params,
        offset: usize,
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::upload`], for ids.
    fn upload_ids(
        &self,
        host: &[u32],
        to: &mut Self::Ids,
        offset: usize,
    ) -> Result<(), Self::Error>;

    /// Copies `from[offset..offset + host.len()]` to the host, after waiting for the work that
    /// produces it.
    ///
    /// # Errors
    /// A shape error, or a device fault of earlier asynchronous work.
    fn download(
        &self,
        from: &Self::Activation,
        offset: usize,
        host: &mut [Self::Host],
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::download`], from an accumulation buffer.
    fn download_accum(
        &self,
        from: &Self::Accum,
        offset: usize,
        host: &mut [Self::Host],
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::download`], of the full-precision parameters.
    fn download_params(
        &self,
        from: &Self::Params,
        offset: usize,
        host: &mut [Self::Host],
    ) -> Result<(), Self::Error>;
    /// As [`Buffers::download`], for ids.
    fn download_ids(
        &self,
        from: &Self::Ids,
        offset: usize,
        host: &mut [u32],
    ) -> Result<(), Self::Error>;

    /// Sets `accum[offset..][..len]` to zero: for gradients that are added to, at the start of an
    /// optimiser step.
    ///
    /// # Errors
    /// A shape error.
    fn zero_accum(
        &self,
        accum: &mut Self::Accum,
        offset: usize,
        len: usize,
    ) -> Result<(), Self::Error>;
    /// Copies `from[from_offset..][..len]` to `to[to_offset..][..len]`.
    ///
    /// # Errors
    /// A shape error.
    fn copy(
        &self,
        from: &Self::Activation,
        from_offset: usize,
        to: &mut Self::Activation,
        to_offset: usize,
        len: usize,
    ) -> Result<(), Self::Error>;
    /// Adds the first `len` elements of `from` to `to`.
    ///
    /// # Errors
    /// A shape error.
    fn add(
        &self,
        from: &Self::Activation,
        to: &mut Self::Activation,
        len: usize,
    ) -> Result<(), Self::Error>;

    /// Runs `work`, a sequence of ops that the caller submits repeatedly.
    ///
    /// A backend whose launches are slow may record the ops under `key`, at the first call or a
    /// later one, and from then on launch the recording instead of calling `work`; at any time it
    /// may drop a recording and call `work` again. The simplest implementation is `work()`. The
    /// rules for callers are therefore:
    ///
    /// - `work` only issues ops: it allocates and drops no buffers and calls no upload, download,
    ///   [`Buffers::synchronize`] or `replay`. Values that an op takes from the host belong to its
    ///   constants.
    /// - Under one key, `work` issues the same ops with the same dimensions and constants on the
    ///   same buffers, which live as long as the key is used. The contents of the buffers may
    ///   change.
    /// - A key belongs to its buffers for the life of the process. Callers draw it from
    ///   [`next_replay_key`] and draw another one for other buffers; [`Buffers::params_key`] tells
    ///   weights apart.
    ///
    /// # Errors
    /// The errors of `work`, after which nothing is recorded; a device fault.
    fn replay(
        &self,
        key: u64,
        work: &mut dyn FnMut() -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    /// A key that tells weights apart for [`Buffers::replay`]: it stays the same as long as the
    /// weights live, and differs from that of any weights allocated later. Their contents may
    /// change.
    ///
    /// The default is the address of `params` on the host, which later weights may reuse and which
    /// changes when the weights are moved. This suffices for a backend whose `replay` is `work()`;
    /// a backend that records draws a [`next_replay_key`] when it allocates weights.
    fn params_key(&self, params: &Self::Params) -> u64 {
        core::ptr::from_ref(params).addr() as u64
    }

    /// Waits until all work submitted so far is done.
    ///
    /// # Errors
    /// A device fault of earlier asynchronous work.
    fn synchronize(&self) -> Result<(), Self::Error>;
}
