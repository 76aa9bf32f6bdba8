//! Training a tokenizer: reconstruction, codebook and commitment losses at random scales.
//!
//! One step: encode; with some probability area-downsample the latent to a smaller grid (so that
//! coarse maps of codes decode too); quantise; decode at that grid's own size; compare with the image
//! area-resized to it. The gradient passes the quantiser straight through.

mod evaluate;
mod held_out;
mod record;
mod replica;
mod session;
mod state;
mod tally;

pub use evaluate::Reconstructor;
pub(crate) use held_out::MEASURED;
pub use held_out::TokenizerHeldOut;
pub(crate) use record::keep_quality;
use replica::latent;
pub use replica::{Images, PartFound, TokenizerReplica};
pub use session::TokenizerSession;
pub use state::TokenizerProgress;
pub use tally::{ScaleQuality, TokenizerQuality};

use super::TrainError;
use super::ranks::{OtherRanks, check_ranks, share};
use super::trainer::expect_length;
use crate::config::TokenizerTrainConfig;
use crate::model::tokenizer::{Tokenizer, normalise};
use crate::optimizer::Optimizer;
use num_traits::Zero;
use sar_math::anneal::Anneal;
use sar_math::backend::{AdamW, Buffers, OptimizerOps, TokenizerOps};
use sar_math::philox::{Purpose, Stream};

/// What one step measured, before its update: means over its micro-batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenizerLosses {
    /// Mean squared error of the pixels, at the step's scale.
    pub reconstruction: f64,
    /// Mean squared distance of normalised latents to their codes.
    pub quantization: f64,
    /// Global gradient norm, before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Rows and columns of the code map that was decoded.
    pub grid: (usize, usize),
    /// Codes put to new places because nothing had used them.
    pub revived: usize,
    /// Whether the gradient was not finite, and so nothing was changed.
    pub skipped: bool,
}

/// The other ranks of a tokenizer's run.
pub type Others<'a, B> = Box<dyn OtherRanks<B, Vec<PartFound<<B as Buffers>::Host>>> + 'a>;

/// A tokenizer in training: parameters, moments, and memory allocated once.
pub struct TokenizerTrainer<'a, B: Buffers> {
    replica: TokenizerReplica<'a, B>,
    anneal: Anneal,
    optimizer: Optimizer<B>,
    progress: TokenizerProgress,
    others: Option<Others<'a, B>>,
}

impl<'a, B: TokenizerOps + OptimizerOps> TokenizerTrainer<'a, B> {
    /// A trainer of new parameters for images of `height`×`width`.
    ///
    /// # Errors
    /// Shape, where the downsampling does not divide the sides; out of memory.
    pub fn new(
        backend: &'a B,
        tokenizer: &'a Tokenizer,
        config: &TokenizerTrainConfig,
        size: (usize, usize),
    ) -> Result<Self, B::Error> {
        let mut replica = TokenizerReplica::new(backend, tokenizer, config, size)?;
        replica.set_weights(&tokenizer.initial(config.seed))?;
        Ok(Self {
            replica,
            anneal: config.anneal(),
            optimizer: Optimizer::new(backend, tokenizer.layout())?,
            progress: TokenizerProgress::new(tokenizer.config().vocab),
            others: None,
        })
    }

    /// Shares the micro-batches of every step from now on with other ranks. The images given to
    /// [`TokenizerTrainer::step`] are then those of rank 0's [`share`] alone.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if there are more ranks than micro-batches.
    pub fn share_with(&mut self, others: Others<'a, B>) -> Result<(), TrainError> {
        check_ranks(others.ranks(), self.replica.config.accumulate)?;
        self.others = Some(others);
        Ok(())
    }

    /// Makes one optimiser step on the next `accumulate` batches of `images`, each of at most the configured size.
    ///
    /// If the gradient is not finite, nothing but the counts of steps changes.
    ///
    /// # Errors
    /// The images'; a shape error, if they are not whole ones, or too many; a device fault; those of other ranks.
    pub fn step(
        &mut self,
        images: &mut Images<'_, B::Host>,
    ) -> Result<TokenizerLosses, TrainError> {
        let (backend, step) = (self.replica.backend, self.progress.step);
        let ranks = self.others.as_ref().map_or(1, |others| others.ranks());
        if let Some(others) = &mut self.others {
            others.begin(backend, step, &self.replica.params)?;
        }
        let share = share(self.replica.config.accumulate, 0, ranks);
        self.replica.gradients(step, share, images)?;
        let mut theirs = Vec::new();
        if let Some(others) = &mut self.others {
            theirs = others.add_gradients(backend, &mut self.replica.grads)?.concat();
            let channels = self.replica.tokenizer.config().latent_channels;
            for part in &theirs {
                let expected = channels * part.ids.len();
                expect_length("latents of a rank", expected, part.latents.len())?;
            }
        }
        Ok(self.update(theirs)?)
    }

    /// Makes the optimiser's step, and puts codes that nothing used to new places. `theirs` is what the other ranks'
    /// micro-batches show.
    fn update(&mut self, theirs: Vec<PartFound<B::Host>>) -> Result<TokenizerLosses, B::Error> {
        let (lr, grad_norm) = self.descend()?;
        let mut found = self.replica.found()?;
        found.extend(theirs);
        let skipped = !grad_norm.is_finite();
        let revived = if skipped { 0 } else { self.revive(&mut found)? };
        let grid = self.replica.grid(self.progress.step);
        self.progress.step += 1;
        self.progress.skipped += u64::from(skipped);
        self.progress.skipped_in_a_row =
            if skipped { self.progress.skipped_in_a_row.saturating_add(1) } else { 0 };
        let mean = |of: fn(&PartFound<B::Host>) -> f64| {
            found.iter().map(of).sum::<f64>() / found.len() as f64
        };
        let (reconstruction, quantization) =
            (mean(|part| part.reconstruction), mean(|part| part.quantization));
        Ok(TokenizerLosses { reconstruction, quantization, grad_norm, lr, grid, revived, skipped })
    }

    /// Makes AdamW's step, unless the gradient is not finite; returns the learning rate and the gradient's norm.
    fn descend(&mut self) -> Result<(f64, f64), B::Error> {
        let TokenizerReplica { backend, config, grads, params, .. } = &mut self.replica;
        let hyper = AdamW {
            lr: self.anneal.learning_rate(self.progress.step),
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay: config.weight_decay,
            step: self.progress.step - self.progress.skipped + 1,
            clip: config.clip,
        };
        self.optimizer.step(backend, &hyper, grads, params)?;
        Ok((hyper.lr, self.optimizer.norm(backend)?))
    }

    /// Counts the codes of this step; those unused for too long are put on latents of its images,
    /// chosen by the seed and the step. Returns how many.
    fn revive(&mut self, found: &mut [PartFound<B::Host>]) -> Result<usize, B::Error> {
        self.progress.count(found.iter().flat_map(|part| &part.ids));
        let after = self.replica.config.revive_after;
        if after == 0 || !self.progress.unused.iter().any(|&n| n >= after) {
            return Ok(0);
        }
        self.replica.read_latents(found)?;
        let TokenizerReplica { backend, config, tokenizer, params, .. } = &mut self.replica;
        let unused = &mut self.progress.unused;
        let positions = found.iter().map(|part| part.ids.len()).sum();
        let mut stream = Stream::new(config.seed, Purpose::Codebook, self.progress.step);
        let k = tokenizer.config().latent_channels;
        let (mut row, zeros) = (vec![B::Host::zero(); k], vec![B::Host::zero(); k]);
        let mut revived = 0;
        for (code, unused) in unused.iter_mut().enumerate() {
            if *unused < after {
                continue;
            }
            latent(found, stream.below(positions), &mut row);
            normalise(&mut row);
            let at = tokenizer.codebook().offset + code * k;
            backend.upload_params(&row, params, at)?;
            self.optimizer.set_moments(backend, [&zeros, &zeros], at)?;
            *unused = 0;
            revived += 1;
        }
        Ok(revived)
    }

    /// The parameters on the backend, for encoding and decoding.
    pub fn params(&self) -> &B::Params {
        &self.replica.params
    }

    /// Steps taken, skipped ones included.
    pub fn steps(&self) -> u64 {
        self.progress.step
    }

    /// Settings.
    pub fn config(&self) -> &TokenizerTrainConfig {
        &self.replica.config
    }
}

#[cfg(test)]
mod tests;
