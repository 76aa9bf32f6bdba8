//! Cases: operands and shapes that follow from a seed.

use crate::{Scale, ScaleSchedule};
use alloc::vec::Vec;

/// What a check derives its shapes and operands from.
///
/// The same seed gives the same case everywhere, so a failure is reported by its seed. A fixed
/// table of seeds and a property-testing crate can both drive the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Any number.
    pub seed: u64,
}

impl Case {
    /// The case of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The numbers of one op in this case.
    pub(super) fn numbers(self, op: &str) -> Numbers {
        let stream = op.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Numbers { state: self.seed ^ stream }
    }
}

/// A SplitMix64 stream and what the checks draw from it.
pub(super) struct Numbers {
    state: u64,
}

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number in `low..=high`.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// One chance in two.
    pub(super) fn flip(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// A real in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An approximately normal value, variance 1, within ±3; exact in every storage type.
    pub(super) fn value(&mut self) -> f64 {
        storable(2.0 * (self.unit() + self.unit() + self.unit() - 1.5))
    }

    /// `len` values.
    pub(super) fn values(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `len` ids below `bound`.
    pub(super) fn ids(&mut self, len: usize, bound: usize) -> Vec<u32> {
        (0..len).map(|_| self.between(0, bound - 1) as u32).collect()
    }

    /// One to three scales, square or not, of at most 4×4 tokens each.
    pub(super) fn schedule(&mut self) -> ScaleSchedule {
        let mut scales = alloc::vec![Scale::square(1)];
        let mut last = Scale::square(1);
        for _ in 1..self.between(1, 3) {
            let grown = Scale {
                height: (last.height + self.between(0, 2)).min(4),
                width: (last.width + self.between(0, 2)).min(4),
            };
            if grown != last {
                scales.push(grown);
                last = grown;
            }
        }
        ScaleSchedule::new(&scales).expect("every scale grows over the one before")
    }
}

/// Rounds to the eight significant bits of bfloat16, the narrowest storage a backend may use, so
/// that every backend holds the same operand as the formula.
pub(super) fn storable(value: f64) -> f64 {
    f64::from(f32::from_bits((value as f32).to_bits() & 0xffff_0000))
}

/// The schedule of the mid-size cases: 150 tokens, not all square.
pub(super) fn mid_schedule() -> ScaleSchedule {
    let side = |height, width| Scale { height, width };
    ScaleSchedule::new(&[side(1, 1), side(2, 2), side(4, 5), side(5, 9), side(8, 10)])
        .expect("every scale grows over the one before")
}
