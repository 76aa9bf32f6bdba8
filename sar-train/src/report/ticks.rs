//! Ticks of an axis and their labels.

/// Values whose relative span is below this differ only by rounding.
const FLAT: f64 = 1e-12;
/// Relative rounding by which a step of 1, 2 or 5 times a power of ten may exceed that.
const ROUNDING: f64 = 1e-9;

/// A number axis of a chart, linear or logarithmic.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// Creates an axis over the range of `values` with about `count` ticks at round numbers.
    ///
    /// `log` takes effect only if all values are positive and span at least a factor of 3: a
    /// smaller range needs no logarithm, and would have too few of its ticks. Returns `None` if
    /// there are no values.
    pub(super) fn over(
        values: impl Iterator<Item = f64>,
        count: usize,
        log: bool,
        pad: bool,
    ) -> Option<Self> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            return None;
        }
        if log && low > 0.0 && high / low >= 3.0 {
            let ticks = log_ticks(low, high);
            return Some(Self { low: low / 1.1, high: high * 1.1, log: true, ticks });
        }
        if low == 0.0 && high == 0.0 {
            // Counts, shares and rates are not negative.
            high = 1.0;
        }
        // For a single value, or values that differ only by rounding, the axis extends around them.
        let span = high - low;
        let margin = if span > FLAT * low.abs().max(high.abs()) {
            if pad { 0.06 * span } else { 0.0 }
        } else {
            0.05 * high.abs()
        };
        (low, high) = (low - margin, high + margin);
        let step = nice((high - low) / count.max(1) as f64);
        let ticks = ((low / step).ceil() as i64..=(high / step).floor() as i64)
            .map(|i| i as f64 * step)
            .collect();
        Some(Self { low, high, log: false, ticks })
    }

    /// Returns the position of a value: 0 at the low end, 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Returns values and labels of the ticks.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, String)> + '_ {
        let gap = match self.ticks[..] {
            [first, second, ..] if !self.log => second - first,
            _ => 0.0,
        };
        self.ticks.iter().map(move |t| (*t, label(*t, gap)))
    }

    /// Whether the axis is logarithmic.
    pub(super) fn is_log(&self) -> bool {
        self.log
    }
}

/// Returns the next 1, 2 or 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = match step / power {
        f if f <= 1.0 + ROUNDING => 1.0,
        f if f <= 2.0 + ROUNDING => 2.0,
        f if f <= 5.0 + ROUNDING => 5.0,
        _ => 10.0,
    };
    factor * power
}

/// Returns the powers of ten in a range, and 2 and 5 times them if there are few.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let factors: &[f64] = if (high / low).log10() < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all: Vec<f64> = decades
        .flat_map(|d| factors.iter().map(move |f| f * 10f64.powi(d)))
        .filter(|t| (low / 1.1..=high * 1.1).contains(t))
        .collect();
    // With many decades, at most eight labels are kept.
    let every = all.len().div_ceil(8).max(1);
    all.into_iter().step_by(every).collect()
}

/// Formats a tick's label, `0.25`, `4k`, `1e-4`, with as many digits as the gap between ticks
/// needs.
pub(super) fn label(value: f64, gap: f64) -> String {
    let size = value.abs();
    if size < gap.abs() * 1e-6 || value == 0.0 {
        return "0".into();
    }
    if (1e4..1e7).contains(&size) || size >= 1e3 && (value / 1e3).fract() == 0.0 && size < 1e7 {
        return format!("{}k", trimmed(value / 1e3, 3));
    }
    if !(1e-3..1e7).contains(&size) {
        return format!("{value:.1e}").replace(".0e", "e").replace('-', "−");
    }
    let digits = if gap > 0.0 { (-gap.log10().floor()).max(0.0) as usize } else { 3 };
    trimmed(value, digits.min(6))
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool) -> Vec<String> {
        let axis = Axis::over(values.iter().copied(), 5, log, false).unwrap();
        axis.ticks().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(&[0.0, 4000.0], false), ["0", "1k", "2k", "3k", "4k"]);
        assert_eq!(labels(&[-0.5, 2.0], false), ["−0.5", "0", "0.5", "1", "1.5", "2"]);
        assert_eq!(labels(&[1.49, 1.53], false), ["1.49", "1.5", "1.51", "1.52", "1.53"]);
        assert_eq!(
            labels(&[1e-5, 1e-3], true),
            ["1e−5", "2e−5", "5e−5", "1e−4", "2e−4", "5e−4", "0.001"]
        );
        assert_eq!(labels(&[1.0, 1e6], true).len(), 7);
        // The axis extends around a single value, but not below 0 if that value is 0.
        assert_eq!(labels(&[0.5], false), ["0.48", "0.49", "0.5", "0.51", "0.52"]);
        assert_eq!(labels(&[0.0, 0.0], false), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn odd_ranges_still_make_an_axis() {
        assert!(Axis::over([f64::NAN].into_iter(), 5, false, true).is_none());
        for values in [&[3.0][..], &[0.0], &[-2.0, -2.0], &[0.0, 5.0], &[1e300, 2e300]] {
            let axis = Axis::over(values.iter().copied(), 5, true, true).unwrap();
            assert!(!axis.ticks.is_empty(), "{values:?}");
            for value in values {
                let place = axis.place(*value);
                assert!((0.0..=1.0).contains(&place), "{value} at {place}");
            }
        }
    }
}
