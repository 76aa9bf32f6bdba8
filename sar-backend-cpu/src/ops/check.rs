//! Gradients against central differences, for the tests of the ops.

/// A small generator of test values (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn value(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Values in [−1, 1).
    pub(crate) fn values(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// Step of the difference: its truncation error (1e-8 of the third derivative) and the rounding of
/// f64 (1e-12) both stay below the tolerance.
const STEP: f64 = 1e-4;
const TOLERANCE: f64 = 2e-6;

/// Asserts that `gradient` is that of `⟨dy, f(at)⟩`.
#[track_caller]
pub(crate) fn central_difference(
    what: &str,
    at: &[f64],
    gradient: &[f64],
    dy: &[f64],
    f: impl Fn(&[f64]) -> Vec<f64>,
) {
    assert_eq!(at.len(), gradient.len(), "{what}");
    let mut x = at.to_vec();
    let largest = gradient.iter().fold(1.0f64, |m, g| m.max(g.abs()));
    for i in 0..x.len() {
        let mut side = |step: f64| {
            x[i] = at[i] + step;
            let y = f(&x);
            x[i] = at[i];
            y.iter().zip(dy).map(|(y, d)| y * d).sum::<f64>()
        };
        let slope = (side(STEP) - side(-STEP)) / (2.0 * STEP);
        let difference = (slope - gradient[i]).abs();
        assert!(difference <= TOLERANCE * largest, "{what}[{i}]: {} against {slope}", gradient[i]);
    }
}
