//! The CUDA backend: activations in bf16 or f32, master weights and sums in f32.
//!
//! Kernels are the `.cu` files of `kernels/`, one for each file of `ops`, compiled at run time for
//! the GPU of the machine; matrix products go through cuBLASLt. All NVIDIA libraries are loaded at
//! run time, so building needs no CUDA. With the feature `emulator` (tests) the same kernels run on
//! the CPU, from their sources (`Emulator`) or from the PTX that NVRTC makes of them (`PtxDevice`).
//!
//! From the bottom up: [`Device`] (memory, launches, products; a GPU or the emulator), the buffers
//! on it, `ops` (one file per op: grids, arguments and scratch of its kernels), and the trait
//! implementations, which check shapes on entry: `transformer`, `loss`, `rollout`, `tokenizer`,
//! `optimizer`.

mod backend;
mod cache;
mod device;
mod embedding;
mod error;
mod gemm;
pub mod kernels;
mod libraries;
mod loss;
mod memory;
mod nvrtc;
mod ops;
mod optimizer;
mod params;
pub mod probe;
pub mod resources;
mod rollout;
mod storage;
mod tokenizer;
mod transformer;
mod work;

pub use backend::{CudaBackend, SCRATCH};
pub use cache::Cache;
pub use device::{
    Device, Driver, Dry, GuidanceRamp, Kernel, KernelArg, Launch, ScaleTable, ScaleWeights,
};
#[cfg(feature = "emulator")]
pub use device::{Emulator, ORDERS, PtxDevice, TestDevice, lend_emulator};
pub use error::CudaError;
pub use gemm::{DataType, Gemm, Matrix, Sample};
pub use half::bf16;
pub use libraries::Library;
pub use memory::{Address, Buffer};
pub use nvrtc::{Compiled, Nvrtc};
pub use params::Params;
pub use storage::{Storage, Stored};
pub use work::{Tally, Work};
