//! The reference backend: every op written out on the CPU, in `f32` to train and `f64` to check.
//!
//! One file per op in `ops`, named as in `sar_math::conformance`; the trait implementations
//! (`transformer`, `embedding`, `loss`, `rollout`, `tokenizer`, `optimizer`) check shapes at the door and
//! call them.
//!
//! Buffers are flat, since an op is given its dimensions with each call. For matrix products, ops
//! view them through ndarray (`mat`): the strides of a view say what is transposed or lies between
//! other heads, and views are split among the threads. Loops over elements run over slices.

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
    /// Conversion of a number that is stored as an activation, applied where an op reads what it
    /// stored; `None` leaves numbers as they are.
    stored: Option<fn(T) -> T>,
}

impl<T: Element> CpuBackend<T> {
    /// A backend on the current rayon pool.
    pub fn new() -> Self {
        Self { element: PhantomData, stored: None }
    }
}
