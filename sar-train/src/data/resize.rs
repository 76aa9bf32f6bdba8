//! Separable resampling of RGB rows, computing only the window that is kept.
//!
//! The published pipelines resize with Pillow, whose filters widen when an image is shrunk; the
//! same taps are computed here, without Pillow's rounding to 8 bits in between.

/// A source of rows of RGB pixels in [−1,1].
pub(super) trait Rows {
    fn width(&self) -> usize;
    fn height(&self) -> usize;
    /// Writes pixels `x0..` of row `y`, interleaved, until `out` is full.
    fn read(&self, y: usize, x0: usize, out: &mut [f32]);
}

/// RGB pixels, interleaved, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) rgb: Vec<f32>,
}

impl Rows for Canvas {
    fn width(&self) -> usize {
        self.width
    }
    fn height(&self) -> usize {
        self.height
    }
    fn read(&self, y: usize, x0: usize, out: &mut [f32]) {
        let start = (y * self.width + x0) * 3;
        out.copy_from_slice(&self.rgb[start..start + out.len()]);
    }
}

/// A rectangle of the resized image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Resampling filters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Filter {
    /// Mean over the covered pixels.
    Box,
    /// Cubic convolution with a=−0.5 (Keys 1981), like Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bicubic => match x.abs() {
                x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                _ => 0.0,
            },
        }
    }
}

/// Resizes `source` to `full` (width, height) and returns the `window` of the result.
///
/// Values are clamped to [−1,1], because cubic convolution overshoots at edges.
pub(super) fn resample(
    source: &dyn Rows,
    full: (usize, usize),
    window: Window,
    filter: Filter,
) -> Canvas {
    let columns = taps(source.width(), full.0, window.x, window.width, filter);
    let rows = taps(source.height(), full.1, window.y, window.height, filter);
    let (x0, x1) = span(&columns);
    let stride = window.width * 3;
    let mut line = vec![0.0f32; (x1 - x0) * 3];
    // Rows of the window's width, only as many as one output row needs: all rows of a photograph
    // would take tens of megabytes of fresh memory.
    let held = rows.iter().map(|tap| tap.weights.len()).max().unwrap_or(1);
    let mut narrow = vec![0.0f32; held * stride];
    let place = |y: usize| (y % held) * stride..(y % held + 1) * stride;
    let mut next = 0;

    let mut rgb = vec![0.0f32; window.height * stride];
    for (tap, out) in rows.iter().zip(rgb.chunks_exact_mut(stride)) {
        let end = tap.start + tap.weights.len();
        for y in tap.start.max(next)..end {
            source.read(y, x0, &mut line);
            narrowed(&columns, x0, &line, &mut narrow[place(y)]);
        }
        next = end;
        for (y, &weight) in (tap.start..).zip(&tap.weights) {
            for (o, &v) in out.iter_mut().zip(&narrow[place(y)]) {
                *o += weight * v;
            }
        }
        out.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
    }
    Canvas { width: window.width, height: window.height, rgb }
}

/// Resizes one row of pixels, given from `x0` on, to the columns of a window.
fn narrowed(columns: &[Tap], x0: usize, line: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (tap, pixel) in columns.iter().zip(out.chunks_exact_mut(3)) {
        for (k, &weight) in tap.weights.iter().enumerate() {
            let at = (tap.start - x0 + k) * 3;
            for c in 0..3 {
                pixel[c] += weight * line[at + c];
            }
        }
    }
}

/// The input pixels that contribute to one output pixel.
struct Tap {
    start: usize,
    weights: Vec<f32>,
}

fn taps(input: usize, output: usize, first: usize, count: usize, filter: Filter) -> Vec<Tap> {
    if input == output {
        return (first..first + count).map(|start| Tap { start, weights: vec![1.0] }).collect();
    }
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let reach = filter.support() * stretch;
    (first..first + count)
        .map(|o| {
            let center = (o as f64 + 0.5) * scale;
            // A cast from a negative float gives 0, which clamps at the left edge.
            let start = ((center - reach + 0.5) as usize).min(input - 1);
            let end = ((center + reach + 0.5) as usize).clamp(start + 1, input);
            let raw: Vec<f64> =
                (start..end).map(|x| filter.at((x as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = raw.iter().sum();
            Tap { start, weights: raw.iter().map(|w| (w / sum) as f32).collect() }
        })
        .collect()
}

fn span(taps: &[Tap]) -> (usize, usize) {
    let start = taps.iter().map(|t| t.start).min().unwrap_or(0);
    let end = taps.iter().map(|t| t.start + t.weights.len()).max().unwrap_or(start);
    (start, end)
}
