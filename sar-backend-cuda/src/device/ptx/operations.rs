//! Instructions that each thread carries out for itself: one function per name, which computes a whole warp.
//!
//! Only the instructions that NVRTC uses in the project's kernels are here; any other is refused when a
//! kernel is read. Results are those of the PTX ISA, except for the payloads of NaNs, which nothing reads;
//! where the ISA allows an error (`ex2.approx`, `rcp.approx`), they have none.

use core::cmp::Ordering;
use half::bf16;

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// A register of every thread of a warp; of a narrower value only the low bits count.
pub(super) type Row = [u64; WARP];

/// Computes a row from up to four rows.
pub(super) type Lanes = fn(&mut Row, [&Row; 4]);

/// A value as a register holds it.
trait Bits: Copy {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! bits {
    ($($type:ty, $of:expr, $bits:expr;)*) => {$(
        impl Bits for $type {
            #[inline(always)]
            fn of(bits: u64) -> Self {
                $of(bits)
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                $bits(self)
            }
        }
    )*};
}

bits!(
    bool, |bits| bits & 1 == 1, u64::from;
    u16, |bits| bits as u16, u64::from;
    i16, |bits| bits as i16, |value| u64::from(value as u16);
    u32, |bits| bits as u32, u64::from;
    i32, |bits| bits as i32, |value| u64::from(value as u32);
    u64, |bits| bits, |value| value;
    i64, |bits| bits as i64, |value| value as u64;
    f32, |bits| f32::from_bits(bits as u32), |value: f32| u64::from(value.to_bits());
    f64, f64::from_bits, f64::to_bits;
);

/// `op!(a: f32, b: f32 => a + b)`: the operation, and how many operands it takes.
macro_rules! op {
    ($($name:ident: $type:ty),+ => $value:expr) => {{
        fn apply(to: &mut Row, from: [&Row; 4]) {
            for lane in 0..WARP {
                let mut _operands = from.iter();
                $(let $name = <$type as Bits>::of(_operands.next().map_or(0, |row| row[lane]));)+
                to[lane] = Bits::bits($value);
            }
        }
        Some((apply as Lanes, [$(stringify!($name)),+].len()))
    }};
}

/// The operation of a name, and the number of its operands.
pub(super) fn operation(name: &str) -> Option<(Lanes, usize)> {
    let (kind, types) = name.split_once('.')?;
    match kind {
        "mov" | "cvta" => same(name),
        "setp" => compare(types),
        "selp" => op!(a: u64, b: u64, which: bool => if which { a } else { b }),
        "cvt" => convert(types),
        _ => whole_numbers(name).or_else(|| fractions(name)),
    }
}

fn same(name: &str) -> Option<(Lanes, usize)> {
    // Addresses of global memory are the same in the generic space.
    let known = ["mov.pred", "mov.b16", "mov.u16", "mov.b32", "mov.u32", "mov.f32"];
    let wide = ["mov.b64", "mov.u64", "mov.f64", "cvta.to.global.u64"];
    (known.contains(&name) || wide.contains(&name)).then(|| op!(a: u64 => a))?
}

fn whole_numbers(name: &str) -> Option<(Lanes, usize)> {
    match name {
        "add.s16" | "add.u16" => op!(a: u16, b: u16 => a.wrapping_add(b)),
        "sub.s16" | "sub.u16" => op!(a: u16, b: u16 => a.wrapping_sub(b)),
        "add.s32" | "add.u32" => op!(a: u32, b: u32 => a.wrapping_add(b)),
        "add.s64" | "add.u64" => op!(a: u64, b: u64 => a.wrapping_add(b)),
        "sub.s32" | "sub.u32" => op!(a: u32, b: u32 => a.wrapping_sub(b)),
        "sub.s64" | "sub.u64" => op!(a: u64, b: u64 => a.wrapping_sub(b)),
        "mul.lo.s32" | "mul.lo.u32" => op!(a: u32, b: u32 => a.wrapping_mul(b)),
        "mul.lo.s64" | "mul.lo.u64" => op!(a: u64, b: u64 => a.wrapping_mul(b)),
        "mul.hi.u32" => op!(a: u32, b: u32 => ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "mul.hi.s32" => op!(a: i32, b: i32 => ((i64::from(a) * i64::from(b)) >> 32) as i32),
        "mul.wide.u16" => op!(a: u16, b: u16 => u32::from(a) * u32::from(b)),
        "mul.wide.u32" => op!(a: u32, b: u32 => u64::from(a) * u64::from(b)),
        "mul.wide.s32" => op!(a: i32, b: i32 => i64::from(a) * i64::from(b)),
        "mad.lo.s32" | "mad.lo.u32" => {
            op!(a: u32, b: u32, c: u32 => a.wrapping_mul(b).wrapping_add(c))
        }
        "mad.lo.s64" | "mad.lo.u64" => {
            op!(a: u64, b: u64, c: u64 => a.wrapping_mul(b).wrapping_add(c))
        }
        "mad.wide.s32" => {
            op!(a: i32, b: i32, c: i64 => (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        "mad.wide.u32" => {
            op!(a: u32, b: u32, c: u64 => (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        // A GPU does not stop at a division by zero, but gives all ones.
        "div.s32" => op!(a: i32, b: i32 => if b == 0 { -1 } else { a.wrapping_div(b) }),
        "div.u16" => op!(a: u16, b: u16 => a.checked_div(b).unwrap_or(u16::MAX)),
        "rem.u16" => op!(a: u16, b: u16 => a.checked_rem(b).unwrap_or(a)),
        "mul.lo.s16" | "mul.lo.u16" => op!(a: u16, b: u16 => a.wrapping_mul(b)),
        "div.u32" => op!(a: u32, b: u32 => a.checked_div(b).unwrap_or(u32::MAX)),
        "div.s64" => op!(a: i64, b: i64 => if b == 0 { -1 } else { a.wrapping_div(b) }),
        "div.u64" => op!(a: u64, b: u64 => a.checked_div(b).unwrap_or(u64::MAX)),
        "rem.s32" => op!(a: i32, b: i32 => if b == 0 { a } else { a.wrapping_rem(b) }),
        "rem.u32" => op!(a: u32, b: u32 => a.checked_rem(b).unwrap_or(a)),
        "rem.s64" => op!(a: i64, b: i64 => if b == 0 { a } else { a.wrapping_rem(b) }),
        "rem.u64" => op!(a: u64, b: u64 => a.checked_rem(b).unwrap_or(a)),
        "min.s32" => op!(a: i32, b: i32 => a.min(b)),
        "max.s32" => op!(a: i32, b: i32 => a.max(b)),
        "min.u32" => op!(a: u32, b: u32 => a.min(b)),
        "max.u32" => op!(a: u32, b: u32 => a.max(b)),
        "min.s64" => op!(a: i64, b: i64 => a.min(b)),
        "max.s64" => op!(a: i64, b: i64 => a.max(b)),
        "min.u64" => op!(a: u64, b: u64 => a.min(b)),
        "max.u64" => op!(a: u64, b: u64 => a.max(b)),
        "neg.s32" => op!(a: i32 => a.wrapping_neg()),
        "neg.s64" => op!(a: i64 => a.wrapping_neg()),
        _ => bits_of_numbers(name),
    }
}

fn bits_of_numbers(name: &str) -> Option<(Lanes, usize)> {
    match name {
        "and.pred" | "and.b16" | "and.b32" | "and.b64" => op!(a: u64, b: u64 => a & b),
        "or.pred" | "or.b16" | "or.b32" | "or.b64" => op!(a: u64, b: u64 => a | b),
        "xor.pred" | "xor.b16" | "xor.b32" | "xor.b64" => op!(a: u64, b: u64 => a ^ b),
        "not.pred" => op!(a: bool => !a),
        "not.b16" => op!(a: u16 => !a),
        "not.b32" => op!(a: u32 => !a),
        "not.b64" => op!(a: u64 => !a),
        // Shifts by the width and more give what shifting bit by bit would.
        "shl.b32" => op!(a: u32, by: u32 => a.checked_shl(by).unwrap_or(0)),
        "shl.b64" => op!(a: u64, by: u32 => a.checked_shl(by).unwrap_or(0)),
        "shr.u32" | "shr.b32" => op!(a: u32, by: u32 => a.checked_shr(by).unwrap_or(0)),
        "shr.u64" | "shr.b64" => op!(a: u64, by: u32 => a.checked_shr(by).unwrap_or(0)),
        "shr.s32" => op!(a: i32, by: u32 => a >> by.min(31)),
        "shr.s64" => op!(a: i64, by: u32 => a >> by.min(63)),
        "brev.b32" => op!(a: u32 => a.reverse_bits()),
        "popc.b32" => op!(a: u32 => a.count_ones()),
        "clz.b32" => op!(a: u32 => a.leading_zeros()),
        "bfind.shiftamt.u32" => op!(a: u32 => if a == 0 { u32::MAX } else { a.leading_zeros() }),
        "bfi.b32" => op!(a: u32, b: u32, at: u32, len: u32 => {
            let field = field(at, len, 32) as u32;
            b & !field | a.checked_shl(at & 0xff).unwrap_or(0) & field
        }),
        "bfi.b64" => op!(a: u64, b: u64, at: u32, len: u32 => {
            let field = field(at, len, 64);
            b & !field | a.checked_shl(at & 0xff).unwrap_or(0) & field
        }),
        _ => None,
    }
}

/// `len` ones from bit `at` on, within `width` bits.
fn field(at: u32, len: u32, width: u32) -> u64 {
    let (at, len) = (at & 0xff, len & 0xff);
    let ones = |count: u32| 1u64.checked_shl(count.min(width)).unwrap_or(0).wrapping_sub(1);
    ones(at.saturating_add(len)) & !ones(at)
}

fn fractions(name: &str) -> Option<(Lanes, usize)> {
    match name {
        "add.f32" | "add.rn.f32" => op!(a: f32, b: f32 => a + b),
        "sub.f32" | "sub.rn.f32" => op!(a: f32, b: f32 => a - b),
        "mul.f32" | "mul.rn.f32" => op!(a: f32, b: f32 => a * b),
        "fma.rn.f32" => op!(a: f32, b: f32, c: f32 => a.mul_add(b, c)),
        "fma.rm.f32" => op!(a: f32, b: f32, c: f32 => fused_down(a, b, c)),
        "div.rn.f32" => op!(a: f32, b: f32 => a / b),
        "rcp.rn.f32" => op!(a: f32 => 1.0 / a),
        "rcp.approx.ftz.f32" => op!(a: f32 => flushed(1.0 / flushed(a))),
        "sqrt.rn.f32" => op!(a: f32 => a.sqrt()),
        "ex2.approx.ftz.f32" => op!(a: f32 => flushed(f64::from(flushed(a)).exp2() as f32)),
        "max.f32" => op!(a: f32, b: f32 => larger(a.into(), b.into()) as f32),
        "min.f32" => op!(a: f32, b: f32 => -larger(-f64::from(a), -f64::from(b)) as f32),
        "neg.f32" => op!(a: f32 => -a),
        "abs.f32" => op!(a: f32 => a.abs()),
        "add.f64" | "add.rn.f64" => op!(a: f64, b: f64 => a + b),
        "sub.f64" | "sub.rn.f64" => op!(a: f64, b: f64 => a - b),
        "mul.f64" | "mul.rn.f64" => op!(a: f64, b: f64 => a * b),
        "fma.rn.f64" => op!(a: f64, b: f64, c: f64 => a.mul_add(b, c)),
        "div.rn.f64" => op!(a: f64, b: f64 => a / b),
        "rcp.rn.f64" => op!(a: f64 => 1.0 / a),
        "sqrt.rn.f64" => op!(a: f64 => a.sqrt()),
        "max.f64" => op!(a: f64, b: f64 => larger(a, b)),
        "min.f64" => op!(a: f64, b: f64 => -larger(-a, -b)),
        "neg.f64" => op!(a: f64 => -a),
        "abs.f64" => op!(a: f64 => a.abs()),
        _ => None,
    }
}

/// Replaces a subnormal number by the zero of its sign.
fn flushed(a: f32) -> f32 {
    if a.is_subnormal() { 0.0f32.copysign(a) } else { a }
}

/// The larger of two numbers, where +0 is larger than -0; if one is NaN, the other.
fn larger(a: f64, b: f64) -> f64 {
    match a == b {
        true if a.is_sign_negative() => b,
        true => a,
        false => a.max(b),
    }
}

/// ab + c, rounded down.
fn fused_down(a: f32, b: f32, c: f32) -> f32 {
    // The product is exact in f64, and so is what rounding the sum loses there.
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let near = sum as f32;
    let above = f64::from(near) > sum || f64::from(near) == sum && lost < 0.0;
    if above { near.next_down() } else { near }
}

fn convert(types: &str) -> Option<(Lanes, usize)> {
    match types {
        "u16.u32" | "u16.u64" => op!(a: u16 => a),
        "u32.u16" | "u64.u16" => op!(a: u16 => a),
        "u32.u64" | "s32.s64" | "u64.u32" => op!(a: u32 => a),
        "s64.s32" => op!(a: i32 => i64::from(a)),
        "rn.f32.s32" => op!(a: i32 => a as f32),
        "rn.f32.u32" => op!(a: u32 => a as f32),
        "rn.f32.s64" => op!(a: i64 => a as f32),
        "rn.f32.u64" => op!(a: u64 => a as f32),
        "rn.f64.s32" => op!(a: i32 => f64::from(a)),
        "rn.f64.u32" => op!(a: u32 => f64::from(a)),
        "rn.f64.s64" => op!(a: i64 => a as f64),
        "rn.f64.u64" => op!(a: u64 => a as f64),
        "f64.f32" => op!(a: f32 => f64::from(a)),
        "rn.f32.f64" => op!(a: f64 => a as f32),
        // Out of range gives the nearest number in range; NaN gives the top bit, or zero from an f32.
        "rzi.s32.f32" => op!(a: f32 => a as i32),
        "rzi.u32.f32" => op!(a: f32 => a as u32),
        "rzi.s32.f64" => op!(a: f64 => if a.is_nan() { i32::MIN } else { a as i32 }),
        "rzi.u64.f64" => op!(a: f64 => if a.is_nan() { 1 << 63 } else { a as u64 }),
        "rmi.f32.f32" => op!(a: f32 => a.floor()),
        "sat.f32.f32" => op!(a: f32 => if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) }),
        "rn.bf16.f32" => op!(a: f32 => bf16_bits(a)),
        "rn.bf16x2.f32" => {
            op!(high: f32, low: f32 => u32::from(bf16_bits(high)) << 16 | u32::from(bf16_bits(low)))
        }
        _ => None,
    }
}

/// Rounds to nearest even; every NaN gives the same bits.
fn bf16_bits(a: f32) -> u16 {
    if a.is_nan() { 0x7fff } else { bf16::from_f32(a).to_bits() }
}

fn compare(types: &str) -> Option<(Lanes, usize)> {
    let (relation, type_name) = types.split_once('.')?;
    match type_name {
        "s16" => ordered_i16(relation),
        "s32" => ordered_i32(relation),
        "s64" => ordered_i64(relation),
        "u32" | "b32" => ordered_u32(relation),
        "u64" | "b64" => ordered_u64(relation),
        "u16" | "b16" => ordered_u16(relation),
        "f32" => fractions_f32(relation),
        "f64" => fractions_f64(relation),
        _ => None,
    }
}

macro_rules! ordered {
    ($($name:ident $type:ty;)*) => {$(
        fn $name(relation: &str) -> Option<(Lanes, usize)> {
            match relation {
                "eq" => op!(a: $type, b: $type => a == b),
                "ne" => op!(a: $type, b: $type => a != b),
                "lt" | "lo" => op!(a: $type, b: $type => a < b),
                "le" | "ls" => op!(a: $type, b: $type => a <= b),
                "gt" | "hi" => op!(a: $type, b: $type => a > b),
                "ge" | "hs" => op!(a: $type, b: $type => a >= b),
                _ => None,
            }
        }
    )*};
}

ordered!(
    ordered_i16 i16;
    ordered_i32 i32;
    ordered_i64 i64;
    ordered_u16 u16;
    ordered_u32 u32;
    ordered_u64 u64;
);

/// Comparisons of floating-point numbers: those that end in `u` also hold if either operand is NaN.
macro_rules! unordered {
    ($($name:ident $type:ty;)*) => {$(
        // With NaN, that a comparison does not hold does not mean that its opposite does.
        #[allow(clippy::neg_cmp_op_on_partial_ord)]
        fn $name(relation: &str) -> Option<(Lanes, usize)> {
            match relation {
                "eq" => op!(a: $type, b: $type => a == b),
                "ne" => op!(a: $type, b: $type => a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
                "lt" => op!(a: $type, b: $type => a < b),
                "le" => op!(a: $type, b: $type => a <= b),
                "gt" => op!(a: $type, b: $type => a > b),
                "ge" => op!(a: $type, b: $type => a >= b),
                "equ" => op!(a: $type, b: $type => !a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
                "neu" => op!(a: $type, b: $type => a != b),
                "ltu" => op!(a: $type, b: $type => !(a >= b)),
                "leu" => op!(a: $type, b: $type => !(a > b)),
                "gtu" => op!(a: $type, b: $type => !(a <= b)),
                "geu" => op!(a: $type, b: $type => !(a < b)),
                "num" => op!(a: $type, b: $type => !a.is_nan() && !b.is_nan()),
                "nan" => op!(a: $type, b: $type => a.is_nan() || b.is_nan()),
                _ => None,
            }
        }
    )*};
}

unordered!(
    fractions_f32 f32;
    fractions_f64 f64;
);
