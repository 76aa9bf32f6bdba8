//! Quality on held-out images, while a tokenizer trains and after.

use super::{Reconstructor, TokenizerQuality};
use crate::data::{Dataset, grid, spread};
use crate::run::Interrupt;
use crate::train::TrainError;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers};

/// Images that quality is measured on, at most.
pub(crate) const MEASURED: usize = 512;
/// Images that are shown beside what comes back, at most.
const SHOWN: usize = 20;

/// Held-out images, and memory to take them through a tokenizer and back.
pub struct TokenizerHeldOut<'a, B: Buffers> {
    through: Reconstructor<'a, B>,
    images: &'a Dataset,
    /// Rows and columns of the grids, the last of them the images' full one.
    grids: Vec<(usize, usize)>,
}

impl<'a, B: Backend<Host = f32>> TokenizerHeldOut<'a, B> {
    /// Images, read when they are needed, at the grids of a schedule that they have and at their full one.
    pub fn new(
        through: Reconstructor<'a, B>,
        images: &'a Dataset,
        schedule: &ScaleSchedule,
    ) -> Self {
        let (rows, columns) = through.full();
        let scales = schedule.scales().iter().map(|scale| (scale.height, scale.width));
        let within =
            scales.filter(|&(h, w)| h <= rows && w <= columns && (h, w) != (rows, columns));
        let grids = within.chain([(rows, columns)]).collect();
        Self { through, images, grids }
    }

    /// Quality at every grid, of 512 images at most, spread over the set; `None` where the user stops it.
    ///
    /// # Errors
    /// Images that cannot be read; the backend's.
    pub fn quality(
        &mut self,
        params: &B::Params,
        interrupt: &Interrupt,
    ) -> Result<Option<TokenizerQuality>, TrainError> {
        let mut tally = self.through.tally(&self.grids);
        for chosen in spread(self.images.len(), MEASURED).chunks(self.through.batch()) {
            let images = self.images.select(chosen)?.values_b;
            let counted = self.through.count(params, &images, &mut tally, interrupt);
            if !counted.map_err(TrainError::backend)? {
                return Ok(None);
            }
        }
        Ok(Some(tally.quality()))
    }

    /// A row of images above what comes back of them at the full grid.
    ///
    /// # Errors
    /// As [`TokenizerHeldOut::quality`].
    pub fn picture(&mut self, params: &B::Params) -> Result<image::RgbImage, TrainError> {
        let full = self.through.full();
        let shown = spread(self.images.len(), SHOWN);
        let mut both = self.images.select(&shown)?.values_b;
        let back = self.through.reconstruct(params, &both, full).map_err(TrainError::backend)?;
        both.extend(back);
        let images = grid::Images::square(&both, self.images.side());
        Ok(grid::grid(images, shown.len().max(1))?)
    }
}
