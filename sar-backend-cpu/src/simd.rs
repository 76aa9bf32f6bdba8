//! Vector loops: run-time dispatch, exp, sums in a fixed order, scratch memory.
//!
//! A loop inside `vectorized!` is compiled once per instruction set and the widest one the machine
//! has is chosen at run time. Everything it calls must be `#[inline(always)]`, or it stays scalar.

use crate::Element;
use crate::transpose::Transpose;
use core::cell::RefCell;
use core::marker::PhantomData;
use std::thread::LocalKey;

/// Partial sums of a reduction: two AVX-512 registers of f32, to hide the latency of the addition.
pub(crate) const LANES: usize = 32;

/// Elements that one task of an elementwise op handles: small enough to balance, large enough to
/// outweigh handing it out. Independent of the number of threads.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Evaluates an expression with the widest vector instructions of the machine.
macro_rules! vectorized {
    ($work:expr) => {
        $crate::simd::dispatch(
            #[inline(always)]
            || $work,
        )
    };
}
pub(crate) use vectorized;

/// Runs `work`, which must be `#[inline(always)]`: `vectorized!` sees to that.
#[inline(always)]
pub(crate) fn dispatch<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// Transcendental functions in a form that loops over vectors, and this type's scratch memory.
pub trait VectorMath: Sized + 'static {
    /// e^x; f32: within 2 ulp where the result is a normal number, 0 below, NaN stays NaN.
    fn vexp(self) -> Self;
    /// Carries out a transposition with the widest instructions that there are for it.
    fn transpose(work: Transpose<'_, Self>);
    /// Scratch buffers of this thread that are not in use.
    fn pool() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>>;
}

impl VectorMath for f32 {
    #[inline(always)]
    fn vexp(self) -> f32 {
        /// Below this, the result is not a normal number and becomes 0: subnormals are slow on some
        /// machines.
        const LOW: f32 = -87.336_54;
        const HIGH: f32 = 89.0;
        /// 1.5·2²³: adding it leaves the nearest integer in the low mantissa bits.
        const ROUND: f32 = 12_582_912.0;
        /// ln 2 as the sum of its nearest f32 and the rest.
        const LN2: f32 = core::f32::consts::LN_2;
        const LN2_REST: f32 = -1.904_654_3e-9;
        let x = if self < LOW { LOW } else { self };
        let x = if x > HIGH { HIGH } else { x };
        let shifted = x.mul_add(core::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-LN2_REST, n.mul_add(-LN2, x));
        // Taylor series of e^r to r⁷: |r| ≤ ½ ln 2, so the rest is below r⁸/8! = 5e-9.
        let mut p = 1.0_f32 / 5040.0;
        p = p.mul_add(r, 1.0 / 720.0);
        p = p.mul_add(r, 1.0 / 120.0);
        p = p.mul_add(r, 1.0 / 24.0);
        p = p.mul_add(r, 1.0 / 6.0);
        p = p.mul_add(r, 0.5);
        p = p.mul_add(r, 1.0);
        p = p.mul_add(r, 1.0);
        // 2ⁿ in two factors, so that neither leaves the range of exponents.
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        let y = p * power(half) * power(n.wrapping_sub(half));
        if self < LOW { 0.0 } else { y }
    }

    fn transpose(work: Transpose<'_, f32>) {
        #[cfg(target_arch = "x86_64")]
        let work = match crate::transpose::x86::transpose(work) {
            Ok(()) => return,
            Err(work) => work,
        };
        work.plain();
    }

    fn pool() -> &'static LocalKey<RefCell<Vec<Vec<f32>>>> {
        thread_local!(static POOL: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) });
        &POOL
    }
}

impl VectorMath for f64 {
    #[inline(always)]
    fn vexp(self) -> f64 {
        self.exp()
    }

    fn transpose(work: Transpose<'_, f64>) {
        work.plain();
    }

    fn pool() -> &'static LocalKey<RefCell<Vec<Vec<f64>>>> {
        thread_local!(static POOL: RefCell<Vec<Vec<f64>>> = const { RefCell::new(Vec::new()) });
        &POOL
    }
}

/// Lends `len` elements of this thread's scratch memory to `work`; their contents are left over
/// from earlier uses. Nested calls get buffers of their own, and all are kept for later calls.
pub(crate) fn with_scratch<T: Element, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    /// Bytes of a cache line, which the lent slice starts on.
    const LINE: usize = 64;
    let pad = LINE / size_of::<T>();
    let mut buffer = T::pool().with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < len + pad {
        buffer.resize(len + pad, T::zero());
    }
    let start = buffer.as_ptr().align_offset(LINE).min(pad);
    let result = work(&mut buffer[start..start + len]);
    T::pool().with_borrow_mut(|pool| pool.push(buffer));
    result
}

/// Cuts `sizes` consecutive pieces off a slice that is at least as long as all of them.
pub(crate) fn carve<T, const N: usize>(mut from: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| {
        let (piece, rest) = core::mem::take(&mut from).split_at_mut(size);
        from = rest;
        piece
    })
}

/// Combines partial results in a fixed order: halves with each other until one is left.
///
/// The lanes are passed by value, as in all sums of whole chunks here: an array that is changed in
/// place ends up in memory, which costs as much as the whole sum of a row. For the same reason
/// nothing touches the lanes where a row has no remainder.
#[inline(always)]
fn halves<T: Element>(lanes: [T; LANES], combine: impl Fn(T, T) -> T) -> T {
    let lanes: [T; 16] = core::array::from_fn(
        #[inline(always)]
        |j| combine(lanes[j], lanes[j + 16]),
    );
    let lanes: [T; 8] = core::array::from_fn(
        #[inline(always)]
        |j| combine(lanes[j], lanes[j + 8]),
    );
    let lanes: [T; 4] = core::array::from_fn(
        #[inline(always)]
        |j| combine(lanes[j], lanes[j + 4]),
    );
    combine(combine(lanes[0], lanes[2]), combine(lanes[1], lanes[3]))
}

/// Σ f(x).
#[inline(always)]
pub(crate) fn sum1<T: Element>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut acc = [T::zero(); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        acc = core::array::from_fn(
            #[inline(always)]
            |j| acc[j] + f(x[j]),
        );
    }
    if !rest.is_empty() {
        for (acc, &x) in acc.iter_mut().zip(rest) {
            *acc += f(x);
        }
    }
    halves(acc, |a, b| a + b)
}

/// Σ f(x, y).
#[inline(always)]
pub(crate) fn sum2<T: Element>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut acc = [T::zero(); LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        acc = core::array::from_fn(
            #[inline(always)]
            |j| acc[j] + f(x[j], y[j]),
        );
    }
    if !x_rest.is_empty() {
        for ((acc, &x), &y) in acc.iter_mut().zip(x_rest).zip(y_rest) {
            *acc += f(x, y);
        }
    }
    halves(acc, |a, b| a + b)
}

/// The largest element; a NaN is passed over, an empty slice gives −∞.
#[inline(always)]
pub(crate) fn max<T: Element>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut acc = [T::neg_infinity(); LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for x in chunks {
        acc = core::array::from_fn(
            #[inline(always)]
            |j| larger(acc[j], x[j]),
        );
    }
    if !rest.is_empty() {
        for (acc, &x) in acc.iter_mut().zip(rest) {
            *acc = larger(*acc, x);
        }
    }
    halves(acc, larger)
}

/// Replaces x by exp(x − shift) and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum<T: Element>(x: &mut [T], shift: T) -> T {
    let mut acc = [T::zero(); LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for x in chunks {
        let y: [T; LANES] = core::array::from_fn(
            #[inline(always)]
            |j| (x[j] - shift).vexp(),
        );
        acc = core::array::from_fn(
            #[inline(always)]
            |j| acc[j] + y[j],
        );
        *x = y;
    }
    if !rest.is_empty() {
        for (acc, x) in acc.iter_mut().zip(rest) {
            *x = (*x - shift).vexp();
            *acc += *x;
        }
    }
    halves(acc, |a, b| a + b)
}

/// A slice that parallel tasks write disjoint parts of.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a unique borrow of a slice; access goes through `part`, whose contract keeps
// the tasks' parts apart.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// No other living part overlaps this one.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part outside its slice");
        // SAFETY: within the slice, as just checked; unique, as the caller promises.
        unsafe { core::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Roundings of f32 in a sum of at most a hundred positive terms.
    const ROUNDING: f64 = 1e-6;

    /// Rounding of the argument reduction, the series and the two scalings.
    const EXP_ULPS: f64 = 2.0;

    #[test]
    fn exp_is_within_two_ulp_over_the_whole_range() {
        let mut worst = 0.0_f64;
        let mut x = -87.33_f32;
        while x < 88.72 {
            let y = vectorized!(x.vexp());
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            worst = worst.max((f64::from(y) - exact).abs() / ulp);
            x += 1.37e-3;
        }
        assert!(worst <= EXP_ULPS, "{worst} ulp");
        assert_eq!(0.0_f32.vexp(), 1.0);
        assert_eq!((-88.0_f32).vexp(), 0.0);
        assert_eq!(f32::NEG_INFINITY.vexp(), 0.0);
        assert_eq!(100.0_f32.vexp(), f32::INFINITY);
        assert!(f32::NAN.vexp().is_nan());
    }

    #[test]
    fn reductions_cover_every_length() {
        for len in 0..100 {
            let x: Vec<f32> = (0..len).map(|i| (i * 7 % 31) as f32 - 11.0).collect();
            assert_eq!(sum1(&x, |x| x), x.iter().sum::<f32>());
            assert_eq!(sum2(&x, &x, |a, b| a * b), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn sums_of_exponentials_and_what_is_not_a_number() {
        for len in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..len).map(|i| (i * 7 % 31) as f32 / 9.0 - 1.0).collect();
            let mut y = x.clone();
            let sum = exp_sum(&mut y, 0.5);
            for (x, &y) in x.iter().zip(&y) {
                assert_eq!(y, (x - 0.5).vexp());
            }
            let exact: f64 = y.iter().map(|&y| f64::from(y)).sum();
            assert!((f64::from(sum) - exact).abs() <= ROUNDING * exact, "{len}");
            for place in 0..len as usize {
                let mut x = x.clone();
                x[place] = f32::NAN;
                assert!(sum1(&x, |x| x).is_nan() && sum2(&x, &x, |a, b| a * b).is_nan());
                assert!(!max(&x).is_nan(), "a NaN is passed over");
                assert!(exp_sum(&mut x, 0.5).is_nan());
            }
        }
    }

    #[test]
    fn scratch_nests_and_starts_on_a_cache_line() {
        with_scratch(10, |outer: &mut [f32]| {
            outer.fill(1.0);
            with_scratch(1000, |inner: &mut [f32]| inner.fill(2.0));
            assert_eq!(outer, [1.0; 10]);
            assert_eq!(outer.as_ptr() as usize % 64, 0);
        });
    }
}
