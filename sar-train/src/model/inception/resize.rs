//! Brings images to the size and range that the network takes.

use super::forward::Map;
use rayon::prelude::*;

/// Number of rows and columns that the network takes.
pub(super) const SIDE: usize = 299;

/// Middle of the range of a byte: pixels become `(v − 128)/128`.
const MIDDLE: f32 = 128.0;

/// For each of [`SIDE`] elements, returns the two of n elements it lies between and its position
/// between them.
fn places(n: usize) -> Vec<(usize, usize, f32)> {
    // In f32, as the published graph has it.
    let scale = n as f32 / SIDE as f32;
    (0..SIDE)
        .map(|i| {
            let at = i as f32 * scale;
            let low = (at as usize).min(n - 1);
            (low, (low + 1).min(n - 1), at - low as f32)
        })
        .collect()
}

/// Converts images of bytes, `[b, height, width, 3]`, to the network's input.
///
/// Interpolates bilinearly between elements at multiples of `n/299`, without half-pixel centres and
/// without antialiasing, as in TensorFlow 1, with which the published numbers were measured.
pub(super) fn network_input(images: &[u8], height: usize, width: usize) -> Map {
    let batch = images.len() / (height * width * 3);
    let mut map = Map::new(batch, SIDE, SIDE, 3);
    let (rows, columns) = (places(height), places(width));
    map.values.par_chunks_mut(SIDE * 3).enumerate().for_each(|(line, to)| {
        let (top, bottom, down) = rows[line % SIDE];
        let image = &images[line / SIDE * height * width * 3..];
        let (top, bottom) = (&image[top * width * 3..], &image[bottom * width * 3..]);
        for (to, &(left, right, along)) in to.chunks_exact_mut(3).zip(&columns) {
            for (c, to) in to.iter_mut().enumerate() {
                let between = |a: f32, b: f32, t: f32| a + (b - a) * t;
                let of = |row: &[u8]| {
                    between(f32::from(row[left * 3 + c]), f32::from(row[right * 3 + c]), along)
                };
                *to = (between(of(top), of(bottom), down) - MIDDLE) / MIDDLE;
            }
        }
    });
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_the_networks_size_is_left_as_it_is() {
        let image: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (i * 7 % 256) as u8).collect();
        let map = network_input(&image, SIDE, SIDE);
        let want = image.iter().map(|&v| (f32::from(v) - 128.0) / 128.0);
        assert!(map.values.iter().copied().eq(want));
    }

    #[test]
    fn elements_lie_at_their_corners() {
        // Two rows of one column, black and white: output row 0 is the first, row 75 is
        // interpolated, and beyond the second row there is nothing left to interpolate with.
        let map = network_input(&[0, 0, 0, 255, 255, 255], 2, 1);
        let at = |row: usize| map.values[row * SIDE * 3];
        assert_eq!(at(0), -1.0);
        let middle = 255.0 * 2.0 * 75.0 / 299.0;
        assert!((at(75) - (middle - 128.0) / 128.0).abs() < 1e-5, "{}", at(75));
        assert_eq!(at(298), 127.0 / 128.0);
    }
}
