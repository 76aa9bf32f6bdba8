//! The host-side real number that generic mathematics is written in.

use core::fmt::{Debug, Display};
use core::iter::Sum;
use core::ops::{AddAssign, DivAssign, MulAssign, SubAssign};
use num_traits::{Float, FloatConst, FromPrimitive};

/// `f32` to train with, `f64` to check gradients with.
///
/// Everything numeric in this crate is generic over it, so that the same line of code is both the
/// one that runs and the one whose gradient is checked.
pub trait Real:
    Float
    + FloatConst
    + FromPrimitive
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + Default
    + Debug
    + Display
    + Send
    + Sync
    + 'static
{
    /// Name of the type as users write it: `"f32"` or `"f64"`.
    const NAME: &'static str;

    /// Rounds a double to this type.
    fn of(value: f64) -> Self;

    /// Widens to a double without loss.
    fn wide(self) -> f64;

    /// Single-precision numbers, as files and images have them, as numbers of this type; `None` unless it is theirs.
    fn of_singles(values: &[f32]) -> Option<&[Self]>;
}

impl Real for f32 {
    const NAME: &'static str = "f32";
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn of_singles(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }
}

impl Real for f64 {
    const NAME: &'static str = "f64";
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    fn of_singles(_: &[f32]) -> Option<&[Self]> {
        None
    }
}
