//! The conformance kit on the CUDA backend, its kernels executed on the CPU, in both storage types.

#![allow(clippy::unwrap_used)]

use sar_backend_cuda::{CudaBackend, Device as _, Storage, TestDevice};
use sar_math::conformance::{Case, fingerprints};

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

/// At the size where work is split among threads, every op gives the same bits in every order of them.
fn same_bits_in_every_order<S: Storage>() {
    let bits = |device: Result<_, _>| -> Vec<_> {
        let backend = CudaBackend::<S, TestDevice>::new(device.unwrap()).unwrap();
        let all = fingerprints().into_iter();
        all.map(|(op, fingerprint)| (op, fingerprint(&backend, Case::new(0)).unwrap())).collect()
    };
    let mut devices = TestDevice::in_every_order();
    let first = bits(devices.next().unwrap());
    assert!(first.iter().all(|(_, bits)| !bits.is_empty()));
    for again in devices.map(bits) {
        for ((op, a), (_, b)) in first.iter().zip(&again) {
            assert!(a == b, "{}: {op} depends on the order of threads", S::NAME);
        }
    }
}

#[test]
fn same_bits_in_every_order_in_f32() {
    same_bits_in_every_order::<f32>();
}

#[test]
fn same_bits_in_every_order_in_bf16() {
    same_bits_in_every_order::<sar_backend_cuda::bf16>();
}

mod f32 {
    sar_math::conformance_tests!(super::backend::<f32>());
}

mod bf16 {
    sar_math::conformance_tests!(super::backend::<sar_backend_cuda::bf16>());
}
