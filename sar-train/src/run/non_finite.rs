//! Handling of losses and gradients that are not finite.

use serde::{Deserialize, Serialize};

/// Counts skipped steps and gives up after too many in a row. Part of the state of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFinite {
    /// Number of steps skipped so far.
    pub skipped: u64,
    /// Number of steps skipped since the last finite one.
    pub in_a_row: u32,
    /// Number of skipped steps in a row that ends the run.
    pub limit: u32,
}

/// Too many steps in a row with a loss or gradient that is not finite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {step}: loss or gradient was not finite {in_a_row} steps in a row; nothing was saved after the last \
     checkpoint. Lower lr, lengthen warmup or tighten clip (section train, or tokenizer_train for a tokenizer) and \
     start anew in another folder, from an earlier checkpoint with --init-from"
)]
pub struct NonFiniteError {
    /// The step at which the run gave up.
    pub step: u64,
    /// Number of such steps in a row.
    pub in_a_row: u32,
}

impl NonFinite {
    /// Creates a counter with nothing skipped yet; `limit` steps in a row are too many
    /// (`train.non_finite_limit`).
    pub fn new(limit: u32) -> Self {
        Self { skipped: 0, in_a_row: 0, limit }
    }

    /// Records whether a step was finite; returns `true` if it was skipped.
    ///
    /// # Errors
    /// [`NonFiniteError`] if `limit` steps in a row have been skipped.
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
