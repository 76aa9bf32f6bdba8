//! What to do about a loss or gradient that is not a finite number.

use serde::{Deserialize, Serialize};

/// Counts skipped steps and gives up after a few in a row. Part of the state of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFinite {
    /// Steps skipped so far.
    pub skipped: u64,
    /// Steps skipped since the last finite one.
    pub in_a_row: u32,
    /// How many in a row end the run.
    pub limit: u32,
}

/// Too many steps in a row whose loss or gradient was not finite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step}: loss or gradient was not finite {in_a_row} steps in a row; the weights are those \
     of the last finite step. Lower lr, lengthen warmup or tighten clip (section train, or \
     tokenizer_train for a tokenizer) and start anew in another folder, from an earlier checkpoint \
     with --init-from"
)]
pub struct NonFiniteError {
    /// The step at which the run gave up.
    pub step: u64,
    /// How many in a row.
    pub in_a_row: u32,
}

impl NonFinite {
    /// Nothing skipped yet; `limit` in a row are too many (`train.non_finite_limit`).
    pub fn new(limit: u32) -> Self {
        Self { skipped: 0, in_a_row: 0, limit }
    }

    /// Notes whether a step was finite; `true` where it was skipped.
    ///
    /// # Errors
    /// [`NonFiniteError`] where it is the last one allowed in a row.
    pub fn note(&mut self, step: u64, finite: bool) -> Result<bool, NonFiniteError> {
        if finite {
            self.in_a_row = 0;
            return Ok(false);
        }
        self.skipped += 1;
        self.in_a_row += 1;
        if self.in_a_row >= self.limit {
            return Err(NonFiniteError { step, in_a_row: self.in_a_row });
        }
        Ok(true)
    }
}
