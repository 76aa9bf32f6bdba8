//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011).
//!
//! A number is a function of what it is for, not of what was drawn before it. Tokens are keyed by
//! (seed, image, scale, token) through [`token_uniform`], so a draw does not depend on batch, thread
//! or machine; everything else takes a [`Stream`]. The two never share a block: the top bit of the
//! second counter word is 0 for tokens and 1 for streams.
//!
//! | counter word | tokens | streams |
//! | --- | --- | --- |
//! | 0 | token | block within the stream |
//! | 1 | scale (below 2³¹) | 2³¹ + purpose |
//! | 2, 3 | image, low and high half | index, low and high half |
//!
//! The key is the seed, low and high half.

use num_traits::Float;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Golden ratio and √3−1, the Weyl increments of the key.
const INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const STREAM_BIT: u32 = 1 << 31;

/// One block of four random words from a counter and a key.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(INCREMENTS[0]), k[1].wrapping_add(INCREMENTS[1])];
    }
    c
}

const fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Two words, low and high, as a number in [0, 1): the top 53 of their 64 bits.
#[inline]
fn unit_f64(low: u32, high: u32) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    (((u64::from(high) << 32) | u64::from(low)) >> 11) as f64 * STEP
}

/// The uniform in [0, 1) that chooses a token: token `token` of scale `scale` (both from 0, the token
/// within its scale) of image `image`, in steps of 2⁻⁵³.
///
/// ```
/// use sar_math::philox::token_uniform;
/// let u = token_uniform(7, 0, 3, 5);
/// assert!((0.0..1.0).contains(&u));
/// assert_ne!(u, token_uniform(7, 1, 3, 5));
/// ```
#[inline]
pub fn token_uniform(seed: u64, image: u64, scale: u32, token: u32) -> f64 {
    let [low, high] = halves(image);
    let block = philox4x32_10([token, scale & !STREAM_BIT, low, high], halves(seed));
    unit_f64(block[0], block[1])
}

/// What a [`Stream`] is for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Purpose {
    /// Initial weights; index by tensor.
    Init = 1,
    /// Order of the training images; index by epoch.
    Shuffle = 2,
    /// Crops and flips; index by sample number.
    Augment = 3,
    /// Which labels become the unconditional class; index by step.
    ClassDropout = 4,
    /// Which samples skip a branch; index by step.
    DropPath = 5,
    /// Random training schedules; index by step.
    Schedule = 6,
    /// Which transition a random rollout extent trains; index by step.
    Transition = 7,
    /// Seeds of the rollouts' token draws; index by step.
    Rollout = 8,
    /// Where dead codebook rows are put; index by step.
    Codebook = 9,
    /// Subsets and labels for evaluation.
    Evaluation = 10,
    /// Anything in tests and examples.
    Test = 11,
    /// What a program that embeds this crate needs beside these, by whatever index.
    Own = 12,
}

/// A sequence of random numbers for one purpose and index, the same wherever it is drawn.
///
/// ```
/// use sar_math::philox::{Purpose, Stream};
/// let mut order = [0, 1, 2, 3, 4];
/// Stream::new(42, Purpose::Shuffle, 0).shuffle(&mut order);
/// let mut again = [0, 1, 2, 3, 4];
/// Stream::new(42, Purpose::Shuffle, 0).shuffle(&mut again);
/// assert_eq!(order, again);
/// ```
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    /// Counter of the next block.
    counter: [u32; 4],
    block: [u32; 4],
    /// Words of `block` already given; 4 where it is spent.
    given: usize,
}

impl Stream {
    /// The stream of a seed, a purpose and an index (a step, an epoch, a tensor).
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        let [low, high] = halves(index);
        Self {
            key: halves(seed),
            counter: [0, STREAM_BIT | purpose as u32, low, high],
            block: [0; 4],
            given: 4,
        }
    }

    /// The next 32 random bits. A stream repeats after 2³⁴ of these.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        if self.given == 4 {
            self.block = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.given = 0;
        }
        let word = self.block[self.given];
        self.given += 1;
        word
    }

    /// The next 64 random bits, low word first.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        let low = self.next_u32();
        u64::from(low) | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in [0, 1), in steps of 2⁻⁵³.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        let low = self.next_u32();
        unit_f64(low, self.next_u32())
    }

    /// Uniform in [0, 1), in steps of 2⁻²⁴: exact in f32.
    #[inline]
    pub fn uniform_f32(&mut self) -> f32 {
        const STEP: f32 = 1.0 / (1u32 << 24) as f32;
        (self.next_u32() >> 8) as f32 * STEP
    }

    /// Uniform in `0..bound` without bias (Lemire 2019: rejects the few words that would favour
    /// some values); 0 where the bound is 0.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        if bound == 0 {
            return 0;
        }
        let unfair = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if wide as u64 >= unfair {
                return (wide >> 64) as usize;
            }
        }
    }

    /// True with probability `p`.
    #[inline]
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal, by Box and Muller's transform of two uniforms.
    pub fn normal(&mut self) -> f64 {
        // 1 − u lies in (0, 1], where the logarithm is finite.
        let radius = Float::sqrt(-2.0 * Float::ln(1.0 - self.uniform()));
        radius * Float::cos(core::f64::consts::TAU * self.uniform())
    }

    /// Normal of standard deviation `sigma`, truncated to [−2, 2] *absolute* (not ±2σ), as
    /// `torch.nn.init.trunc_normal_` does by default. `sigma` 0 gives 0.
    ///
    /// Redraws what falls outside, so it needs σ of the order of 1 or less; published ones are ≤ 0.1.
    pub fn truncated_normal(&mut self, sigma: f64) -> f64 {
        loop {
            let x = sigma * self.normal();
            // A σ that is not finite would never be accepted; it comes back as it is.
            if x.abs() <= 2.0 || !sigma.is_finite() {
                return x;
            }
        }
    }

    /// Puts a slice in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Known answers published with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn published_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    /// Standard error of the mean of n uniforms is 0.29/√n; five of them must not be exceeded.
    #[test]
    fn moments_are_those_of_the_distributions() {
        const N: usize = 100_000;
        let mut s = Stream::new(1, Purpose::Test, 0);
        let uniforms: Vec<f64> = (0..N).map(|_| s.uniform()).collect();
        let normals: Vec<f64> = (0..N).map(|_| s.normal()).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / N as f64;
        assert!((mean(&uniforms) - 0.5).abs() < 5.0 * 0.29 / (N as f64).sqrt());
        assert!(mean(&normals).abs() < 5.0 / (N as f64).sqrt());
        let square: Vec<f64> = normals.iter().map(|x| x * x).collect();
        assert!((mean(&square) - 1.0).abs() < 5.0 * 2f64.sqrt() / (N as f64).sqrt());
    }

    #[test]
    fn truncation_is_absolute() {
        let mut s = Stream::new(2, Purpose::Test, 0);
        let wide: Vec<f64> = (0..10_000).map(|_| s.truncated_normal(1.0)).collect();
        assert!(wide.iter().all(|x| x.abs() <= 2.0));
        assert!(wide.iter().any(|x| x.abs() > 1.9));
        // 3σ happens once in 370 draws, so ±2σ truncation would show here.
        let narrow: Vec<f64> = (0..10_000).map(|_| s.truncated_normal(0.1)).collect();
        assert!(narrow.iter().any(|x| x.abs() > 0.25));
        assert_eq!(s.truncated_normal(0.0), 0.0);
    }

    #[test]
    fn tokens_and_streams_share_no_block() {
        let mut s = Stream::new(5, Purpose::Test, 9);
        assert_ne!(token_uniform(5, 9, Purpose::Test as u32, 0), s.uniform());
    }

    proptest! {
        #[test]
        fn below_is_below_and_reaches_everything(bound in 1usize..12, seed: u64) {
            let mut s = Stream::new(seed, Purpose::Test, 0);
            let mut seen = [false; 12];
            for _ in 0..600 {
                let x = s.below(bound);
                prop_assert!(x < bound);
                seen[x] = true;
            }
            prop_assert!(seen[..bound].iter().all(|&b| b));
        }

        #[test]
        fn shuffle_permutes(len in 0usize..40, seed: u64) {
            let mut items: Vec<usize> = (0..len).collect();
            Stream::new(seed, Purpose::Test, 1).shuffle(&mut items);
            items.sort_unstable();
            prop_assert_eq!(items, (0..len).collect::<Vec<_>>());
        }
    }
}
