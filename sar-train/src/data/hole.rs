//! A picture with a part that must not be used.

use super::DataError;
use super::augment::Augment;
use super::decode::Picture;
use super::resize::Rows;

/// Weight of masked pixels in a scaled pixel from which on that pixel counts as masked, too: with
/// less, the filling cannot be seen. (Cubic convolution also has negative weights.)
const TOUCHED: f32 = 0.02;
/// Value of a mask where it is light, 0 elsewhere. Resampled, it cannot leave \[−1,1\], where it
/// would be clamped.
const LIGHT: f32 = 0.5;

/// A picture with a hole, cut as evaluation cuts it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// `[3, side, side]` in \[−1,1\], the hole filled with the mean colour of the rest.
    pub image_3hw: Vec<f32>,
    /// Whether a pixel is in the hole or touched by it, `[side, side]`, row by row.
    pub masked_hw: Vec<bool>,
}

impl Augment {
    /// Cuts the part of a picture that is known, which is where `mask`, an image of the same size,
    /// is dark.
    ///
    /// The hole is filled before the picture is scaled, which mixes neighbours, so that the result
    /// contains nothing of what is under the mask.
    ///
    /// # Errors
    /// [`DataError::Shape`] if the mask has another size.
    pub fn evaluate_known(&self, picture: &Picture, mask: &Picture) -> Result<Known, DataError> {
        let size = |of: &Picture| format!("{}×{}", of.width(), of.height());
        if size(picture) != size(mask) {
            let expected = format!("the image's {} pixels", size(picture));
            return Err(DataError::Shape { what: "mask", expected, found: size(mask) });
        }
        let mask = Light(mask);
        let mean = mean(picture, &mask);
        let image_3hw = self.evaluate_rows(&Filled { picture, mask: &mask, mean });
        let light = self.evaluate_rows(&mask);
        let plane = &light[..light.len() / 3];
        let masked_hw = plane.iter().map(|v| (v / LIGHT).abs() > TOUCHED).collect();
        Ok(Known { image_3hw, masked_hw })
    }
}

/// A mask in two tones: [`LIGHT`] where it is lighter than medium grey, otherwise 0.
struct Light<'a>(&'a Picture);

impl Rows for Light<'_> {
    fn width(&self) -> usize {
        self.0.width()
    }
    fn height(&self) -> usize {
        self.0.height()
    }
    fn read(&self, y: usize, x0: usize, out: &mut [f32]) {
        self.0.read(y, x0, out);
        for pixel in out.chunks_exact_mut(3) {
            let light = pixel.iter().sum::<f32>() > 0.0;
            pixel.fill(if light { LIGHT } else { 0.0 });
        }
    }
}

/// A picture that is replaced by one colour where its mask is light.
struct Filled<'a> {
    picture: &'a Picture,
    mask: &'a Light<'a>,
    mean: [f32; 3],
}

impl Rows for Filled<'_> {
    fn width(&self) -> usize {
        self.picture.width()
    }
    fn height(&self) -> usize {
        self.picture.height()
    }
    fn read(&self, y: usize, x0: usize, out: &mut [f32]) {
        let mut mask = vec![0.0; out.len()];
        self.picture.read(y, x0, out);
        self.mask.read(y, x0, &mut mask);
        for (pixel, mask) in out.chunks_exact_mut(3).zip(mask.chunks_exact(3)) {
            if mask[0] > 0.0 {
                pixel.copy_from_slice(&self.mean);
            }
        }
    }
}

/// Returns the mean colour of the unmasked pixels; grey if all are masked.
fn mean(picture: &Picture, mask: &Light<'_>) -> [f32; 3] {
    let (mut sum, mut count) = ([0.0f64; 3], 0usize);
    let mut row = vec![0.0; 3 * picture.width()];
    let mut light = row.clone();
    for y in 0..picture.height() {
        picture.read(y, 0, &mut row);
        mask.read(y, 0, &mut light);
        let pixels = row.chunks_exact(3).zip(light.chunks_exact(3));
        for (pixel, _) in pixels.filter(|(_, light)| light[0] == 0.0) {
            sum.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += f64::from(*value));
            count += 1;
        }
    }
    sum.map(|sum| (sum / count.max(1) as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 rounding errors in means of two pixels, in each direction, twice.
    const ROUNDING: f32 = 1e-5;

    /// Returns a picture that is `hole` from column 13 of 32 on and `rest` before, and its mask.
    fn pictures(hole: u8, rest: impl Fn(usize) -> u8) -> [Picture; 2] {
        let masked = |i: usize| i % 32 >= 13;
        let grey: Vec<u8> = (0..32 * 24).map(|i| if masked(i) { hole } else { rest(i) }).collect();
        let mask: Vec<u8> = (0..32 * 24).map(|i| if masked(i) { 200 } else { 90 }).collect();
        [&grey, &mask].map(|grey| Picture::from_grey(32, 24, grey))
    }

    #[test]
    fn nothing_of_the_hole_is_seen_at_any_size() {
        for side in [4, 7, 10, 24, 60] {
            let cut = Augment::evaluation(side);
            let known = |hole| {
                let [picture, mask] = pictures(hole, |i| (i * 7) as u8);
                cut.evaluate_known(&picture, &mask).unwrap()
            };
            assert_eq!(known(0), known(255), "side {side}");
        }
    }

    #[test]
    fn known_pixels_are_the_pictures_own() {
        for side in [10, 15, 17, 21, 24, 60] {
            let cut = Augment::evaluation(side);
            let [picture, mask] = pictures(255, |i| (i * 7 % 90) as u8);
            let (known, own) =
                (cut.evaluate_known(&picture, &mask).unwrap(), cut.evaluate(&picture));
            let pixels = known.image_3hw.iter().zip(&own).zip(known.masked_hw.iter().cycle());
            let apart = pixels.filter(|(_, masked)| !**masked).map(|((a, b), _)| (a - b).abs());
            // Pixels of the hole and of its filling differ by at most 2.
            let most = apart.fold(0.0, f32::max);
            assert!(most <= 2.0 * TOUCHED, "side {side}: {most}");
        }
    }

    #[test]
    fn the_hole_has_the_mean_colour_and_touched_pixels_are_masked() {
        let [picture, mask] = pictures(255, |_| 51);
        let known = Augment::evaluation(6).evaluate_known(&picture, &mask).unwrap();
        // The square is 24 of 32 columns, from column 4 on, four per pixel: column 13 lies in the
        // third pixel.
        assert_eq!(known.masked_hw[..6], [false, false, true, true, true, true]);
        assert!(
            known.image_3hw.iter().all(|v| (v + 0.6).abs() < ROUNDING),
            "{:?}",
            known.image_3hw
        );
        let whole = Augment::evaluation(24).evaluate_known(&picture, &mask).unwrap();
        assert_eq!(whole.masked_hw[..24].iter().filter(|masked| !**masked).count(), 9);
        let (dark, light) =
            (Picture::from_grey(4, 4, &[0; 16]), Picture::from_grey(4, 4, &[255; 16]));
        let cut = Augment::evaluation(4);
        assert!(cut.evaluate_known(&dark, &light).unwrap().image_3hw.iter().all(|v| *v == 0.0));
        let known = cut.evaluate_known(&light, &dark).unwrap();
        assert!(known.image_3hw == cut.evaluate(&light) && !known.masked_hw.contains(&true));
        let other = cut.evaluate_known(&picture, &light).unwrap_err().to_string();
        assert!(other.contains("32×24") && other.contains("4×4"), "{other}");
    }
}
