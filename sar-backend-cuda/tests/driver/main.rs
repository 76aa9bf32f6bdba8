//! The driver's side on a fake CUDA, without a GPU: `tests/fake_cuda` has the documented semantics of
//! the driver, NVRTC and cuBLASLt, and runs kernels on the emulator.

#![allow(clippy::unwrap_used)]

mod algorithms;
mod conformance;
mod fake;
mod faults;
mod gemm;
mod linear;
mod replay;
mod staging;
