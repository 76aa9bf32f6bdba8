//! Classifier-free guidance: its strength on each scale, and the mix itself.

use crate::{MAX_SCALES, Real};

/// How guidance grows over the scales; [`Guidance::ramp`] gives the t of each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Guidance {
    /// No unconditional pass at all.
    #[default]
    Off,
    /// The same t on every scale.
    Constant(f64),
    /// `t_i = g·i/min(N−1, 9)`, i from 0: the published sampler.
    Sampling(f64),
    /// `t_i = g·i/(N−1)`, i from 0: VAR's sampler.
    Var(f64),
    /// `t_i = g·½·(1 + i/(N−1))`, i from 0: the published rollout of preset `release`.
    Rollout(f64),
}

impl Guidance {
    /// The t of each of `scales` scales, zero beyond; `None` where there is no guidance.
    ///
    /// A schedule of one scale has no slope: it gets the value of its first scale.
    ///
    /// ```
    /// use sar_math::guidance::Guidance;
    /// let t = Guidance::Sampling(2.0).ramp(3).unwrap();
    /// assert_eq!(t[..4], [0.0, 1.0, 2.0, 0.0]);
    /// let t = Guidance::Rollout(2.0).ramp(3).unwrap();
    /// assert_eq!(t[..4], [1.0, 1.5, 2.0, 0.0]);
    /// ```
    pub fn ramp(self, scales: usize) -> Option<[f64; MAX_SCALES]> {
        let steps = scales.saturating_sub(1).max(1);
        let at = |i: usize| match self {
            Self::Off => 0.0,
            Self::Constant(t) => t,
            Self::Sampling(g) => g * (i as f64 / steps.min(9) as f64),
            Self::Var(g) => g * (i as f64 / steps as f64),
            Self::Rollout(g) => g * (0.5 * (1.0 + i as f64 / steps as f64)),
        };
        if self == Self::Off {
            return None;
        }
        let mut ramp = [0.0; MAX_SCALES];
        for (i, t) in ramp.iter_mut().enumerate().take(scales) {
            *t = at(i);
        }
        Some(ramp)
    }
}

/// `(1+t)·c − t·u`: a conditional logit (or feature, before a linear head) pushed away from the
/// unconditional one. The products and the difference are each rounded to T, in this order, on
/// every backend.
#[inline(always)]
pub fn guide<T: Real>(t: T, conditional: T, unconditional: T) -> T {
    (T::one() + t) * conditional - t * unconditional
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_are_finite_for_every_length() {
        let ramps = [Guidance::Constant, Guidance::Sampling, Guidance::Rollout, Guidance::Var]
            .map(|of| of(1.5));
        for guidance in ramps {
            for scales in 0..=MAX_SCALES {
                let t = guidance.ramp(scales).unwrap();
                assert!(t.iter().all(|t| t.is_finite()));
                assert!(t[scales..].iter().all(|&t| t == 0.0));
            }
        }
        assert_eq!(Guidance::Sampling(3.0).ramp(1).unwrap()[0], 0.0);
        assert_eq!(Guidance::Rollout(3.0).ramp(1).unwrap()[0], 1.5);
        assert!(Guidance::Off.ramp(4).is_none());
    }

    #[test]
    fn long_schedules_go_on_past_g() {
        let t = Guidance::Sampling(9.0).ramp(14).unwrap();
        assert_eq!((t[9], t[13]), (9.0, 13.0));
    }

    #[test]
    fn zero_guidance_leaves_the_conditional() {
        assert_eq!(guide(0.0, 3.25, -7.0), 3.25);
        assert_eq!(guide(1.0, 3.0, 1.0), 5.0);
    }
}
