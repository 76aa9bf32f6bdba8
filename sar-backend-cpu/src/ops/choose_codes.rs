//! Guidance, filter and draw: from logits to ids.
//!
//! The mathematics is `sar_math`'s, whose draws are integer sums and so independent of any order. A
//! draw is keyed by image, scale and token, so any task may choose the token of a row.

use super::cross_entropy::argmax;
use crate::Element;
use crate::simd::{vectorized, with_scratch};
use core::cell::RefCell;
use rayon::prelude::*;
use sar_math::ScaleSchedule;
use sar_math::backend::{Choice, ChooseDims, Filter, ShapeError};
use sar_math::guidance::guide;
use sar_math::philox::token_uniform;
use sar_math::sampling::{choose, scratch_len};

/// Number of logits of a row that are sampled to guess where the k-th largest lies.
const SAMPLE: usize = 512;
/// Number of standard deviations by which to stay below that guess.
const DEVIATIONS: f64 = 3.0;

thread_local! {
    /// Scratch words of a draw, kept from one draw to the next.
    static WORDS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The token that a row of logits belongs to.
struct Row {
    /// Sample of the ids.
    sample: usize,
    /// Scale in the schedule.
    scale: usize,
    /// Token within the scale.
    token: usize,
}

impl Row {
    fn new(schedule: &ScaleSchedule, sample: usize, token: usize) -> Self {
        let scale = schedule.scale_of(token).unwrap_or(0);
        Self { sample, scale, token: token - schedule.range(scale).start }
    }
}

/// Chooses every token of `dims.scales`; `logits` holds the batch once, or twice with guidance, and
/// `ids_bt` begins at its first sample.
///
/// # Errors
/// A shape error if the vocabulary is larger than a draw supports.
pub(crate) fn forward<T: Element>(
    dims: &ChooseDims,
    logits: &[T],
    ids_bt: &mut [u32],
) -> Result<(), ShapeError> {
    let span = dims.schedule.span(dims.scales.clone());
    if span.is_empty() {
        return Ok(());
    }
    let half = dims.batch * span.len() * dims.vocab;
    ids_bt
        .par_chunks_exact_mut(dims.schedule.tokens())
        .zip(0..dims.batch)
        .flat_map(|(ids, sample)| {
            ids[span.clone()].par_iter_mut().enumerate().map(move |(t, id)| (sample, t, id))
        })
        .try_for_each(|(sample, t, id)| {
            let number = sample * span.len() + t;
            let row = Row::new(&dims.schedule, dims.first_sample + sample, span.start + t);
            let conditional = &logits[number * dims.vocab..][..dims.vocab];
            let chosen = match dims.guidance {
                None => choose_row(dims, &row, conditional)?,
                Some(ramp) => with_scratch(dims.vocab, |mixed| {
                    let unconditional = &logits[half + number * dims.vocab..][..dims.vocab];
                    let t = T::of(ramp.get(row.scale).copied().unwrap_or(0.0));
                    vectorized!(mix(t, conditional, unconditional, mixed));
                    choose_row(dims, &row, mixed)
                })?,
            };
            *id = chosen as u32;
            Ok(())
        })
}

#[inline(always)]
fn mix<T: Element>(t: T, conditional: &[T], unconditional: &[T], mixed: &mut [T]) {
    for ((mixed, &c), &u) in mixed.iter_mut().zip(conditional).zip(unconditional) {
        *mixed = guide(t, c, u);
    }
}

fn choose_row<T: Element>(dims: &ChooseDims, row: &Row, logits: &[T]) -> Result<usize, ShapeError> {
    match dims.choice {
        Choice::Argmax => Ok(vectorized!(argmax(logits))),
        Choice::Draw(filter, keys) => {
            let image = keys.first_image.wrapping_add(row.sample as u64);
            let uniform = token_uniform(keys.seed, image, row.scale as u32, row.token as u32);
            draw(logits, filter, uniform)
        }
    }
}

/// [`choose`] among the few logits that can be the k largest, where the result is certain to be the
/// same.
///
/// If at least k logits are at or above some bar, these include the k largest and all ties with the
/// k-th; since they keep their order, the draw among them is the draw among all.
fn draw<T: Element>(logits: &[T], filter: Filter, uniform: f64) -> Result<usize, ShapeError> {
    let vocab = logits.len();
    WORDS.with_borrow_mut(|words| {
        words.resize(words.len().max(vocab + scratch_len(vocab)), 0);
        let (indices, words) = words.split_at_mut(vocab);
        with_scratch(vocab, |candidates| {
            if let Some(bar) = low_bar(logits, filter.top_k, candidates) {
                let count = at_least(logits, bar, candidates, indices);
                if count >= filter.top_k {
                    let chosen = choose(&candidates[..count], filter, uniform, words)?;
                    return Ok(indices[chosen] as usize);
                }
            }
            choose(logits, filter, uniform, words)
        })
    })
}

/// A logit that probably at least `top_k` others reach, though not many more, estimated from every
/// n-th logit. `None` where such a sample would not be much smaller than the whole.
fn low_bar<T: Element>(logits: &[T], top_k: usize, sample: &mut [T]) -> Option<T> {
    let stride = logits.len() / SAMPLE;
    if top_k == 0 || stride < 2 {
        return None;
    }
    let sample = &mut sample[..SAMPLE];
    for (to, &from) in sample.iter_mut().zip(logits.iter().step_by(stride)) {
        *to = if from.is_nan() { T::neg_infinity() } else { from };
    }
    let expected = top_k as f64 * SAMPLE as f64 / logits.len() as f64;
    let rank = (expected + DEVIATIONS * expected.sqrt()) as usize + 3;
    if rank >= SAMPLE / 2 {
        return None;
    }
    let descending = |a: &T, b: &T| b.partial_cmp(a).unwrap_or(core::cmp::Ordering::Equal);
    Some(*sample.select_nth_unstable_by(rank, descending).1)
}

/// Writes the logits at or above the bar, in order, and their indices; returns how many there are.
/// Has no branches that depend on the logits, which no processor could predict.
fn at_least<T: Element>(logits: &[T], bar: T, kept: &mut [T], indices: &mut [u64]) -> usize {
    let mut count = 0;
    for (i, &logit) in logits.iter().enumerate() {
        kept[count] = logit;
        indices[count] = i as u64;
        count += usize::from(logit >= bar);
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use sar_math::MAX_SCALES;
    use sar_math::backend::DrawKeys;

    const VOCAB: usize = 37;

    fn dims(batch: usize, first_image: u64, filter: Filter) -> ChooseDims {
        ChooseDims {
            batch,
            first_sample: 0,
            schedule: ScaleSchedule::from_sides(&[1, 2, 3]).unwrap(),
            scales: 1..3,
            vocab: VOCAB,
            guidance: None,
            choice: Choice::Draw(filter, DrawKeys { seed: 5, first_image }),
        }
    }

    fn logits(rows: usize) -> Vec<f64> {
        (0..rows * VOCAB).map(|i| (i * i % 1009) as f64 / 300.0).collect()
    }

    fn ids(dims: &ChooseDims, logits: &[f64]) -> Vec<u32> {
        let mut ids = vec![99; dims.batch * 14];
        forward(dims, logits, &mut ids).unwrap();
        ids
    }

    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let filter = Filter { top_k: 20, top_p: 0.9 };
        let logits = logits(3 * 13);
        let all = ids(&dims(3, 10, filter), &logits);
        assert_eq!([all[0], all[14], all[28]], [99; 3], "scale 1 is not asked for");
        for image in 0..3 {
            let alone = &logits[image * 13 * VOCAB..][..13 * VOCAB];
            let alone = ids(&dims(1, 10 + image as u64, filter), alone);
            assert_eq!(alone, all[image * 14..][..14]);
        }
    }

    #[test]
    fn a_draw_is_keyed_by_scale_and_token_within_it() {
        let dims = dims(1, 3, Filter { top_k: 0, top_p: 0.0 });
        let logits = logits(13);
        let found = ids(&dims, &logits);
        let mut words = vec![0; scratch_len(VOCAB)];
        for (scale, token, row, at) in [(1, 2, 2, 3), (2, 0, 4, 5), (2, 8, 12, 13)] {
            let uniform = token_uniform(5, 3, scale, token);
            let row = &logits[row * VOCAB..][..VOCAB];
            let off = Filter { top_k: 0, top_p: 0.0 };
            assert_eq!(found[at], choose(row, off, uniform, &mut words).unwrap() as u32);
        }
    }

    #[test]
    fn a_draw_among_the_likely_is_the_draw_among_all() {
        let vocab = 5 * SAMPLE + 3;
        let mut words = vec![0; scratch_len(vocab)];
        let noise = |i: usize| f64::from((i as u32).wrapping_mul(2_654_435_761) >> 8) / 4e6;
        let spread: Vec<f64> = (0..vocab).map(noise).collect();
        let tied: Vec<f64> = spread.iter().map(|x| x.floor()).collect();
        let with_nan = spread.iter().map(|&x| if x > 3.0 { f64::NAN } else { x }).collect();
        // Every n-th logit is large: the guess is far too high and must be noticed.
        let misleading =
            (0..vocab).map(|i| if i % 5 == 0 { 9.0 } else { spread[i] - 9.0 }).collect();
        for logits in [spread, tied, with_nan, misleading] {
            for top_k in [0, 1, 2, 50, 700, vocab] {
                for draw_number in 0..40 {
                    let uniform = token_uniform(1, 2, 3, draw_number);
                    let filter = Filter { top_k, top_p: 0.9 };
                    let want = choose(&logits, filter, uniform, &mut words).unwrap();
                    assert_eq!(draw(&logits, filter, uniform).unwrap(), want, "k {top_k}");
                }
            }
        }
    }

    #[test]
    fn guidance_is_that_of_each_scale() {
        let mut guidance = [0.0; MAX_SCALES];
        guidance[2] = 1.0;
        let schedule = ScaleSchedule::from_sides(&[1, 2, 3]).unwrap();
        let dims = ChooseDims {
            batch: 1,
            first_sample: 0,
            schedule,
            scales: 0..3,
            vocab: 2,
            guidance: Some(guidance),
            choice: Choice::Argmax,
        };
        // The conditional logits prefer 0 a little, the unconditional ones a lot: guidance 1 turns
        // to 1.
        let logits = [[1.0, 0.0]; 14].into_iter().chain([[3.0, 0.0]; 14]).flatten();
        let mut ids = [7; 14];
        forward(&dims, &logits.collect::<Vec<f32>>(), &mut ids).unwrap();
        assert_eq!(ids, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    }
}
