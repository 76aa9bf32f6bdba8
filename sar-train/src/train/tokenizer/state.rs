//! What a resumed run needs to go on bit for bit.

use super::{TokenizerReplica, TokenizerTrainer};
use num_traits::Zero;
use sar_math::backend::{OptimizerOps, ShapeError, TokenizerOps};
use serde::{Deserialize, Serialize};

/// State of training, in addition to the parameters and their moments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerProgress {
    /// Steps taken, skipped ones included.
    pub step: u64,
    /// Steps whose gradient was not finite.
    pub skipped: u64,
    /// Number of skipped steps in a row, up to the latest step.
    #[serde(default)]
    pub skipped_in_a_row: u32,
    /// For every code, the number of steps since it was last used.
    pub unused: Vec<u32>,
}

impl TokenizerProgress {
    pub(super) fn new(vocab: usize) -> Self {
        // As if never used, so that the first batch places every code that it does not use.
        Self { step: 0, skipped: 0, skipped_in_a_row: 0, unused: vec![u32::MAX; vocab] }
    }

    pub(super) fn count<'i>(&mut self, ids: impl Iterator<Item = &'i u32>) {
        for unused in &mut self.unused {
            *unused = unused.saturating_add(1);
        }
        for &id in ids {
            if let Some(unused) = self.unused.get_mut(id as usize) {
                *unused = 0;
            }
        }
    }
}

impl<B: TokenizerOps + OptimizerOps> TokenizerTrainer<'_, B> {
    /// The parameters, in the order of the tokenizer's layout.
    ///
    /// # Errors
    /// A device fault; likewise below.
    pub fn weights(&self) -> Result<Vec<B::Host>, B::Error> {
        let mut values = vec![B::Host::zero(); self.replica.tokenizer.layout().len()];
        self.replica.backend.download_params(&self.replica.params, 0, &mut values)?;
        Ok(values)
    }

    /// First and second moments, in the same order.
    ///
    /// # Errors
    /// As [`TokenizerTrainer::weights`].
    pub fn moments(&self) -> Result<[Vec<B::Host>; 2], B::Error> {
        self.optimizer.moments(self.replica.backend)
    }

    /// Names the tensors whose gradient was not finite in the last step, or its norm if each of them was.
    pub(super) fn not_finite(&self) -> Result<String, B::Error> {
        let TokenizerReplica { backend, tokenizer, grads, .. } = &self.replica;
        self.optimizer.not_finite(*backend, tokenizer.layout(), grads)
    }

    /// Steps and use of the codes.
    pub fn progress(&self) -> &TokenizerProgress {
        &self.progress
    }

    /// Starts from the weights of another training run, at step 0 and with moments of zero.
    ///
    /// # Errors
    /// A shape error if they are of another tokenizer; nothing is changed then.
    pub fn start_from(&mut self, weights: &[B::Host]) -> Result<(), B::Error> {
        let zeros = vec![B::Host::zero(); self.replica.tokenizer.layout().len()];
        let progress = TokenizerProgress::new(self.replica.tokenizer.config().vocab);
        self.restore(weights, [&zeros, &zeros], &progress)
    }

    /// Continues from what [`TokenizerTrainer::weights`], [`TokenizerTrainer::moments`] and
    /// [`TokenizerTrainer::progress`] gave; the steps that follow are the same to the bit.
    ///
    /// # Errors
    /// A shape error if they are of another tokenizer; nothing is changed then.
    pub fn restore(
        &mut self,
        weights: &[B::Host],
        moments: [&[B::Host]; 2],
        progress: &TokenizerProgress,
    ) -> Result<(), B::Error> {
        const OP: &str = "tokenizer restore";
        let len = self.replica.tokenizer.layout().len();
        ShapeError::equal(OP, "weights", len, weights.len())?;
        ShapeError::equal(OP, "first moment", len, moments[0].len())?;
        ShapeError::equal(OP, "second moment", len, moments[1].len())?;
        ShapeError::equal(
            OP,
            "codes",
            self.replica.tokenizer.config().vocab,
            progress.unused.len(),
        )?;
        ShapeError::at_least(OP, "steps", progress.skipped as usize, progress.step as usize)?;
        self.replica.backend.upload_params(weights, &mut self.replica.params, 0)?;
        self.optimizer.set_moments(self.replica.backend, moments, 0)?;
        self.progress.clone_from(progress);
        Ok(())
    }
}
