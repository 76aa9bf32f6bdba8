//! Quality on held-out images, while a tokenizer trains and after.

use super::{Reconstructor, TokenizerQuality};
use crate::data::{Dataset, grid, spread};
use crate::run::Interrupt;
use crate::train::TrainError;
use sar_math::ScaleSchedule;
use sar_math::backend::{Backend, Buffers};

/// Largest number of images that quality is measured on.
pub(crate) const MEASURED: usize = 512;
/// Largest number of images that are shown with their reconstructions.
const SHOWN: usize = 20;

/// Held-out images, and memory to take them through a tokenizer and back.
pub struct TokenizerHeldOut<'a, B: Buffers> {
    through: Reconstructor<'a, B>,
    images: &'a Dataset,
    /// Rows and columns of the grids; the last is the images' full grid.
    grids: Vec<(usize, usize)>,
}

impl<'a, B: Backend<Host = f32>> TokenizerHeldOut<'a, B> {
    /// Takes the grids of the schedule that the images have, and their full one. Images are read
    /// when they are needed.
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

    /// Measures quality at every grid on at most 512 images, spread over the set; `None` if the user stops it.
    ///
    /// # Errors
    /// Images cannot be read; an error of the backend.
    pub fn quality(
        &mut self,
        params: &B::Params,
        interrupt: &Interrupt,
    ) -> Result<Option<TokenizerQuality>, TrainError> {
        let mut tally = self.through.tally(&self.grids);
        for chosen in spread(self.images.len(), MEASURED).chunks(self.through.batch()) {
            let images = self.images.select(chosen)?.values_b;
            if !self.through.count(params, &images, &mut tally, interrupt)? {
                return Ok(None);
            }
        }
        Ok(Some(tally.quality()))
    }

    /// Returns a picture of a row of images above their reconstructions at the full grid.
    ///
    /// # Errors
    /// As [`TokenizerHeldOut::quality`].
    pub fn picture(&mut self, params: &B::Params) -> Result<image::RgbImage, TrainError> {
        let full = self.through.full();
        let shown = spread(self.images.len(), SHOWN);
        let mut both = self.images.select(&shown)?.values_b;
        let back = self.through.reconstruct(params, &both, full)?;
        both.extend(back);
        let images = grid::Images::square(&both, self.images.side());
        Ok(grid::grid(images, shown.len().max(1))?)
    }
}
