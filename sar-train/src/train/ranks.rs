//! Data-parallel training: the micro-batches of a step, shared among the ranks of a run.
//!
//! Rank 0 keeps the optimiser. In every step it gives the other ranks the weights, adds their gradients to its own in
//! the order of their numbers, and makes the update. A step is that of one process with the same `train.accumulate`,
//! up to the order of that sum, whose bits depend on the number of ranks and on nothing else.

use super::{StepLosses, TrainError};
use sar_math::backend::Backend;
use std::ops::Range;

/// Returns the micro-batches that rank `rank` of `ranks` takes of a step of `accumulate`. All shares together are the
/// step, in order, and no two of them differ by more than one micro-batch.
pub fn share(accumulate: usize, rank: usize, ranks: usize) -> Range<usize> {
    let start = |rank: usize| accumulate * rank / ranks.max(1);
    start(rank)..start(rank + 1)
}

/// The other ranks of a run, as rank 0 sees them.
pub trait OtherRanks<B: Backend> {
    /// Returns the number of ranks, including rank 0.
    fn ranks(&self) -> usize;

    /// Gives all other ranks the weights, and has them begin with their shares of step `step`.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if one cannot be reached; a failure of the backend.
    fn begin(&mut self, backend: &B, step: u64, params: &B::Params) -> Result<(), TrainError>;

    /// Adds the gradients of all other ranks to rank 0's, in the order of their numbers; returns the losses of their
    /// micro-batches in the same order.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if one has failed or cannot be reached; a failure of the backend. The gradients are not
    /// those of the step then.
    fn add_gradients(
        &mut self,
        backend: &B,
        gradients: &mut B::Accum,
    ) -> Result<Vec<StepLosses>, TrainError>;
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
