//! Comparing an op with the CPU backend in f64 on the same operands, at sizes that the conformance kit
//! does not reach; and the same bits in whatever order threads run.

use sar_backend_cpu::{CpuBackend, NarrowCpu};
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::Real;
use sar_math::backend::{Backend, Buffers};

/// Values of f32 may be wrong by as many times the error of the CPU backend in f32, which sums in
/// another order.
const VALUES: f64 = 2.0;
/// Gradients pass through twice as many sums.
const GRADIENTS: f64 = 3.0;
/// Where the CPU backend is exact by luck: eight roundings of f32, of the largest element.
const F32_FLOOR: f64 = 5e-7;
/// As [`F32_FLOOR`], of what is stored in bf16: a rounding, half a step of eight significant bits.
const BF16_FLOOR: f64 = 1.0 / 512.0;
/// Tensor cores cut off what does not fit beside the largest of the numbers that they add, where an f32 sum
/// rounds; over 1,360 terms in blocks of eight that is up to 2.4e-6 of the largest sum.
const TENSOR_CORES: f64 = 2.4e-6;

/// What the numbers of an output are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Stored as activations are, or taken from such.
    Value,
    /// A gradient stored as activations are.
    Gradient,
    /// A gradient of parameters: f32 throughout, from operands that all types hold.
    Wide,
}

/// An output of an op: name, kind, elements.
pub type Output = (&'static str, Kind, Vec<f64>);

/// An op with its operands.
pub trait Case {
    /// All outputs on a backend.
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error>;
}

/// Numbers of about variance 1/3 that every storage type holds.
pub fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
        f64::from(bf16::from_f64(2.0 * unit - 1.0))
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn host<B: Buffers>(values: &[f64]) -> Vec<B::Host> {
    values.iter().map(|&value| B::Host::of(value)).collect()
}

/// An activation that holds `values`.
pub fn activation<B: Buffers>(backend: &B, values: &[f64]) -> Result<B::Activation, B::Error> {
    let mut buffer = backend.activation(values.len())?;
    backend.upload(&host::<B>(values), &mut buffer, 0)?;
    Ok(buffer)
}

/// As [`activation`], f32 or wider.
pub fn accum<B: Buffers>(backend: &B, values: &[f64]) -> Result<B::Accum, B::Error> {
    let mut buffer = backend.accum(values.len())?;
    backend.upload_accum(&host::<B>(values), &mut buffer, 0)?;
    Ok(buffer)
}

/// As [`activation`], parameters.
#[allow(dead_code)] // not every test has any
pub fn params<B: Buffers>(backend: &B, values: &[f64]) -> Result<B::Params, B::Error> {
    let mut buffer = backend.params(values.len())?;
    backend.upload_params(&host::<B>(values), &mut buffer, 0)?;
    Ok(buffer)
}

/// The first `len` elements.
pub fn read<B: Buffers>(
    backend: &B,
    from: &B::Activation,
    len: usize,
) -> Result<Vec<f64>, B::Error> {
    let mut host = vec![B::Host::of(0.0); len];
    backend.download(from, 0, &mut host)?;
    Ok(host.iter().map(|value| value.wide()).collect())
}

/// As [`read`], f32 or wider.
pub fn read_accum<B: Buffers>(
    backend: &B,
    from: &B::Accum,
    len: usize,
) -> Result<Vec<f64>, B::Error> {
    let mut host = vec![B::Host::of(0.0); len];
    backend.download_accum(from, 0, &mut host)?;
    Ok(host.iter().map(|value| value.wide()).collect())
}

/// Largest error, of the largest expected element.
fn error(expected: &[f64], found: &[f64]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |a, b| a.max(b.abs()));
    let errors = expected.iter().zip(found).map(|(e, f)| (e - f).abs() / largest);
    // A NaN is an error too.
    errors.fold(0.0, |a, b| if b.is_nan() { f64::INFINITY } else { a.max(b) })
}

/// Runs in every order of threads, which must agree to the bit.
fn in_every_order<S: Storage>(case: &impl Case) -> Vec<Output> {
    let run = |device: Result<_, _>| {
        case.run(&CudaBackend::<S, TestDevice>::new(device.unwrap()).unwrap()).unwrap()
    };
    let mut devices = TestDevice::in_every_order();
    let first = run(devices.next().unwrap());
    for again in devices.map(run) {
        for ((name, _, a), (_, _, b)) in first.iter().zip(&again) {
            let same =
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {name} depends on the order of threads", S::NAME);
        }
    }
    first
}

/// Both storage types against f64.
pub fn compare(case: &impl Case) {
    let exact = case.run(&CpuBackend::<f64>::new()).unwrap();
    let single = case.run(&CpuBackend::<f32>::new()).unwrap();
    let f32s = in_every_order::<f32>(case);
    let narrow_cpu = case.run(&NarrowCpu::new()).unwrap();
    let narrow = in_every_order::<bf16>(case);
    for (i, (name, kind, expected)) in exact.iter().enumerate() {
        let factor = if *kind == Kind::Value { VALUES } else { GRADIENTS };
        let cpu = error(expected, &single[i].2);
        let wide = factor * cpu + F32_FLOOR;
        let found = error(expected, &f32s[i].2);
        assert!(found <= wide, "f32: {name} is wrong by {found:e}; the CPU backend by {cpu:e}");
        let cpu = error(expected, &narrow_cpu[i].2);
        let floor = if *kind == Kind::Wide { F32_FLOOR + TENSOR_CORES } else { BF16_FLOOR };
        let found = error(expected, &narrow[i].2);
        let allowed = factor * cpu + floor;
        assert!(found <= allowed, "bf16: {name} is wrong by {found:e}; the CPU backend by {cpu:e}");
    }
}
