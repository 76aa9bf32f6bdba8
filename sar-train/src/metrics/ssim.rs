//! Structural similarity of two images (Wang, Bovik, Sheikh, Simoncelli 2004, equation 13).

/// Side of the window, a Gaussian.
const WINDOW: usize = 11;
/// Standard deviation of the Gaussian, in pixels.
const SIGMA: f64 = 1.5;
/// Peak-to-peak range of a pixel in \[−1,1\].
const RANGE: f64 = 2.0;
/// Prevents 0/0 in the ratio of luminances: (0.01·range)².
const C1: f64 = (0.01 * RANGE) * (0.01 * RANGE);
/// The same for contrasts: (0.03·range)².
const C2: f64 = (0.03 * RANGE) * (0.03 * RANGE);

/// Returns the mean structural similarity of two planes `[height, width]` of pixels in \[−1,1\],
/// over all positions at which an 11×11 Gaussian window lies inside: 1 for equal planes. Returns
/// `None` if the window does not fit, or if the planes are not of this size.
pub fn ssim(a: &[f64], b: &[f64], height: usize, width: usize) -> Option<f64> {
    if height.min(width) < WINDOW || [a, b].iter().any(|plane| plane.len() != height * width) {
        return None;
    }
    let product =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let blur = |plane: &[f64]| blurred(plane, width);
    let (mean_a, mean_b) = (blur(a), blur(b));
    let (aa, bb, ab) = (blur(&product(a, a)), blur(&product(b, b)), blur(&product(a, b)));
    let places = mean_a.len();
    let at = |i: usize| {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
        (2.0 * ma * mb + C1) * (2.0 * cov + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    };
    Some((0..places).map(at).sum::<f64>() / places as f64)
}

/// Returns the weighted sums of a plane under the window, for all positions inside.
fn blurred(plane: &[f64], width: usize) -> Vec<f64> {
    let weights = window();
    let across: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|row| row.windows(WINDOW))
        .map(|part| part.iter().zip(&weights).map(|(v, w)| v * w).sum())
        .collect();
    let narrow = width - WINDOW + 1;
    let places = across.len() - (WINDOW - 1) * narrow;
    let down =
        |at: usize| weights.iter().enumerate().map(|(k, w)| w * across[at + k * narrow]).sum();
    (0..places).map(down).collect()
}

/// Returns the window's weights in one direction; they add up to 1.
fn window() -> [f64; WINDOW] {
    let raw: [f64; WINDOW] = std::array::from_fn(|i| {
        let distance = i as f64 - (WINDOW / 2) as f64;
        (-distance * distance / (2.0 * SIGMA * SIGMA)).exp()
    });
    let sum: f64 = raw.iter().sum();
    raw.map(|weight| weight / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Result of scikit-image 0.26, `structural_similarity` with `gaussian_weights`, σ 1.5, without
    /// sample covariance, data range 2, for the planes below.
    const OTHER: f64 = 0.540361694737442;
    /// A few f64 rounding errors, in another order of summation.
    const ROUNDING: f64 = 1e-12;

    #[test]
    fn another_implementation_finds_the_same() {
        let plane = |f: fn(f64) -> f64| (0..14 * 17).map(|i| f(f64::from(i))).collect::<Vec<_>>();
        let a = plane(|i| (i * 0.37).sin());
        let b = plane(|i| 0.8 * (i * 0.37 + 0.3).sin() + 0.1 * (i * 1.7).cos());
        let found = ssim(&a, &b, 14, 17).unwrap_or(f64::NAN);
        assert!((found - OTHER).abs() < ROUNDING, "{found}");
        assert!((found - ssim(&b, &a, 14, 17).unwrap_or(f64::NAN)).abs() < ROUNDING);
        assert!((ssim(&a, &a, 14, 17).unwrap_or(f64::NAN) - 1.0).abs() < ROUNDING);
    }

    #[test]
    fn the_window_must_fit() {
        let plane = vec![0.5; 121];
        assert_eq!(ssim(&plane, &plane, 11, 11), Some(1.0));
        assert_eq!(ssim(&plane[..110], &plane[..110], 10, 11), None);
        assert_eq!(ssim(&plane, &plane[..120], 11, 11), None);
    }
}
