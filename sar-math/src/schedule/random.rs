//! Random training schedules (FlexVAR): the generator sees many ways to reach the last scale.

use super::{MAX_SCALES, MAX_SIDE, Scale, ScaleSchedule};
use crate::philox::{Purpose, Stream};

/// Probability that a random training schedule starts from the model's own schedule.
pub const DEFAULT_SCHEDULE_PROBABILITY: f64 = 0.05;

/// Bounds of the uniform draw that decides how many scales are left out: one for each bound
/// exceeded.
const DROP_ABOVE: [f64; 4] = [0.9, 0.95, 0.98, 0.99];

impl ScaleSchedule {
    /// The training schedule of a step; `self` is the model's own schedule.
    ///
    /// The same seed and step give the same schedule. See [`ScaleSchedule::random`].
    ///
    /// ```
    /// use sar_math::ScaleSchedule;
    /// let own = ScaleSchedule::published_256();
    /// let drawn = own.random_at(7, 3);
    /// assert_eq!(drawn, own.random_at(7, 3));
    /// assert!(drawn.tokens() <= own.tokens() && drawn.last() == own.last());
    /// ```
    pub fn random_at(&self, seed: u64, step: u64) -> Self {
        self.random(&mut Stream::new(seed, Purpose::Schedule, step), DEFAULT_SCHEDULE_PROBABILITY)
    }

    /// A random training schedule; `self` is the model's own schedule of N scales, the last of side
    /// S.
    ///
    /// 1. With probability `own` it starts from `self`; otherwise from the first two scales and the
    ///    last of `self`, with N−3 sides drawn in between: ⌊2(N−3)/7⌉ from the upper ones, above
    ///    ⌊5S/8⌋, and the others from the lower ones; where one group is too small, the other gives
    ///    more.
    /// 2. Given one uniform draw x, a random scale in between is dropped for each of 0.9, 0.95,
    ///    0.98 and 0.99 that x exceeds.
    /// 3. While there are more tokens than `self` has, a random one of the last four scales is
    ///    dropped, but never the last itself nor the first two.
    ///
    /// For [`ScaleSchedule::published_256`] this is the published rule: {1, 2}, five of 3..=10, two
    /// of 11..=15, {16}, at most 680 tokens (the published code may drop the last scale in step 3
    /// as well; here every schedule ends in the scale that is decoded). Scales in between keep the
    /// proportions of the last where that is not square.
    pub fn random(&self, rng: &mut Stream, own: f64) -> Self {
        let mut drawn = if rng.chance(own) || self.len < 4 {
            Draft { scales: self.scales, len: self.len }
        } else {
            self.draw_between(rng)
        };
        let x = rng.uniform();
        for threshold in DROP_ABOVE {
            if x > threshold {
                drawn.drop_one(rng, 2);
            }
        }
        while drawn.tokens() > self.tokens() && drawn.drop_one(rng, drawn.len.saturating_sub(4)) {}
        Self::build(&drawn.scales[..drawn.len])
    }

    /// Draws a schedule of the first two scales, the last, and N−3 random sides in between.
    fn draw_between(&self, rng: &mut Stream) -> Draft {
        let (second, last) = (self.scales[1], self.last());
        let side = last.height.max(last.width);
        let proportional = |s: usize| Scale {
            height: (s * last.height).div_ceil(side),
            width: (s * last.width).div_ceil(side),
        };
        let fits = |s: &usize| {
            let scale = proportional(*s);
            scale.height >= second.height && scale.width >= second.width && scale != second
        };
        let split = side * 5 / 8;
        let lower = (1..split + 1).filter(fits).count();
        let upper = (split + 1..side).filter(fits).count();
        let wanted = self.len - 3;
        let high = ((2 * wanted + 3) / 7).max(wanted.saturating_sub(lower)).min(upper);
        let low = (wanted - high).min(lower);

        // Selection sampling (Knuth, vol. 2, algorithm S): draws in order and without a list of
        // sides.
        let mut draft = Draft { scales: [Scale::square(1); MAX_SCALES], len: 0 };
        draft.push(self.scales[0]);
        draft.push(second);
        let mut take = [(low, lower), (high, upper)];
        for s in (1..side.min(MAX_SIDE)).filter(fits) {
            let (wanted, left) = &mut take[usize::from(s > split)];
            if rng.below(*left) < *wanted {
                draft.push(proportional(s));
                *wanted -= 1;
            }
            *left -= 1;
        }
        draft.push(last);
        draft
    }

    /// The staggered schedule of one transition: the class token, then scale `scale` alone (from 0).
    /// `None` for the first scale and past the end.
    pub fn staggered(&self, scale: usize) -> Option<Self> {
        let &to = self.scales().get(scale)?;
        (scale > 0).then(|| Self::build(&[self.scales[0], to]))
    }

    /// The staggered schedule (1, N) of the last scale; `None` where it is the only one.
    ///
    /// ```
    /// use sar_math::ScaleSchedule;
    /// let staggered = ScaleSchedule::published_256().staggered_last();
    /// assert_eq!(staggered, Some("1_16".parse()?));
    /// # Ok::<(), sar_math::ScheduleError>(())
    /// ```
    pub fn staggered_last(&self) -> Option<Self> {
        self.staggered(self.len - 1)
    }
}

/// A growing list of scales that is still being changed.
struct Draft {
    scales: [Scale; MAX_SCALES],
    len: usize,
}

impl Draft {
    fn push(&mut self, scale: Scale) {
        if let Some(place) = self.scales.get_mut(self.len) {
            *place = scale;
            self.len += 1;
        }
    }

    fn tokens(&self) -> usize {
        self.scales[..self.len].iter().map(|s| s.tokens()).sum()
    }

    /// Drops a random scale from index `from` on, but not the first two nor the last; returns false
    /// where there is none to drop.
    fn drop_one(&mut self, rng: &mut Stream, from: usize) -> bool {
        let from = from.max(2);
        if from + 1 >= self.len {
            return false;
        }
        let at = from + rng.below(self.len - 1 - from);
        self.scales.copy_within(at + 1..self.len, at);
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sides(schedule: &ScaleSchedule) -> std::vec::Vec<usize> {
        schedule.scales().iter().map(|s| s.height).collect()
    }

    #[test]
    fn the_published_rule() {
        let own = ScaleSchedule::published_256();
        let (mut owns, mut full, mut side_seen) = (0, 0, [false; 17]);
        for step in 0..4000 {
            let drawn = own.random_at(11, step);
            let sides = sides(&drawn);
            assert_eq!(ScaleSchedule::from_sides(&sides), Ok(drawn));
            assert!(drawn.tokens() <= 680, "{drawn}");
            assert!(sides[..2] == [1, 2] && sides.ends_with(&[16]), "{drawn}");
            assert!(sides.iter().filter(|&&s| (3..=10).contains(&s)).count() <= 6, "{drawn}");
            assert!(sides.iter().filter(|&&s| (11..=15).contains(&s)).count() <= 2, "{drawn}");
            owns += usize::from(drawn == own);
            full += usize::from(drawn.len() == 10);
            sides.iter().for_each(|&s| side_seen[s] = true);
        }
        // 5 % of 4000, of which a tenth lose a scale: 180, give or take 5 standard errors.
        assert!((110..250).contains(&owns), "{owns}");
        assert!(full > 0 && side_seen[1..].iter().all(|&s| s));
    }

    #[test]
    fn the_own_schedule_is_kept_where_nothing_is_dropped() {
        let own: ScaleSchedule = "1_2_4_8".parse().unwrap();
        let kept = (0..1000)
            .filter(|&i| own.random(&mut Stream::new(1, Purpose::Test, i), 1.0) == own)
            .count();
        assert!((850..950).contains(&kept), "{kept}");
    }

    proptest! {
        #[test]
        fn any_model_has_random_schedules(
            growth in prop::collection::vec((0usize..3, 1usize..4), 0..20),
            seed: u64, step in 0u64..1000,
        ) {
            let mut scales = std::vec![Scale::square(1)];
            for (h, w) in growth {
                let before = scales[scales.len() - 1];
                scales.push(Scale { height: before.height + h, width: before.width + w });
            }
            let own = ScaleSchedule::new(&scales).unwrap();
            let drawn = own.random_at(seed, step);
            prop_assert_eq!(ScaleSchedule::new(drawn.scales()), Ok(drawn));
            prop_assert!(drawn.tokens() <= own.tokens());
            prop_assert_eq!(drawn.last(), own.last());
            prop_assert_eq!(drawn.scales()[0], own.scales()[0]);
            if own.len() > 1 {
                prop_assert_eq!(drawn.scales()[1], own.scales()[1]);
                for i in 0..=own.len() {
                    let staggered = own.staggered(i);
                    prop_assert_eq!(staggered.is_some(), i > 0 && i < own.len());
                    if let Some(s) = staggered {
                        prop_assert_eq!(s.scales(), &[own.scales()[0], own.scales()[i]]);
                    }
                }
                prop_assert_eq!(own.staggered_last().unwrap().last(), own.last());
            }
        }
    }
}
