//! From a picture of any size to a square image: the published crops, mirroring and shifting.
//!
//! The random crop draws the length of the short side between the image side and the side divided
//! by 0.88, resizes to it and cuts a random square, which thus covers 88 % to 100 % of the short
//! side. As in the pipelines it follows (guided-diffusion, then FlexVAR), the picture is first
//! halved with a box filter while its short side is at least twice the wanted one, then resized by
//! cubic convolution.

use super::decode::Picture;
use super::resize::{Canvas, Filter, Rows, Window, resample};
use sar_math::philox::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// How a square is cut out of a training picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// A random square of 88 % to 100 % of the short side, as published.
    #[default]
    Random,
    /// The largest square in the middle, as in evaluation.
    Center,
}

/// How training images are cropped and augmented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Augment {
    /// Side of the result, in pixels.
    pub side: usize,
    /// How the square is cut.
    pub crop: Crop,
    /// Mirror every other image.
    pub flip: bool,
    /// Maximum shift in pixels, each way. Pixels shifted in from outside get the colour of the
    /// border (the median of each colour over it).
    pub shift: usize,
}

/// Smallest share of the short side that a random crop keeps.
pub const MIN_CROP_RATIO: f64 = 0.88;

impl Augment {
    /// Returns the keys of `[data]` that say so, as `--set` takes them.
    pub(super) fn settings(&self) -> [String; 4] {
        let Self { side, crop, flip, shift } = self;
        let crop = format!("{crop:?}").to_lowercase();
        [
            format!("data.image_side={side}"),
            format!("data.crop={crop}"),
            format!("data.flip={flip}"),
            format!("data.shift={shift}"),
        ]
    }

    /// Describes in words what is done to training images.
    pub fn described(&self) -> String {
        let mut words = match self.crop {
            Crop::Random => "cut at random".to_owned(),
            Crop::Center => "cut in the middle".to_owned(),
        };
        if self.flip {
            words += ", mirrored half of the time";
        }
        if self.shift > 0 {
            words += &format!(", moved by up to {} px", self.shift);
        }
        format!("training images are {words} (data.crop, data.flip, data.shift)")
    }

    /// Returns what evaluation does: the largest square in the middle, nothing random.
    pub fn evaluation(side: usize) -> Self {
        Self { side, crop: Crop::Center, flip: false, shift: 0 }
    }

    /// Returns one image as evaluation sees it, regardless of the other fields: `[3,side,side]` in
    /// \[−1,1\].
    pub fn evaluate(&self, picture: &Picture) -> Vec<f32> {
        self.evaluate_rows(picture)
    }

    /// Like [`Augment::evaluate`], for any source of rows.
    pub(super) fn evaluate_rows(&self, picture: &dyn Rows) -> Vec<f32> {
        Self::evaluation(self.side).apply(picture, &mut Stream::new(0, Purpose::Augment, 0))
    }

    /// Returns one augmented image, `[3,side,side]` in \[−1,1\].
    pub(super) fn apply(&self, picture: &dyn Rows, draws: &mut Stream) -> Vec<f32> {
        let side = self.side;
        let short = match self.crop {
            Crop::Center => side,
            Crop::Random => {
                let largest = (side as f64 / MIN_CROP_RATIO).ceil() as usize;
                side + draws.below(largest - side + 1)
            }
        };
        let halved = halve(picture, short);
        let source: &dyn Rows = halved.as_ref().map_or(picture, |h| h);
        let full = resized(source.width(), source.height(), short);
        let (spare_x, spare_y) = (full.0.saturating_sub(side), full.1.saturating_sub(side));
        let (x, y) = match self.crop {
            Crop::Center => (spare_x / 2, spare_y / 2),
            Crop::Random => {
                let y = draws.below(spare_y + 1);
                (draws.below(spare_x + 1), y)
            }
        };
        let window = Window { x, y, width: side, height: side };
        let canvas = resample(source, full, window, Filter::Bicubic);
        let flip = self.flip && draws.chance(0.5);
        let dy = draws.below(2 * self.shift + 1) as isize - self.shift as isize;
        let dx = draws.below(2 * self.shift + 1) as isize - self.shift as isize;
        planar(&canvas, flip, dx, dy)
    }
}

/// Halves while the short side is at least twice `short`; `None` if it never is.
fn halve(picture: &dyn Rows, short: usize) -> Option<Canvas> {
    let mut halved: Option<Canvas> = None;
    loop {
        let source: &dyn Rows = halved.as_ref().map_or(picture, |h| h);
        let (width, height) = (source.width(), source.height());
        if width.min(height) < 2 * short {
            return halved;
        }
        let (width, height) = (width / 2, height / 2);
        let window = Window { x: 0, y: 0, width, height };
        halved = Some(resample(source, (width, height), window, Filter::Box));
    }
}

/// Returns width and height after resizing the short side to `short`.
fn resized(width: usize, height: usize, short: usize) -> (usize, usize) {
    let scale = short as f64 / width.min(height) as f64;
    // Ties are rounded to even, as in the language of the published pipelines.
    let length = |n: usize| ((n as f64 * scale).round_ties_even() as usize).max(short);
    (length(width), length(height))
}

/// Mirrors, shifts right by `dx` and down by `dy`, and separates the colours into planes.
fn planar(canvas: &Canvas, flip: bool, dx: isize, dy: isize) -> Vec<f32> {
    let (width, height) = (canvas.width, canvas.height);
    let fill = if (dx, dy) == (0, 0) { [0.0; 3] } else { border(canvas) };
    let from = |n: usize, shift: isize, len: usize| {
        n.checked_add_signed(-shift).filter(|&source| source < len)
    };
    let mut out = vec![0.0; 3 * width * height];
    for (c, plane) in out.chunks_exact_mut(width * height).enumerate() {
        for (y, row) in plane.chunks_exact_mut(width).enumerate() {
            let source_y = from(y, dy, height);
            for (x, value) in row.iter_mut().enumerate() {
                *value = match (from(x, dx, width), source_y) {
                    (Some(sx), Some(sy)) => {
                        let sx = if flip { width - 1 - sx } else { sx };
                        canvas.rgb[(sy * width + sx) * 3 + c]
                    }
                    _ => fill[c],
                };
            }
        }
    }
    out
}

/// Returns the median of each colour over the outermost pixels.
fn border(canvas: &Canvas) -> [f32; 3] {
    let (width, height) = (canvas.width, canvas.height);
    [0, 1, 2].map(|c| {
        let mut values: Vec<f32> = (0..width * height)
            .filter(|i| {
                let (x, y) = (i % width, i / width);
                x == 0 || y == 0 || x + 1 == width || y + 1 == height
            })
            .map(|i| canvas.rgb[i * 3 + c])
            .collect();
        values.sort_by(f32::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::imageops::{FilterType, resize};

    /// f32 rounding errors of levels up to 255.
    const LEVEL: f32 = 1e-4;

    /// 0.5 of an 8-bit step, because the other implementation rounds its result to 8 bits, and a
    /// little more for its rounding between the two directions.
    const EIGHT_BITS: f32 = 1.2 / 127.5;

    fn noise(width: usize, height: usize) -> (Picture, Vec<u8>) {
        let mut draws = Stream::new(7, Purpose::Augment, 0);
        let grey: Vec<u8> = (0..width * height).map(|_| draws.below(256) as u8).collect();
        (Picture::from_grey(width, height, &grey), grey)
    }

    #[test]
    fn bicubic_agrees_with_another_implementation() {
        let (picture, grey) = noise(37, 23);
        let other = image::GrayImage::from_raw(37, 23, grey).unwrap();
        for (w, h) in [(20, 13), (50, 31), (37, 23)] {
            let window = Window { x: 0, y: 0, width: w, height: h };
            let ours = resample(&picture, (w, h), window, Filter::Bicubic);
            let theirs = resize(&other, w as u32, h as u32, FilterType::CatmullRom);
            for (a, b) in ours.rgb.chunks(3).zip(theirs.as_raw()) {
                assert!((a[0] - (f32::from(*b) / 127.5 - 1.0)).abs() <= EIGHT_BITS);
            }
        }
    }

    #[test]
    fn box_halving_is_the_mean_of_four() {
        let picture = Picture::from_grey(4, 2, &[0, 2, 10, 20, 4, 6, 30, 40]);
        let half = halve(&picture, 1).unwrap();
        assert_eq!((half.width, half.height), (2, 1));
        let grey: Vec<f32> = half.rgb.iter().step_by(3).map(|v| (v + 1.0) * 127.5).collect();
        assert!((grey[0] - 3.0).abs() < LEVEL && (grey[1] - 25.0).abs() < LEVEL, "{grey:?}");
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let (picture, _) = noise(40, 30);
        let whole = Window { x: 0, y: 0, width: 21, height: 16 };
        let part = Window { x: 5, y: 3, width: 7, height: 9 };
        let all = resample(&picture, (21, 16), whole, Filter::Bicubic);
        let cut = resample(&picture, (21, 16), part, Filter::Bicubic);
        for y in 0..9 {
            let at = ((y + 3) * 21 + 5) * 3;
            assert_eq!(cut.rgb[y * 21..(y + 1) * 21], all.rgb[at..at + 21]);
        }
    }

    #[test]
    fn flip_and_shift_move_pixels_and_fill_with_the_border() {
        let mut grey = [255u8; 16];
        grey[5] = 0; // row 1, column 1
        let picture = Picture::from_grey(4, 4, &grey);
        let side = Window { x: 0, y: 0, width: 4, height: 4 };
        let canvas = resample(&picture, (4, 4), side, Filter::Bicubic);
        let dark = |out: &[f32]| out.iter().take(16).position(|&v| v < -0.99);
        assert_eq!(dark(&planar(&canvas, false, 0, 0)), Some(5));
        assert_eq!(dark(&planar(&canvas, true, 0, 0)), Some(6));
        assert_eq!(dark(&planar(&canvas, false, 2, 1)), Some(11));
        assert_eq!(dark(&planar(&canvas, false, -1, -1)), Some(0));
        let moved = planar(&canvas, false, 2, 1);
        assert_eq!(moved.iter().filter(|&&v| v > 0.99).count(), 45, "background stays white");
    }

    #[test]
    fn random_crops_stay_inside_and_differ_centre_crops_do_not() {
        let (picture, _) = noise(90, 61);
        let random = Augment { side: 24, crop: Crop::Random, flip: true, shift: 0 };
        let cut = |a: &Augment, i| a.apply(&picture, &mut Stream::new(1, Purpose::Augment, i));
        assert_eq!(cut(&random, 3), cut(&random, 3));
        assert_ne!(cut(&random, 3), cut(&random, 4));
        let center = Augment::evaluation(24);
        assert_eq!(cut(&center, 3), cut(&center, 4));
        assert_eq!(cut(&center, 3).len(), 3 * 24 * 24);
    }

    #[test]
    fn extreme_shapes_are_cut_too() {
        for (w, h) in [(2, 5000), (5000, 2), (2, 2), (3, 7)] {
            let (picture, _) = noise(w, h);
            for crop in [Crop::Random, Crop::Center] {
                let augment = Augment { side: 16, crop, flip: true, shift: 3 };
                let out = augment.apply(&picture, &mut Stream::new(2, Purpose::Augment, 9));
                assert_eq!(out.len(), 3 * 16 * 16);
                assert!(out.iter().all(|v| (-1.0..=1.0).contains(v)));
            }
        }
    }
}
