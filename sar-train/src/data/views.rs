//! Training images as an epoch sees them, in the order of the set.

use super::dataset::Batch;
use super::loader::{cut_draws, epoch_order};
use super::{Data, DataError};
use rayon::prelude::*;
use std::ops::Range;

/// The training images as one epoch of a run cuts them.
pub(crate) struct View<'a> {
    data: &'a Data,
    seed: u64,
    /// Place of each image in the sequence of the run.
    places: Vec<u64>,
}

impl<'a> View<'a> {
    /// Returns the images as `epoch` of a run with this seed sees them.
    pub(crate) fn new(data: &'a Data, seed: u64, epoch: u64) -> Self {
        let len = data.train.len();
        let mut places = vec![0; len];
        for (place, image) in epoch_order(seed, epoch, len).into_iter().enumerate() {
            places[image as usize] = epoch * len as u64 + place as u64;
        }
        Self { data, seed, places }
    }

    /// Returns images `range`, cut on all threads.
    ///
    /// # Errors
    /// As for [`View::select`].
    pub(crate) fn batch(&self, range: Range<usize>) -> Result<Batch, DataError> {
        self.select(&range.collect::<Vec<_>>())
    }

    /// Returns the images with these indices, cut on all threads.
    ///
    /// # Errors
    /// As for [`Dataset::image`](super::Dataset::image); of several errors, the first in order.
    pub(crate) fn select(&self, indices: &[usize]) -> Result<Batch, DataError> {
        let Data { train, augment, .. } = self.data;
        let cut = |&index: &usize| {
            train.cut(index, augment, &mut cut_draws(self.seed, self.places[index]))
        };
        let first_index = indices.first().map_or(0, |&index| index as u64);
        Batch::gathered(indices.par_iter().map(cut).collect(), first_index)
    }
}
