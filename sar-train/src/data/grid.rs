//! Writes images as PNG: grids, single files and strips over the scales.
//!
//! Pixels go from \[−1,1\] to 0..=255 by `⌊(x+1)/2·255 + 1/2⌋`, clamped; NaN becomes 0. Files
//! appear whole or not at all: they are written under a temporary name and renamed.

use super::DataError;
use crate::files::write_quickly;
use image::{ImageEncoder, Rgb, RgbImage};
use std::path::{Path, PathBuf};

/// Pixels between the images of a grid.
const GAP: usize = 2;
/// Colour between the images: white, like the page of a report.
const PAPER: Rgb<u8> = Rgb([255; 3]);
/// Maximum number of pixels; no viewer opens larger pictures (1.5 GB of RGB).
const MAX_PIXELS: usize = 1 << 29;

/// Images of one size, `[b,3,h,w]` in \[−1,1\].
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The values.
    pub images_b3hw: &'a [f32],
    /// Number of rows of an image.
    pub height: usize,
    /// Number of columns of an image.
    pub width: usize,
}

impl<'a> Images<'a> {
    /// Creates a view of square images.
    pub fn square(images_b3hw: &'a [f32], side: usize) -> Self {
        Self { images_b3hw, height: side, width: side }
    }

    /// Number of images.
    ///
    /// # Errors
    /// [`DataError::Shape`] if the length is not a multiple of `3·height·width` or that is 0.
    pub fn count(&self) -> Result<usize, DataError> {
        let (len, found) = (self.plane() * 3, self.images_b3hw.len());
        if len > 0 && found.is_multiple_of(len) {
            return Ok(found / len);
        }
        Err(DataError::Shape {
            what: "images",
            expected: format!("a multiple of 3·{}·{} values", self.height, self.width),
            found: found.to_string(),
        })
    }

    fn plane(&self) -> usize {
        self.height * self.width
    }

    fn pixel(&self, image: usize, y: usize, x: usize) -> Rgb<u8> {
        let plane = self.plane();
        let at = image * 3 * plane + y * self.width + x;
        Rgb([0, 1, 2].map(|c| to_u8(self.images_b3hw[at + c * plane])))
    }
}

/// Converts one value from \[−1,1\] to 0..=255, rounding half up and clamping.
pub fn to_u8(value: f32) -> u8 {
    // The cast saturates and turns NaN into 0.
    ((value + 1.0) * 0.5 * 255.0 + 0.5).floor() as u8
}

/// Returns the bytes of an image `[3, plane]`, three per pixel.
pub(crate) fn pixels(image: &[f32], plane: usize) -> impl Iterator<Item = u8> {
    (0..plane).flat_map(move |at| [0, 1, 2].map(|c| to_u8(image[c * plane + at])))
}

/// Draws all images, row by row, with `columns` images per row.
///
/// # Errors
/// [`DataError::Shape`].
pub fn grid(images: Images<'_>, columns: usize) -> Result<RgbImage, DataError> {
    let count = images.count()?;
    let columns = columns.clamp(1, count.max(1));
    let mut page = page(count.div_ceil(columns), columns, images.height, images.width)?;
    for i in 0..count {
        let (row, column) = (i / columns, i % columns);
        paste(&mut page, images, i, (row, column), (images.height, images.width));
    }
    Ok(page)
}

/// Draws the images of every scale: a row per image, a column per scale, all enlarged to the
/// largest size by repeating pixels.
///
/// # Errors
/// [`DataError::Shape`] if the scales hold different numbers of images.
pub fn strips(scales: &[Images<'_>]) -> Result<RgbImage, DataError> {
    let counts = scales.iter().map(Images::count).collect::<Result<Vec<_>, _>>()?;
    let count = counts.first().copied().unwrap_or(0);
    if let Some(other) = counts.iter().find(|&&c| c != count) {
        return Err(DataError::Shape {
            what: "strips",
            expected: format!("{count} images at every scale"),
            found: other.to_string(),
        });
    }
    let height = scales.iter().map(|s| s.height).max().unwrap_or(1);
    let width = scales.iter().map(|s| s.width).max().unwrap_or(1);
    let mut page = page(count, scales.len(), height, width)?;
    for (column, &scale) in scales.iter().enumerate() {
        for row in 0..count {
            paste(&mut page, scale, row, (row, column), (height, width));
        }
    }
    Ok(page)
}

/// Encodes a picture as the bytes of a PNG file, as embedded in reports.
///
/// # Errors
/// [`DataError::Shape`] if the picture is empty.
pub fn encode_png(picture: &RgbImage) -> Result<Vec<u8>, DataError> {
    let (width, height) = picture.dimensions();
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(picture.as_raw(), width, height, image::ExtendedColorType::Rgb8)
        .map_err(|e| DataError::Shape {
            what: "PNG",
            expected: "a picture that can be encoded".into(),
            found: format!("{width}×{height} pixels ({e})"),
        })?;
    Ok(bytes)
}

/// Writes a picture as PNG.
///
/// # Errors
/// [`DataError::Io`], which names the file; nothing is left behind.
pub fn save_png(path: &Path, picture: &RgbImage) -> Result<(), DataError> {
    let png = encode_png(picture)?;
    write_quickly(path, &png).map_err(|e| DataError::io(path, "write", &e))
}

/// Writes [`grid`] to a file.
///
/// # Errors
/// [`DataError::Shape`], [`DataError::Io`].
pub fn save_grid(path: &Path, images: Images<'_>, columns: usize) -> Result<(), DataError> {
    save_png(path, &grid(images, columns)?)
}

/// Writes [`strips`] to a file.
///
/// # Errors
/// [`DataError::Shape`], [`DataError::Io`].
pub fn save_strips(path: &Path, scales: &[Images<'_>]) -> Result<(), DataError> {
    save_png(path, &strips(scales)?)
}

/// Writes one file per image, `000012.png` for the image numbered 12, and returns their paths.
///
/// `first` is the number of the first image, so that batches of one run do not overwrite each other.
///
/// # Errors
/// [`DataError::Shape`], [`DataError::Io`].
pub fn save_each(dir: &Path, images: Images<'_>, first: u64) -> Result<Vec<PathBuf>, DataError> {
    std::fs::create_dir_all(dir).map_err(|e| DataError::io(dir, "write", &e))?;
    let len = images.plane() * 3;
    (0..images.count()?)
        .map(|i| {
            let path = dir.join(file_name(first + i as u64));
            let one = &images.images_b3hw[i * len..(i + 1) * len];
            save_png(&path, &grid(Images { images_b3hw: one, ..images }, 1)?)?;
            Ok(path)
        })
        .collect()
}

/// Name of the file of an image by its number.
pub fn file_name(number: u64) -> String {
    format!("{number:06}.png")
}

/// Loads an image that [`save_each`] wrote, `[3, h, w]`, if it exists, is complete and has this
/// size.
///
/// Its values are those that were rounded to 8 bits, so writing it again gives the same file.
pub fn load(dir: &Path, number: u64, (height, width): (usize, usize)) -> Option<Vec<f32>> {
    let picture = image::open(dir.join(file_name(number))).ok()?.to_rgb8();
    let size = (picture.height() as usize, picture.width() as usize);
    let value = |c: usize| picture.pixels().map(move |p| f32::from(p.0[c]) / 127.5 - 1.0);
    (size == (height, width)).then(|| (0..3).flat_map(value).collect())
}

/// Number of rows of images of this height in a picture made by [`strips`] or [`grid`]; `None` if
/// it does not exist or its height does not fit.
pub(crate) fn rows_in(path: &Path, height: usize) -> Option<usize> {
    let (_, found) = image::image_dimensions(path).ok()?;
    let (found, row) = (found as usize + GAP, height + GAP);
    found.is_multiple_of(row).then_some(found / row)
}

fn page(rows: usize, columns: usize, height: usize, width: usize) -> Result<RgbImage, DataError> {
    let extent = |n: usize, size: usize| n.checked_mul(size + GAP).map(|v| v.saturating_sub(GAP));
    let size = extent(columns, width).zip(extent(rows, height));
    let fits =
        size.filter(|(w, h)| w.checked_mul(*h).is_some_and(|n| (1..=MAX_PIXELS).contains(&n)));
    match fits {
        // Both sides are at most MAX_PIXELS, which fits into 32 bits.
        Some((w, h)) => Ok(RgbImage::from_pixel(w as u32, h as u32, PAPER)),
        None => Err(DataError::Shape {
            what: "grid",
            expected: format!("1 to {MAX_PIXELS} pixels"),
            found: format!("{rows} rows and {columns} columns of {width}×{height} pixels"),
        }),
    }
}

/// Draws image `i` into a cell, enlarged to `size` (height, width) by nearest neighbour.
fn paste(
    page: &mut RgbImage,
    images: Images<'_>,
    i: usize,
    (row, column): (usize, usize),
    (height, width): (usize, usize),
) {
    let (top, left) = (row * (height + GAP), column * (width + GAP));
    for y in 0..height {
        for x in 0..width {
            let pixel = images.pixel(i, y * images.height / height, x * images.width / width);
            page.put_pixel((left + x) as u32, (top + y) as u32, pixel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_half_up_and_clamp() {
        assert_eq!([-2.0, -1.0, 1.0, 9.0, f32::NAN].map(to_u8), [0, 0, 255, 255, 0]);
        assert_eq!(to_u8(0.0), 128, "127.5 goes up");
        for v in 0..=255u8 {
            assert_eq!(to_u8(f32::from(v) / 127.5 - 1.0), v, "8-bit values survive");
        }
    }

    #[test]
    fn a_grid_puts_images_where_they_belong() {
        let mut values = vec![-1.0f32; 3 * 3 * 4];
        values[12..16].fill(1.0); // image 1: red
        values[32..36].fill(1.0); // image 2: blue
        let page = grid(Images::square(&values, 2), 2).unwrap();
        assert_eq!(page.dimensions(), (6, 6));
        assert_eq!(page.get_pixel(0, 0).0, [0, 0, 0]);
        assert_eq!(page.get_pixel(5, 1).0, [255, 0, 0]);
        assert_eq!(page.get_pixel(1, 5).0, [0, 0, 255]);
        assert_eq!(page.get_pixel(2, 0).0, [255; 3], "gap");
        assert_eq!(page.get_pixel(5, 5).0, [255; 3], "no fourth image");
    }

    #[test]
    fn strips_enlarge_by_repeating() {
        let small = [-1.0, -1.0, -1.0];
        let large = [1.0f32; 48];
        let scales = [Images::square(&small, 1), Images::square(&large, 4)];
        let page = strips(&scales).unwrap();
        assert_eq!(page.dimensions(), (10, 4));
        assert!((0..4).all(|i| page.get_pixel(i, i).0 == [0; 3]));
        let two = [0.0f32; 6];
        let uneven = [Images::square(&two, 1), Images::square(&large, 4)];
        assert!(matches!(strips(&uneven), Err(DataError::Shape { what: "strips", .. })));
    }

    #[test]
    fn impossible_shapes_are_errors() {
        assert!(grid(Images::square(&[0.0; 5], 2), 1).is_err());
        assert!(grid(Images::square(&[], 2), 1).is_err());
        assert!(grid(Images::square(&[], 0), 1).is_err());
        assert!(strips(&[]).is_err());
    }

    #[test]
    fn files_are_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let values = [0.0f32; 2 * 12];
        let paths = save_each(dir.path(), Images::square(&values, 2), 7).unwrap();
        assert!(paths[0].ends_with("000007.png") && paths[1].ends_with("000008.png"));
        assert_eq!(image::open(&paths[1]).unwrap().to_rgb8().get_pixel(1, 1).0, [128; 3]);
        let loaded = load(dir.path(), 8, (2, 2)).unwrap();
        save_each(dir.path(), Images::square(&loaded, 2), 7).unwrap();
        assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
        assert!(load(dir.path(), 8, (2, 3)).is_none() && load(dir.path(), 9, (2, 2)).is_none());
        // A folder at the path makes the rename fail.
        let blocked = dir.path().join("blocked.png");
        std::fs::create_dir(&blocked).unwrap();
        let error = save_grid(&blocked, Images::square(&values, 2), 2).unwrap_err();
        assert!(error.to_string().contains("blocked.png"), "{error}");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 3, "two images, the folder, no temporary file");
    }
}
