//! Learning rate and weight decay over the iterations of a run, as in the published trainer.
//!
//! Warm-up rises linearly from `warmup_from` to 1; then, with u from 0 to 1 over what remains, the
//! [`Shape`] falls to `end`. All are factors of the peak rate. Weight decay follows a half cosine
//! over the whole run.

use core::fmt;
use core::str::FromStr;
use num_traits::Float;

/// How the learning rate falls after warm-up; e is [`Anneal::end`], u the fraction of the way
/// covered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// `cos`: `e + (1−e)·½(1 + cos πu)`.
    Cosine,
    /// `lin`, `lin0`: 1 for the first fraction T of the way (0.15, 0.05), then straight to e.
    Plateau(Plateau),
    /// `lin00`: straight from 1 to e.
    Linear,
    /// `linT`, 0 < T < 1: straight to a bend at T, halfway between 1 and the line of `lin` there
    /// (if it had no plateau), then straight to e.
    Bent(f64),
    /// `exp`: 1 for the first 0.15 of the way, then `e^((u−0.15)/0.85)`.
    Exponential,
}

/// The plateaus that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plateau {
    /// `lin`: 0.15 of the way.
    Long,
    /// `lin0`: 0.05 of the way, as in the published runs.
    Short,
}

impl Plateau {
    const fn part(self) -> f64 {
        match self {
            Self::Long => 0.15,
            Self::Short => 0.05,
        }
    }
}

impl Shape {
    /// The published runs' schedule, `lin0`.
    pub const PUBLISHED: Self = Self::Plateau(Plateau::Short);

    /// The factor at fraction `u` of the way, falling to `end`.
    fn factor(self, u: f64, end: f64) -> f64 {
        let rest = 1.0 - u;
        match self {
            Self::Cosine => end + (1.0 - end) * half_cosine(u),
            Self::Plateau(plateau) => {
                let flat = plateau.part();
                if u < flat { 1.0 } else { end + (1.0 - end) * rest / (1.0 - flat) }
            }
            Self::Linear => end + (1.0 - end) * rest,
            Self::Bent(bend) => {
                let middle = f64::midpoint(1.0, end + (1.0 - end) * (1.0 - bend));
                if u < bend {
                    1.0 + (middle - 1.0) * u / bend
                } else {
                    end + (middle - end) * rest / (1.0 - bend)
                }
            }
            Self::Exponential => {
                let flat = Plateau::Long.part();
                if u < flat { 1.0 } else { Float::exp((u - flat) / (1.0 - flat) * Float::ln(end)) }
            }
        }
    }
}

/// ½(1 + cos πu).
fn half_cosine(u: f64) -> f64 {
    0.5 + 0.5 * Float::cos(core::f64::consts::PI * u)
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cosine => f.write_str("cos"),
            Self::Plateau(Plateau::Long) => f.write_str("lin"),
            Self::Plateau(Plateau::Short) => f.write_str("lin0"),
            Self::Linear => f.write_str("lin00"),
            Self::Bent(bend) => write!(f, "lin{bend}"),
            Self::Exponential => f.write_str("exp"),
        }
    }
}

/// A name that denotes no learning-rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownShape;

impl fmt::Display for UnknownShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "learning-rate schedule: unknown name; expected cos, lin, lin0, lin00, exp, \
             or linT with 0 < T < 1 such as lin0.2",
        )
    }
}

impl core::error::Error for UnknownShape {}

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(name: &str) -> Result<Self, UnknownShape> {
        Ok(match name {
            "cos" => Self::Cosine,
            "lin" => Self::Plateau(Plateau::Long),
            "lin0" => Self::Plateau(Plateau::Short),
            "lin00" => Self::Linear,
            "exp" => Self::Exponential,
            _ => {
                let bend = name.strip_prefix("lin").and_then(|t| t.parse::<f64>().ok());
                Self::Bent(bend.filter(|&t| t > 0.0 && t < 1.0).ok_or(UnknownShape)?)
            }
        })
    }
}

/// Learning rate and weight decay of every iteration of a run. Iterations count from 0.
///
/// ```
/// use sar_math::anneal::{Anneal, Shape};
/// let anneal = Anneal { warmup: 10, ..Anneal::new(Shape::Linear, 1e-3, 100) };
/// assert_eq!(anneal.learning_rate(10), 1e-3);
/// assert!(anneal.learning_rate(99) < 2e-5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anneal {
    /// How the rate falls.
    pub shape: Shape,
    /// The rate at the end of warm-up.
    pub peak: f64,
    /// Iterations of the whole run.
    pub total: u64,
    /// Iterations of warm-up; 0 turns it off.
    pub warmup: u64,
    /// Factor at the first iteration of warm-up, 0.005 in the published runs.
    pub warmup_from: f64,
    /// Factor at the last iteration; above 0 for `exp`.
    pub end: f64,
    /// Weight decay at the first iteration.
    pub weight_decay: f64,
    /// Weight decay at the last iteration; if equal to the first, the decay is constant.
    pub weight_decay_end: f64,
}

impl Anneal {
    /// A schedule without warm-up, with a fall to 1 % and a constant weight decay of 0.05.
    pub const fn new(shape: Shape, peak: f64, total: u64) -> Self {
        Self {
            shape,
            peak,
            total,
            warmup: 0,
            warmup_from: 0.005,
            end: 0.01,
            weight_decay: 0.05,
            weight_decay_end: 0.05,
        }
    }

    /// Learning rate of an iteration; past the end, that of the last iteration.
    pub fn learning_rate(&self, iteration: u64) -> f64 {
        let factor = if iteration < self.warmup {
            let u = iteration as f64 / self.warmup as f64;
            self.warmup_from + (1.0 - self.warmup_from) * u
        } else {
            let way = self.total.saturating_sub(1).saturating_sub(self.warmup);
            self.shape.factor(part(iteration - self.warmup, way), self.end)
        };
        factor * self.peak
    }

    /// Weight decay of an iteration; past the end, that of the last iteration.
    pub fn weight_decay(&self, iteration: u64) -> f64 {
        if self.weight_decay == self.weight_decay_end {
            return self.weight_decay; // not subject to rounding
        }
        let u = part(iteration, self.total.saturating_sub(1));
        self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * half_cosine(u)
    }
}

/// The fraction of the way covered, at most 1; 0 for a way of no steps.
fn part(gone: u64, way: u64) -> f64 {
    if way == 0 { 0.0 } else { (gone as f64 / way as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    /// A few roundings of f64, of numbers of order 1.
    const ROUNDING: f64 = 1e-14;
    /// Roundings of f64 where a plateau ends and its line begins; a wrong line differs by far more.
    const IN_ORDER: f64 = 1e-12;

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Cosine),
            Just(Shape::Plateau(Plateau::Long)),
            Just(Shape::PUBLISHED),
            Just(Shape::Linear),
            Just(Shape::Exponential),
            (0.001f64..0.999).prop_map(Shape::Bent),
        ]
    }

    proptest! {
        #[test]
        fn names_round_trip(shape in shapes()) {
            prop_assert_eq!(shape.to_string().parse(), Ok(shape));
        }

        #[test]
        fn rises_then_falls_and_stays_within_bounds(
            shape in shapes(), total in 1u64..300, warmup in 0u64..300,
        ) {
            let anneal = Anneal { warmup, ..Anneal::new(shape, 2.0, total) };
            for i in 0..total + 5 {
                let (now, next) = (anneal.learning_rate(i), anneal.learning_rate(i + 1));
                prop_assert!(now.is_finite() && now > 0.0 && now <= 2.0 + IN_ORDER);
                // After a plateau, its line starts above 1 by no more than rounding.
                let in_order = if i < warmup { next >= now } else { next <= now + IN_ORDER };
                prop_assert!(in_order, "{now} then {next} at {i}");
            }
            if total > warmup + 2 {
                // A few roundings of numbers of order 1.
                prop_assert!((anneal.learning_rate(total - 1) - 0.02).abs() < ROUNDING);
            }
            prop_assert_eq!(anneal.weight_decay(total / 2), 0.05);
        }
    }

    #[test]
    fn unknown_names_are_errors() {
        for name in ["", "linear", "lin1", "lin0.0", "lin-0.2", "linNaN", "COS", "lin1.5"] {
            assert_eq!(name.parse::<Shape>(), Err(UnknownShape), "{name}");
        }
        assert!(UnknownShape.to_string().contains("lin00"));
    }
}
