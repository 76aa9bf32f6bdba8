//! The reference backend: every op written out on the CPU, in `f32` to train and `f64` to check.
//!
//! One file per op in `ops`, named as in `sar_math::conformance`; the trait implementations
//! (`transformer`, `embedding`, `loss`, `rollout`, `tokenizer`, `optimizer`) check shapes at the door and
//! call them.
//!
//! Buffers are flat, since an op is given its dimensions with each call. Where it multiplies matrices it looks
//! at them as ndarray's views (`mat`), whose strides say what is transposed or lies between other heads, and
//! which are split among the threads; loops over elements run over slices.

mod buffer;
mod embedding;
mod error;
mod loss;
mod mat;
mod matmul;
#[cfg(feature = "narrow")]
mod narrow;
mod ops;
mod optimizer;
mod rollout;
mod simd;
mod tokenizer;
mod transformer;
mod transpose;

pub use buffer::Buffer;
pub use error::CpuError;
#[cfg(feature = "narrow")]
pub use narrow::NarrowCpu;

use core::marker::PhantomData;
use sar_math::Real;

/// The two number types the backend is built for.
pub trait Element: Real + num_traits::NumAssign + sealed::Sealed {}
impl Element for f32 {}
impl Element for f64 {}

mod sealed {
    pub trait Sealed: crate::simd::VectorMath + crate::ops::conv_kernel::Kernels {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The CPU backend; `f32` or `f64` throughout.
#[derive(Debug, Default)]
pub struct CpuBackend<T> {
    element: PhantomData<T>,
    /// What becomes of a number that is stored as an activation, where an op reads what it stored; itself where there
    /// is none.
    stored: Option<fn(T) -> T>,
}

impl<T: Element> CpuBackend<T> {
    /// A backend on the current rayon pool.
    pub fn new() -> Self {
        Self { element: PhantomData, stored: None }
    }
}
