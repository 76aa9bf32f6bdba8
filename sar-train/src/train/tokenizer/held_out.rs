//! Quality on held-out images, while a tokenizer trains and after.

use super::{Reconstructor, TokenizerQuality};
use crate::run::Interrupt;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers};

/// Held-out images, and memory to take them through a tokenizer and back.
pub struct TokenizerHeldOut<'a, B: Buffers> {
    /// Through the tokenizer that is trained, and back.
    pub through: Reconstructor<'a, B>,
    /// What quality is measured on, `[n, 3, h, w]`.
    pub images_b3hw: Vec<B::Host>,
    /// What is shown beside what comes back, likewise.
    pub shown_b3hw: Vec<B::Host>,
    /// Rows and columns of the grids, the last of them the images' full one.
    pub grids: Vec<(usize, usize)>,
}

impl<B: Backend> TokenizerHeldOut<'_, B> {
    /// Quality at every grid; `None` where the user stops it.
    ///
    /// # Errors
    /// As [`Reconstructor::evaluate`].
    pub fn quality(
        &mut self,
        params: &B::Params,
        interrupt: &Interrupt,
    ) -> Result<Option<TokenizerQuality>, B::Error> {
        self.through.evaluate_until(params, &self.images_b3hw, &self.grids, interrupt)
    }

    /// The images to be shown and, after them, what comes back at the full grid, `[2·n, 3, h, w]`.
    ///
    /// # Errors
    /// As [`Reconstructor::evaluate`].
    pub fn compared(&mut self, params: &B::Params) -> Result<Vec<B::Host>, B::Error> {
        let full = self.grids.last().copied().unwrap_or((1, 1));
        let back = self.through.reconstruct(params, &self.shown_b3hw, full)?;
        Ok([&self.shown_b3hw[..], &back].concat())
    }
}

/// The grids of a schedule that latents of `side`×`side` have, the last of them the full one.
pub fn grids_within(schedule: &ScaleSchedule, side: usize) -> Vec<(usize, usize)> {
    let scales = schedule.scales().iter().map(|scale| (scale.height, scale.width));
    scales.filter(|&(h, w)| h.max(w) < side).chain([(side, side)]).collect()
}
