//! Which parts of an image are drawn anew, pixel by pixel and token by token.

use sar_math::ScaleSchedule;
use sar_math::backend::ShapeError;
use sar_math::resample::area_bin;

/// A part of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    height: usize,
    width: usize,
    /// Whether a pixel is drawn anew, row by row.
    drawn: Vec<bool>,
}

impl Mask {
    /// Creates a mask from pixels `[height, width]`, row by row: `true` where a pixel is drawn anew.
    ///
    /// # Errors
    /// The number of pixels is not `height * width`.
    pub fn new(height: usize, width: usize, drawn_hw: Vec<bool>) -> Result<Self, ShapeError> {
        ShapeError::equal("mask", "pixels (height*width)", height * width, drawn_hw.len())?;
        Ok(Self { height, width, drawn: drawn_hw })
    }

    /// Height and width in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Whether each pixel is drawn anew, row by row.
    pub fn pixels(&self) -> &[bool] {
        &self.drawn
    }

    /// Returns which tokens of a schedule are kept, `[T]`: 1 for these, 0 for the others.
    ///
    /// A token of the last scale, which is decoded, is kept if nothing in its cell is masked; a
    /// token of another scale if at most `share` of its cell is.
    pub fn kept(&self, schedule: &ScaleSchedule, share: f64) -> Vec<u32> {
        let (last, scales) = (schedule.len() - 1, schedule.scales().iter().enumerate());
        let of_scale = |(index, scale): (usize, &sar_math::Scale)| {
            let (height, width) = (scale.height, scale.width);
            let most = if index == last { 0.0 } else { share };
            let cells =
                (0..height).flat_map(move |row| (0..width).map(move |column| (row, column)));
            cells.map(move |(row, column)| {
                let rows = area_bin(self.height, height, row);
                let columns = area_bin(self.width, width, column);
                let size = (rows.len() * columns.len()) as f64;
                let row = |y: usize| &self.drawn[y * self.width..][columns.clone()];
                let drawn = rows.flat_map(row).filter(|drawn| **drawn).count();
                u32::from(drawn as f64 <= most * size)
            })
        };
        scales.flat_map(of_scale).collect()
    }

    /// Puts an image's own pixels `[3, height, width]` back into pictures `[b, 3, height, width]`
    /// where they are not drawn anew.
    pub fn put_back(&self, image_3hw: &[f32], pictures_b3hw: &mut [f32]) {
        let own = image_3hw.iter().cycle().zip(self.drawn.iter().cycle());
        for (value, (own, drawn)) in pictures_b3hw.iter_mut().zip(own) {
            if !drawn {
                *value = *own;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks the columns from `first` on of a square of side 4.
    fn columns_from(first: usize) -> Mask {
        Mask::new(4, 4, (0..16).map(|i| i % 4 >= first).collect()).unwrap()
    }

    #[test]
    fn coarse_tokens_stay_by_share_and_those_that_are_decoded_where_nothing_is_masked() {
        let schedule: ScaleSchedule = "1_2_4".parse().unwrap();
        let last = [1, 1, 1, 0].repeat(4);
        let half = columns_from(3).kept(&schedule, 0.5);
        assert_eq!(half, [&[1, 1, 1, 1, 1][..], &last].concat(), "at most half of any cell");
        let none = columns_from(3).kept(&schedule, 0.0);
        assert_eq!(none, [&[0, 1, 0, 1, 0][..], &last].concat());
        let coarse: ScaleSchedule = "1_2".parse().unwrap();
        assert_eq!(columns_from(3).kept(&coarse, 0.5), [1, 1, 0, 1, 0], "2 is decoded here");
        assert_eq!(columns_from(1).kept(&coarse, 0.5), [0, 0, 0, 0, 0]);
    }

    #[test]
    fn own_pixels_go_back() {
        let mask = Mask::new(1, 3, vec![false, true, false]).unwrap();
        let image = [0.2, 9.0, 0.4, 0.0, 9.0, 0.0, -0.6, 9.0, -0.2];
        let mut pictures = [0.5; 18];
        mask.put_back(&image, &mut pictures);
        let one = [0.2, 0.5, 0.4, 0.0, 0.5, 0.0, -0.6, 0.5, -0.2];
        assert_eq!(pictures, [one, one].concat()[..]);
    }

    #[test]
    fn a_mask_has_all_its_pixels() {
        assert!(Mask::new(2, 3, vec![true; 5]).is_err());
    }
}
