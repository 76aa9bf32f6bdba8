//! Counts over images that went through a tokenizer, and the quality that follows from them.

use crate::metrics::ssim;
use sar_math::Real;

/// Reconstruction at one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleQuality {
    /// Rows and columns of the code map.
    pub grid: (usize, usize),
    /// Peak signal to noise ratio in dB against the image area-resized to the decoded size, of
    /// pixels in [−1, 1]: `10·log10(4/mse)`; infinite where they are equal.
    pub psnr: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Structural similarity with the same image, the mean over colours and images; `None` for
    /// images smaller than its window ([`crate::metrics::ssim`]).
    pub ssim: Option<f64>,
    /// Fraction of the codebook that was used at this scale.
    pub codebook_used: f64,
}

/// Quality over a set of images.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerQuality {
    /// Quality of each scale, in the order asked for.
    pub scales: Vec<ScaleQuality>,
    /// Fraction of the codebook that was used at any scale.
    pub codebook_used: f64,
    /// Perplexity of the codes' frequencies: the number of codes that would have the same entropy
    /// if all were used equally.
    pub perplexity: f64,
}

/// The peak-to-peak range of a pixel is 2, so its square is 4.
const PEAK_SQUARED: f64 = 4.0;

/// Counts over images at every scale.
pub(super) struct Tally {
    scales: Vec<ScaleTally>,
}

struct ScaleTally {
    grid: (usize, usize),
    /// Rows and columns of a decoded image.
    size: (usize, usize),
    squared_error: f64,
    similarity: Option<f64>,
    planes: usize,
    /// How often each code was used.
    counts: Vec<u64>,
}

impl ScaleTally {
    fn new(grid: (usize, usize), size: (usize, usize), vocab: usize) -> Self {
        let counts = vec![0; vocab];
        Self { grid, size, squared_error: 0.0, similarity: Some(0.0), planes: 0, counts }
    }

    fn add<T: Real>(&mut self, images: &[T], targets: &[T], ids: &[u32]) {
        let (height, width) = self.size;
        let wide =
            |plane: &[T]| -> Vec<f64> { plane.iter().map(|v| v.wide().clamp(-1.0, 1.0)).collect() };
        for (x, t) in images.chunks(height * width).zip(targets.chunks(height * width)) {
            let (x, t) = (wide(x), wide(t));
            self.squared_error += x.iter().zip(&t).map(|(x, t)| (x - t) * (x - t)).sum::<f64>();
            let similar = ssim(&x, &t, height, width);
            self.similarity = self.similarity.zip(similar).map(|(sum, one)| sum + one);
            self.planes += 1;
        }
        ids.iter().for_each(|&id| self.counts[id as usize] += 1);
    }

    fn quality(&self) -> ScaleQuality {
        let mse = self.squared_error / (self.planes * self.size.0 * self.size.1).max(1) as f64;
        let seen = self.similarity.filter(|_| self.planes > 0);
        ScaleQuality {
            grid: self.grid,
            psnr: 10.0 * (PEAK_SQUARED / mse).log10(),
            mse,
            ssim: seen.map(|sum| sum / self.planes as f64),
            codebook_used: used(&self.counts),
        }
    }
}

impl Tally {
    /// Creates a tally for grids, each with the size of its decoded images, and `vocab` codes.
    pub(super) fn new(
        scales: impl Iterator<Item = ((usize, usize), (usize, usize))>,
        vocab: usize,
    ) -> Self {
        Self { scales: scales.map(|(grid, size)| ScaleTally::new(grid, size, vocab)).collect() }
    }

    pub(super) fn grids(&self) -> Vec<(usize, usize)> {
        self.scales.iter().map(|scale| scale.grid).collect()
    }

    /// Adds images as reconstructed at scale number `scale`, the originals, and their codes there.
    pub(super) fn add<T: Real>(&mut self, scale: usize, images: &[T], targets: &[T], ids: &[u32]) {
        self.scales[scale].add(images, targets, ids);
    }

    pub(super) fn quality(&self) -> TokenizerQuality {
        let vocab = self.scales.first().map_or(0, |scale| scale.counts.len());
        let mut counts = vec![0u64; vocab];
        for scale in &self.scales {
            counts.iter_mut().zip(&scale.counts).for_each(|(all, n)| *all += n);
        }
        let total: u64 = counts.iter().sum();
        let entropy: f64 = counts
            .iter()
            .filter(|&&n| n > 0)
            .map(|&n| n as f64 / total as f64)
            .map(|p| -p * p.ln())
            .sum();
        TokenizerQuality {
            scales: self.scales.iter().map(ScaleTally::quality).collect(),
            codebook_used: used(&counts),
            perplexity: entropy.exp(),
        }
    }
}

/// Returns the fraction of counts that are not 0.
fn used(counts: &[u64]) -> f64 {
    counts.iter().filter(|&&n| n > 0).count() as f64 / counts.len().max(1) as f64
}
