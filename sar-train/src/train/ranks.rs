//! Data-parallel training: the micro-batches of a step, shared among the ranks of a run.
//!
//! Rank 0 keeps the optimiser. In every step it gives the other ranks the weights, adds their gradients to its own in
//! the order of their numbers, and makes the update. A step is that of one process with the same `train.accumulate`,
//! up to the order of that sum, whose bits depend on the number of ranks and on nothing else.

use super::tokenizer::{PartFound, TokenizerReplica};
use super::{Batches, Replica, StepLosses, TrainError};
use crate::data::Loader;
use crate::ranks::RanksError;
use sar_math::backend::{Backend, Buffers};
use std::ops::Range;

/// Returns the micro-batches that rank `rank` of `ranks` takes of a step of `accumulate`. All shares together are the
/// step, in order, and no two of them differ by more than one micro-batch.
pub fn share(accumulate: usize, rank: usize, ranks: usize) -> Range<usize> {
    let start = |rank: usize| accumulate * rank / ranks.max(1);
    start(rank)..start(rank + 1)
}

/// Checks that each of `ranks` ranks has a micro-batch of a step of `accumulate`.
///
/// # Errors
/// [`RanksError::TooMany`].
pub fn check_ranks(ranks: usize, accumulate: usize) -> Result<(), RanksError> {
    match ranks <= accumulate {
        true => Ok(()),
        false => Err(RanksError::TooMany { ranks, accumulate }),
    }
}

/// The other ranks of a run, as rank 0 sees them. `Found` is what it learns of their micro-batches besides the gradients.
pub trait OtherRanks<B: Buffers, Found> {
    /// Returns the number of ranks, including rank 0.
    fn ranks(&self) -> usize;

    /// Gives all other ranks the weights, and has them begin with their shares of step `step`.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if one cannot be reached; a failure of the backend.
    fn begin(&mut self, backend: &B, step: u64, params: &B::Params) -> Result<(), TrainError>;

    /// Adds the gradients of all other ranks to rank 0's, in the order of their numbers; returns what they found in
    /// their micro-batches in the same order.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if one has failed or cannot be reached; a failure of the backend. The gradients are not
    /// those of the step then.
    fn add_gradients(
        &mut self,
        backend: &B,
        gradients: &mut B::Accum,
    ) -> Result<Vec<Found>, TrainError>;
}

/// What one of the other ranks does in every step.
pub trait Share {
    /// What rank 0 learns of the micro-batches besides their gradients.
    type Found;

    /// Returns the number of micro-batches of a step.
    fn accumulate(&self) -> usize;

    /// Returns the number of parameters.
    fn parameters(&self) -> usize;

    /// Takes the micro-batches `share` of step `step` with the weights in `values`, and puts their gradients there.
    ///
    /// # Errors
    /// The images', the backend's.
    fn take(
        &mut self,
        step: u64,
        share: Range<usize>,
        values: &mut [f32],
    ) -> Result<Self::Found, TrainError>;
}

/// Takes shares of a generator's steps.
pub struct GeneratorShare<'a, B: Backend> {
    /// The weights, and memory for a step.
    pub replica: Replica<'a, B>,
    /// Latents of this rank's micro-batches.
    pub batches: Box<dyn Batches<B> + 'a>,
}

impl<B: Backend<Host = f32>> Share for GeneratorShare<'_, B> {
    type Found = StepLosses;

    fn accumulate(&self) -> usize {
        self.replica.config.accumulate
    }

    fn parameters(&self) -> usize {
        self.replica.generator.layout().len()
    }

    fn take(
        &mut self,
        step: u64,
        share: Range<usize>,
        values: &mut [f32],
    ) -> Result<StepLosses, TrainError> {
        let (backend, replica) = (self.replica.backend, &mut self.replica);
        backend.upload_params(values, &mut replica.params, 0)?;
        replica.gradients(step, share, &mut *self.batches)?;
        let gradients = &replica.memory.grads.params;
        backend.download_accum(gradients, 0, values)?;
        let losses = replica.losses()?;
        losses.map(|(losses, _)| losses).ok_or(TrainError::NoShare)
    }
}

/// Takes shares of a tokenizer's steps.
pub struct TokenizerShare<'a, B: Backend> {
    /// The weights, and memory for a step.
    pub replica: TokenizerReplica<'a, B>,
    /// Images of this rank's micro-batches.
    pub loader: Loader,
}

impl<B: Backend<Host = f32>> Share for TokenizerShare<'_, B> {
    type Found = Vec<PartFound<f32>>;

    fn accumulate(&self) -> usize {
        self.replica.config.accumulate
    }

    fn parameters(&self) -> usize {
        self.replica.tokenizer.layout().len()
    }

    fn take(
        &mut self,
        step: u64,
        share: Range<usize>,
        values: &mut [f32],
    ) -> Result<Vec<PartFound<f32>>, TrainError> {
        let Self { replica, loader } = self;
        replica.set_weights(values)?;
        replica.gradients(step, share, &mut || Ok(loader.next_batch()?.values_b))?;
        replica.backend.download_accum(&replica.grads, 0, values)?;
        let mut found = replica.found()?;
        // Rank 0 knows which codes nothing has used, and may need any of them.
        replica.read_latents(&mut found)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::share;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_are_the_step_in_order_and_even(accumulate in 0usize..200, ranks in 1usize..40) {
            let shares: Vec<_> = (0..ranks).map(|rank| share(accumulate, rank, ranks)).collect();
            let all: Vec<usize> = shares.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..accumulate).collect::<Vec<_>>());
            let sizes = shares.iter().map(ExactSizeIterator::len);
            let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }
}
