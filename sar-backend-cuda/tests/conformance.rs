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

/// Beside the CPU backend at the same precision: an op may have twice its error, and a gradient three times.
mod beside_the_cpu {
    use super::*;
    use sar_backend_cpu::{CpuBackend, NarrowCpu};
    use sar_math::backend::Backend;
    use sar_math::conformance::{Report, run_all};

    const VALUES: f64 = 2.0;
    const GRADIENTS: f64 = 3.0;
    /// Allowed besides, where the CPU backend is exact by luck: of values one rounding to what is stored, of the
    /// largest element.
    const VALUE_FLOOR: f64 = 1.0;
    /// The gradient of a norm whose values hardly differ: 56 roundings more than three times the CPU backend's.
    const F32_GRADIENT_FLOOR: f64 = 64.0;
    /// Attention over a map rounds its probabilities for the tensor cores: two roundings more.
    const BF16_GRADIENT_FLOOR: f64 = 4.0;
    const CASES: u64 = 8;

    fn reports<B: Backend>(backend: &B, seed: u64) -> Vec<Report> {
        run_all(backend, seed).into_iter().map(|report| report.outcome.unwrap()).collect()
    }

    /// `rounding` is what storing changes at most, `floor` that of gradients in such.
    fn compare<S: Storage>(reference: &impl Backend, rounding: f64, floor: f64) {
        for seed in 0..CASES {
            let all = reports(&backend::<S>(), seed).into_iter().zip(reports(reference, seed));
            for (found, cpu) in all {
                let allowed = VALUES * cpu.value_error + VALUE_FLOOR * rounding;
                let at = format!("{} of {}, seed {seed}", found.op, S::NAME);
                assert!(found.value_error <= allowed, "{at}: {found:?}, the CPU backend {cpu:?}");
                let [ours, its] = [found, cpu].map(|report| report.gradient_error.unwrap_or(0.0));
                let allowed = GRADIENTS * its + floor * rounding;
                assert!(ours <= allowed, "gradient, {at}: {found:?}, the CPU backend {cpu:?}");
            }
        }
    }

    #[test]
    fn no_op_is_less_exact_in_f32() {
        let rounding = f64::from(f32::EPSILON) / 2.0;
        compare::<f32>(&CpuBackend::<f32>::new(), rounding, F32_GRADIENT_FLOOR);
    }

    #[test]
    fn no_op_is_less_exact_in_bf16() {
        // Half a step of eight significant bits.
        compare::<sar_backend_cuda::bf16>(&NarrowCpu::new(), 1.0 / 512.0, BF16_GRADIENT_FLOOR);
    }
}
