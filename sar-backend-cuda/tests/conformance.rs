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
    /// Allowed besides, where the CPU backend is exact by luck, in roundings to what is stored of the largest element:
    /// of values, of gradients in f32, and in bf16.
    const VALUE_FLOOR: f64 = 1.0;
    const GRADIENT_FLOORS: [(&str, f64); 2] = [("f32", 8.0), ("bf16", 1.0)];
    /// As [`GRADIENT_FLOORS`], of attention over a map, whose probabilities are rounded for the tensor cores.
    const MORE: [(&str, &str, f64); 1] = [("bf16", "spatial_attention", 4.0)];
    const CASES: u64 = 8;

    fn reports<B: Backend>(backend: &B, seed: u64) -> Vec<Report> {
        run_all(backend, seed).into_iter().map(|report| report.outcome.unwrap()).collect()
    }

    fn gradient_floor(storage: &str, op: &str) -> f64 {
        let more =
            MORE.iter().find(|(s, o, _)| (*s, *o) == (storage, op)).map(|(.., floor)| *floor);
        let of_all = GRADIENT_FLOORS.iter().find(|(s, _)| *s == storage).map(|(_, floor)| *floor);
        more.or(of_all).unwrap()
    }

    /// `rounding` is what storing changes at most.
    fn compare<S: Storage>(reference: &impl Backend, rounding: f64) {
        let mut faults = Vec::new();
        for seed in 0..CASES {
            let all = reports(&backend::<S>(), seed).into_iter().zip(reports(reference, seed));
            for (found, cpu) in all {
                let mut hold = |what: &str, ours: f64, allowed: f64, its: f64| {
                    // Of what is no number, too.
                    if ours > allowed || ours.is_nan() {
                        let at = format!("{} {what} in {}, seed {seed}", found.op, S::NAME);
                        faults.push(format!(
                            "{at}: {ours:e} of {allowed:e}, the CPU backend {its:e}"
                        ));
                    }
                };
                let (ours, its) = (found.value_error, cpu.value_error);
                hold("values", ours, VALUES * its + VALUE_FLOOR * rounding, its);
                let [ours, its] = [found, cpu].map(|report| report.gradient_error.unwrap_or(0.0));
                let floor = gradient_floor(S::NAME, found.op) * rounding;
                hold("gradients", ours, GRADIENTS * its + floor, its);
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn no_op_is_less_exact_in_f32() {
        let rounding = f64::from(f32::EPSILON) / 2.0;
        compare::<f32>(&CpuBackend::<f32>::new(), rounding);
    }

    #[test]
    fn no_op_is_less_exact_in_bf16() {
        // Half a step of eight significant bits.
        compare::<sar_backend_cuda::bf16>(&NarrowCpu::new(), 1.0 / 512.0);
    }
}
