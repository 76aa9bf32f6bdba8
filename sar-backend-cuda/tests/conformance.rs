//! The conformance kit on the CUDA backend, its kernels executed on the CPU, in both storage types.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Device as _, Storage, TestDevice};

fn backend<S: Storage>() -> CudaBackend<S, TestDevice> {
    CudaBackend::new(TestDevice::new().unwrap()).unwrap()
}

/// Else all that is asked for below would hold on the emulator, and say nothing.
#[test]
fn the_device_is_the_one_that_is_asked_for() {
    let asked = |name| std::env::var_os(name).is_some();
    let device = TestDevice::new().unwrap();
    assert_eq!(matches!(device, TestDevice::Gpu(_)), asked("SAR_REQUIRE_GPU"));
    if asked("SAR_PTX") && !asked("SAR_REQUIRE_GPU") {
        assert!(device.describe().starts_with("PTX of NVRTC"), "{}", device.describe());
    }
}

mod f32 {
    sar_math::conformance_tests!(super::backend::<f32>());
}

mod bf16 {
    sar_math::conformance_tests!(super::backend::<sar_backend_cuda::bf16>());
}
