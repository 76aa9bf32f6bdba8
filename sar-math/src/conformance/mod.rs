//! Checks that any backend can run: the contract of [`crate::backend`] in executable form.
//!
//! Each op has one file here, named after its method. It contains the plain f64 formula that *is*
//! the specification: straight loops that read like the equation. [`linear::check`] and its
//! siblings derive operands from a [`Case`] (a seed) and hold a backend to these properties:
//!
//! - every output equals that of the formula, within a [`Tolerance`] that follows from the number
//!   type;
//! - every gradient equals the fourth-order central difference of the formula, contracted with
//!   random cotangents, for each operand;
//! - parameter gradients add to what is there, activation gradients overwrite it (or add, where a
//!   [`Write`](crate::backend::Write) argument says so), and whatever does not belong to the op
//!   (columns of `d_ada`, gaps between parameters, the rest of a longer buffer) stays as it was;
//! - the same operands give the same bits, and a row gives the same bits alone as among others;
//! - one element too few, in any one operand, gives an error of kind
//!   [`Shape`](crate::backend::ErrorKind::Shape) that names the op, and no panic;
//! - all this also holds at the edges: one token, one row, rectangular grids, equal and saturated
//!   scores, ties, zero vectors, `scale_mul` at and above its ceiling, weights of zero.
//!
//! The `fingerprint` next to each `check` runs the op at a size where work is split among threads.
//! It compares the values, and the gradients along one direction, with the formula as well, and
//! returns the bits of the outputs, which must be equal on two thread pools and are meant to be
//! recorded across releases.
//!
//! # How to write a backend
//!
//! 1. Implement [`Buffers`](crate::backend::Buffers): one struct that owns the device, its error type
//!    (`From<ShapeError>` and a [`kind`](crate::backend::BackendError::kind)), and the buffer types.
//!    Run [`buffers::check`] before anything else.
//! 2. Implement an op's trait method by method, each forward with its backward, and run its check:
//!    a check asks only for the trait that has the op. The reference backend has a file of the same
//!    name with the same step written out on the CPU.
//! 3. Check shapes at the door with [`ShapeError`](crate::backend::ShapeError), naming the method:
//!    a buffer may be longer than needed, never shorter. Then nothing below can panic.
//! 4. Accumulate in f32 or wider; add partial sums in an order that depends on the shape alone.
//! 5. One line runs every check as a test of its own, or only those of the ops that exist so far:
//! ```ignore
//! // tests/conformance.rs of the backend; in its Cargo.toml, under [dev-dependencies]:
//! // sar-math = { …, features = ["conformance"] }
//! mod f32 {
//!     sar_math::conformance_tests!(my_backend::MyBackend::new());
//! }
//! mod f64_so_far {
//!     sar_math::conformance_tests!(my_backend::MyBackend::new(); buffers linear gelu);
//! }
//! ```
//!
//! and [`run_all`] gives the same as a table, which `sar check` prints. The checks take any seed,
//! so a property-testing crate can drive them further than the three seeds of the macro.
//!
//! A failure is a [`Mismatch`]: op, property, element, what the formula gives and what was found. A
//! backend that stores activations narrower than f32 is recognised by a round trip and held to
//! [wider tolerances](Tolerance::of); cases whose scores would drown in its rounding are left out.

pub mod adamw;
pub mod area_resize;
pub mod area_tokens;
pub mod attention;
pub mod buffers;
pub mod cached_attention;
pub mod choose_codes;
pub mod class_embedding;
pub mod code_map;
pub mod conv2d;
pub mod cross_entropy;
pub mod ema;
pub mod gelu;
pub mod grad_norm;
pub mod group_norm;
pub mod guide;
pub mod keep_codes;
pub mod linear;
pub mod merge_ids;
pub mod nearest_code;
pub mod positions;
pub mod residual_norm;
pub mod rollout_inputs;
pub mod scale_sums;
pub mod silu;
pub mod soft_cross_entropy;
pub mod spatial_attention;
pub mod squared_error;
pub mod token_embedding;
pub mod upsample_nearest;
pub mod vector_quantize;

mod case;
mod full_size;
mod loss_rows;
mod math;
mod pointwise;
mod rig;
mod subject;
#[cfg(test)]
mod tests;
mod verdict;

pub use case::Case;
pub use verdict::{Fault, Mismatch, OpReport, Report, Tolerance};

use crate::backend::Backend;
use alloc::vec::Vec;

/// A check or a fingerprint of one op.
pub type OpFn<B, T> = fn(&B, Case) -> Result<T, Mismatch>;

/// Calls a macro with the names of all ops, in the order of the traits: the one list of them.
///
/// `residual_norm` covers `renorm`; each op covers its backward.
#[macro_export]
macro_rules! for_each_op {
    ($callback:path $(, $($rest:tt)*)?) => {
        $callback! {
            [
                buffers linear residual_norm attention gelu silu class_embedding positions
                token_embedding cross_entropy soft_cross_entropy scale_sums area_tokens
                nearest_code rollout_inputs code_map choose_codes guide merge_ids keep_codes
                cached_attention conv2d group_norm upsample_nearest spatial_attention area_resize vector_quantize
                squared_error grad_norm adamw ema
            ]
            $($($rest)*)?
        }
    };
}

macro_rules! tables {
    ([$($op:ident)*]) => {
        /// Every op and its check.
        pub fn checks<B: Backend>() -> Vec<(&'static str, OpFn<B, Report>)> {
            alloc::vec![$((stringify!($op), $op::check::<B> as OpFn<B, Report>)),*]
        }

        /// Every op and its fingerprint.
        pub fn fingerprints<B: Backend>() -> Vec<(&'static str, OpFn<B, Vec<u64>>)> {
            alloc::vec![$((stringify!($op), $op::fingerprint::<B> as OpFn<B, Vec<u64>>)),*]
        }
    };
}

for_each_op!(tables);

/// Checks every op on one case, and continues after a failure.
pub fn run_all<B: Backend>(backend: &B, seed: u64) -> Vec<OpReport> {
    let report = |(op, check): (_, OpFn<B, Report>)| OpReport {
        op,
        outcome: check(backend, Case::new(seed)),
    };
    checks().into_iter().map(report).collect()
}

/// Writes a `#[test]` for the check of every op, or of those named behind a semicolon, on a backend given
/// as an expression: see [How to write a backend](crate::conformance#how-to-write-a-backend).
#[macro_export]
macro_rules! conformance_tests {
    ($backend:expr) => {
        $crate::for_each_op!($crate::conformance_test_of_each, $backend);
    };
    ($backend:expr; $($op:ident)+) => {
        $crate::conformance_test_of_each!([$($op)+] $backend);
    };
}

/// The tests of [`conformance_tests`], op by op.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_test_of_each {
    ([$($op:ident)*] $backend:expr) => {
        $(
            #[test]
            fn $op() {
                let backend = $backend;
                for seed in 0..3 {
                    let case = $crate::conformance::Case::new(seed);
                    if let Err(mismatch) = $crate::conformance::$op::check(&backend, case) {
                        panic!("seed {seed}: {mismatch}");
                    }
                }
                let case = $crate::conformance::Case::new(0);
                if let Err(mismatch) = $crate::conformance::$op::fingerprint(&backend, case) {
                    panic!("at full size: {mismatch}");
                }
            }
        )*
    };
}
