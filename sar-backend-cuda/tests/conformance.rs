//! The conformance kit on the CUDA backend, its kernels executed on the CPU, in both storage types.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Storage, TestDevice};

fn backend<S: Storage>() -> CudaBackend<S, TestDevice> {
    CudaBackend::new(TestDevice::new().unwrap()).unwrap()
}

mod f32 {
    sar_math::conformance_tests!(super::backend::<f32>());
}

mod bf16 {
    sar_math::conformance_tests!(super::backend::<sar_backend_cuda::bf16>());
}
