//! From logits to one token: top-k, top-p, softmax, and a draw.
//!
//! The arithmetic is part of the contract, so that every backend chooses the same id from the same
//! logits and the same uniform, whatever the order in which it adds:
//!
//! 1. Each logit is widened to f64. NaN counts as −∞ and −0 as +0; m is the largest.
//! 2. Top-k: the k-th largest value is the bar; what is below it is dropped, ties with it stay.
//! 3. Each survivor gets the *integer* weight `2⁴⁷·exp(l−m)`, to nearest, [`weight`]. Integer sums are exact,
//!    so from here on no order matters: a warp's reduction gives what a loop gives.
//! 4. Top-p: in ascending order of (weight, descending index), drop entries with a cumulative
//!    weight of at most `⌊(1−p)·total⌋`; the last in this order always stays.
//! 5. The id is the first, in vocabulary order, whose cumulative weight among those that stay exceeds
//!    `⌊uniform·total⌋`.
//!
//! Rounding to 2⁻⁴⁷ of the largest weight (7·10⁻¹⁵) is far below what f32 logits resolve.

use crate::{Real, ShapeError};

/// What remains of a distribution before it is drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filter {
    /// Keep the k largest (ties with the k-th stay); 0 is off, 1 is greedy.
    pub top_k: usize,
    /// Drop the ascending tail of cumulative probability ≤ 1−p; 0 is off.
    pub top_p: f64,
}

/// Keys of the random numbers of a draw, which do not depend on batch, thread or machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKeys {
    /// The run's seed.
    pub seed: u64,
    /// Number of the first image; sample b of the ids is image `first_image + b`.
    pub first_image: u64,
}

/// How a token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The largest logit, lowest index on ties.
    ///
    /// NaN counts as −∞; where no logit is above −∞, the id is 0, both by argmax and by draw.
    Argmax,
    /// A draw from the filtered softmax.
    Draw(Filter, DrawKeys),
}

/// Largest vocabulary. Up to this size, a weight and an index share 64 bits, and the total also
/// fits into 64 bits.
pub const MAX_VOCAB: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 16;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// The weight of the largest logit.
pub const WEIGHT_ONE: u64 = 1 << WEIGHT_BITS;
const WEIGHT_BITS: u32 = 47;

/// Elements of scratch that [`choose`] and [`filtered_probabilities`] need.
pub const fn scratch_len(vocab: usize) -> usize {
    2 * vocab
}

/// The index of the largest logit, the lowest on ties; NaN is never the largest. Returns 0 where no
/// logit is above −∞.
pub fn argmax<T: Real>(logits: &[T]) -> usize {
    let mut best = (0, T::neg_infinity());
    for (i, &l) in logits.iter().enumerate() {
        if l > best.1 {
            best = (i, l);
        }
    }
    best.0
}

/// Chooses one token of `logits[v]` by `uniform` in [0, 1), as the module describes.
///
/// `scratch` holds [`scratch_len`] words; its contents do not matter. Where no logit is above −∞,
/// the result is 0, as with [`argmax`].
///
/// ```
/// use sar_math::backend::Filter;
/// use sar_math::sampling::{choose, scratch_len};
/// let logits = [0.0f32, 2.0, 1.0];
/// let mut scratch = [0; scratch_len(3)];
/// let greedy = Filter { top_k: 1, top_p: 0.0 };
/// assert_eq!(choose(&logits, greedy, 0.99, &mut scratch), Ok(1));
/// ```
///
/// # Errors
/// [`ShapeError`] if there are no logits, more than [`MAX_VOCAB`], or too little scratch.
pub fn choose<T: Real>(
    logits: &[T],
    filter: Filter,
    uniform: f64,
    scratch: &mut [u64],
) -> Result<usize, ShapeError> {
    let kept = keep("choose", logits, filter, scratch)?;
    let target = ((uniform * kept.total as f64) as u64).min(kept.total.saturating_sub(1));
    let mut cumulative = 0;
    for &entry in kept.entries {
        if entry >= kept.bar {
            cumulative += weight_of(entry);
            if cumulative > target {
                return Ok(index_of(entry));
            }
        }
    }
    Ok(0) // nothing above −∞: total is 0
}

/// The distribution that [`choose`] draws from, as probabilities `out[v]`; all of it is on token 0
/// where no logit is above −∞.
///
/// # Errors
/// As [`choose`], and if `out` is not as long as `logits`.
pub fn filtered_probabilities<T: Real>(
    logits: &[T],
    filter: Filter,
    scratch: &mut [u64],
    out: &mut [T],
) -> Result<(), ShapeError> {
    const OP: &str = "filtered_probabilities";
    ShapeError::equal(OP, "out (vocab)", logits.len(), out.len())?;
    out.fill(T::zero());
    let kept = keep(OP, logits, filter, scratch)?;
    if kept.total == 0 {
        out[0] = T::one();
        return Ok(());
    }
    for &entry in kept.entries {
        if entry >= kept.bar {
            out[index_of(entry)] = T::of(weight_of(entry) as f64 / kept.total as f64);
        }
    }
    Ok(())
}

/// What a filter leaves: the entries at or above `bar`, in vocabulary order.
struct Kept<'a> {
    entries: &'a [u64],
    bar: u64,
    /// Sum of their weights.
    total: u64,
}

/// An entry orders by weight, then by falling index, and also stores the index.
fn entry(weight: u64, index: usize) -> u64 {
    weight << INDEX_BITS | (INDEX_MASK - index as u64)
}

fn weight_of(entry: u64) -> u64 {
    entry >> INDEX_BITS
}

fn index_of(entry: u64) -> usize {
    (INDEX_MASK - (entry & INDEX_MASK)) as usize
}

fn keep<'a, T: Real>(
    op: &'static str,
    logits: &[T],
    filter: Filter,
    scratch: &'a mut [u64],
) -> Result<Kept<'a>, ShapeError> {
    let vocab = logits.len();
    ShapeError::at_least(op, "vocabulary", 1, vocab)?;
    ShapeError::at_least(op, "room for the vocabulary (2^16)", vocab, MAX_VOCAB)?;
    ShapeError::at_least(op, "scratch (2*vocab)", scratch_len(vocab), scratch.len())?;
    let (first, second) = scratch.split_at_mut(vocab);

    let bar = top_k_bar(logits, filter.top_k, second);
    let len = survivors(logits, bar, first, second);
    let largest = largest(logits);
    let mut total = 0;
    for (logit, &index) in first[..len].iter_mut().zip(&second[..len]) {
        let weight = weight(f64::from_bits(*logit), largest);
        *logit = entry(weight, index as usize);
        total += weight;
    }
    let entries = &first[..len];
    let off = filter.top_p <= 0.0 || filter.top_p.is_nan();
    if off || len == 0 {
        return Ok(Kept { entries, bar: 0, total });
    }
    let limit = ((1.0 - filter.top_p) * total as f64) as u64;
    second[..len].copy_from_slice(entries);
    let (bar, dropped) = first_above(&mut second[..len], limit);
    Ok(Kept { entries, bar, total: total - dropped })
}

/// Writes the logits at or above the bar, as bits, and their indices; returns how many there are.
/// Has no branches that depend on the logits, which no processor could predict.
fn survivors<T: Real>(logits: &[T], bar: u64, bits: &mut [u64], indices: &mut [u64]) -> usize {
    let mut len = 0;
    for (i, l) in logits.iter().enumerate() {
        let logit = l.wide();
        bits[len] = logit.to_bits();
        indices[len] = i as u64;
        len += usize::from(order_key(logit) >= bar);
    }
    len
}

/// The largest logit, −∞ where there is none; NaN is never the largest.
fn largest<T: Real>(logits: &[T]) -> f64 {
    // Several lanes, so that a comparison does not wait for the one before it.
    let mut lanes = [T::neg_infinity(); 16];
    for block in logits.chunks(lanes.len()) {
        for (lane, &l) in lanes.iter_mut().zip(block) {
            *lane = if l > *lane { l } else { *lane };
        }
    }
    lanes.iter().fold(f64::NEG_INFINITY, |m, l| m.max(l.wide()))
}

/// The k-th largest order key, or 0 where every logit stays. `keys` is scratch.
fn top_k_bar<T: Real>(logits: &[T], k: usize, keys: &mut [u64]) -> u64 {
    if k == 0 || k >= logits.len() {
        return 0;
    }
    for (key, l) in keys.iter_mut().zip(logits) {
        *key = order_key(l.wide());
    }
    *keys[..logits.len()].select_nth_unstable(logits.len() - k).1
}

/// An integer that orders as the number does; NaN is below everything, and −0 equals +0.
#[inline]
fn order_key(x: f64) -> u64 {
    if x.is_nan() {
        return 0;
    }
    let bits = (x + 0.0).to_bits(); // −0 + 0 is +0
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// Among non-empty `entries` in ascending order: the first entry whose cumulative weight exceeds
/// `limit` (the last if none does), and the sum of the weights before it. Selection, not a sort:
/// O(n).
fn first_above(mut entries: &mut [u64], limit: u64) -> (u64, u64) {
    let mut before = 0;
    while entries.len() > 1 {
        let middle = (entries.len() - 1) / 2;
        let (low, &mut pivot, _) = entries.select_nth_unstable(middle);
        let below: u64 = low.iter().map(|&e| weight_of(e)).sum();
        let through = before + below + weight_of(pivot);
        if through > limit {
            if before + below <= limit {
                return (pivot, before + below);
            }
            entries = &mut entries[..middle];
        } else {
            before = through;
            entries = &mut entries[middle + 1..];
        }
    }
    (entries[0], before)
}

/// `2⁴⁷·exp(logit−largest)` to nearest, with the exponential written out so that it has the same bits
/// everywhere: no fused multiply-add, no library function; and without branches, for vectors.
///
/// −∞ and NaN weigh 0; the largest logit weighs [`WEIGHT_ONE`], even if it is +∞.
#[inline]
pub fn weight(logit: f64, largest: f64) -> u64 {
    // 1/n!, n from 13 down to 0. For |r| ≤ ln2/2 the next term is below 2⁻⁵⁷.
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    // A logit so far below the largest weighs 0: 2⁴⁷·exp(−35) is 0.09.
    const LEAST: f64 = -35.0;
    // ln 2 in two parts: the first has 32 trailing zero bits, so k times it is exact.
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_0000_0000);
    const LN2_LOW: f64 = core::f64::consts::LN_2 - LN2_HIGH;
    // Adding this rounds to an integer, ties to even, and leaves that integer in the low bits.
    const TO_INTEGER: f64 = 1.5 * (1u64 << 52) as f64;
    if largest.is_infinite() {
        return if logit == f64::INFINITY { WEIGHT_ONE } else { 0 };
    }
    let x = logit - largest;
    let x = if x > LEAST { x } else { LEAST }; // NaN too
    let shifted = x * core::f64::consts::LOG2_E + TO_INTEGER;
    let k = shifted - TO_INTEGER;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut series = 0.0;
    for c in TAYLOR {
        series = series * r + c;
    }
    let exponent = shifted.to_bits().wrapping_sub(TO_INTEGER.to_bits());
    let power = f64::from_bits(exponent.wrapping_add(1023 + WEIGHT_BITS as u64) << 52);
    (series * power + TO_INTEGER).to_bits() - TO_INTEGER.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const OFF: Filter = Filter { top_k: 0, top_p: 0.0 };

    /// Half a unit of 2⁻⁴⁷ for each of at most 60 weights, 2e-13 in all.
    const TOLERANCE: f64 = 3e-13;

    /// The filters as the published code states them, by sorting.
    fn plain(logits: &[f64], filter: Filter) -> Vec<f64> {
        let mut l = logits.to_vec();
        if filter.top_k > 0 && filter.top_k < l.len() {
            let mut sorted = l.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let bar = sorted[filter.top_k - 1];
            l.iter_mut().for_each(|x| *x = if *x < bar { f64::NEG_INFINITY } else { *x });
        }
        let softmax = |l: &[f64]| {
            let m = l.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = l.iter().map(|x| (x - m).exp()).sum();
            l.iter().map(|x| (x - m).exp() / sum).collect::<Vec<_>>()
        };
        let p = softmax(&l);
        if filter.top_p > 0.0 {
            let mut order: Vec<usize> = (0..l.len()).collect();
            order.sort_by(|&a, &b| p[a].total_cmp(&p[b]).then(b.cmp(&a)));
            let mut cumulative = 0.0;
            for &i in &order[..l.len() - 1] {
                cumulative += p[i];
                if cumulative <= 1.0 - filter.top_p {
                    l[i] = f64::NEG_INFINITY;
                }
            }
        }
        softmax(&l)
    }

    fn probabilities(logits: &[f64], filter: Filter) -> Vec<f64> {
        let mut out = std::vec![0.0; logits.len()];
        let mut scratch = std::vec![9; scratch_len(logits.len())];
        filtered_probabilities(logits, filter, &mut scratch, &mut out).unwrap();
        out
    }

    #[test]
    fn nothing_above_minus_infinity_is_the_first_token() {
        for filter in [Filter { top_k: 0, top_p: 0.0 }, Filter { top_k: 2, top_p: 0.5 }] {
            let none = [f64::NEG_INFINITY, f64::NAN, f64::NEG_INFINITY];
            assert_eq!(probabilities(&none, filter), [1.0, 0.0, 0.0]);
            assert_eq!(choose(&none, filter, 0.7, &mut [0; scratch_len(3)]), Ok(0));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_sorting(
            logits in prop::collection::vec(-8.0f64..8.0, 1..60),
            top_k in 0usize..70,
            top_p in prop::sample::select(std::vec![0.0, 0.1, 0.5, 0.77, 0.9, 0.96, 1.0]),
        ) {
            let filter = Filter { top_k, top_p };
            for (got, want) in probabilities(&logits, filter).iter().zip(plain(&logits, filter)) {
                prop_assert!((got - want).abs() < TOLERANCE, "{got} {want}");
            }
        }

        #[test]
        fn draws_the_inverse_of_the_cumulative_distribution(
            logits in prop::collection::vec(-4.0f32..4.0, 1..40),
            uniform in 0.0f64..1.0,
            top_k in 0usize..50,
        ) {
            let filter = Filter { top_k, top_p: 0.9 };
            let wide: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
            let p = probabilities(&wide, filter);
            let mut scratch = std::vec![0; scratch_len(logits.len())];
            let id = choose(&logits, filter, uniform, &mut scratch).unwrap();
            let before: f64 = p[..id].iter().sum();
            prop_assert!(p[id] > 0.0);
            prop_assert!(before <= uniform + TOLERANCE && uniform < before + p[id] + TOLERANCE);
        }

        #[test]
        fn the_written_out_exponential_is_the_exponential(x in -33.0f64..0.0) {
            let want = x.exp() * WEIGHT_ONE as f64;
            // Rounded to an integer, and 2 ulp of the value itself.
            prop_assert!((weight(x, 0.0) as f64 - want).abs() <= 1.0 + want * 4.5e-16);
        }
    }

    #[test]
    fn ties_with_the_kth_stay_and_the_largest_always_stays() {
        let tied = [1.0, 3.0, 2.0, 2.0, 0.0];
        let p = probabilities(&tied, Filter { top_k: 2, top_p: 0.0 });
        assert!(p[1] > 0.0 && p[2] > 0.0 && p[2] == p[3] && p[0] == 0.0 && p[4] == 0.0);
        assert_eq!(probabilities(&tied, Filter { top_k: 0, top_p: 1e-20 }), [0., 1., 0., 0., 0.]);
        // Both are the largest: a top-p near 0 leaves one of them, the lower index.
        assert_eq!(probabilities(&[5.0, 5.0], Filter { top_k: 0, top_p: 1e-20 }), [1.0, 0.0]);
        assert_eq!(probabilities(&[0.0, -0.0], Filter { top_k: 1, top_p: 0.0 }), [0.5, 0.5]);
    }

    #[test]
    fn extreme_logits_are_defined() {
        let mut scratch = [0; 8];
        let inf = f64::INFINITY;
        let mut pick = |l: &[f64], u| choose(l, OFF, u, &mut scratch).unwrap();
        assert_eq!(pick(&[f64::NAN, 1.0, -inf, f64::NAN], 0.999_999), 1);
        assert_eq!(pick(&[0.0, inf, 0.0], 0.5), 1);
        assert_eq!(pick(&[f64::NAN, f64::NAN], 0.5), 0);
        assert_eq!(pick(&[-inf, -inf], 0.5), 0);
        assert_eq!(pick(&[1e308, -1e308, 1e308], 1.0 - f64::EPSILON), 2);
        assert_eq!(argmax(&[f64::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(argmax::<f64>(&[f64::NAN]), 0);
    }

    #[test]
    fn misuse_is_an_error() {
        let mut scratch = [0; 4];
        assert_eq!(choose::<f64>(&[], OFF, 0.0, &mut scratch).unwrap_err().operand, "vocabulary");
        let error = choose(&[0.0f64; 3], OFF, 0.0, &mut scratch).unwrap_err();
        assert_eq!((error.expected, error.found), (6, 4));
    }
}
