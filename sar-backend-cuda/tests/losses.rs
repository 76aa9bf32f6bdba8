//! Losses on rows of the published size, beside the CPU backend in f64.

#![allow(clippy::unwrap_used)]

mod lengths;

use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::backend::{Buffers, LossDims, LossOps, TargetRows, TokenLoss};
use sar_math::philox::{Purpose, Stream};
use sar_math::{MAX_SCALES, Real, ScaleSchedule};

/// Rounding a sum in f64 to f32 once moves it by 2⁻²⁴ of itself at most.
const ROUNDED_ONCE: f64 = 1e-7;

const VOCAB: usize = 8912;
/// How much larger than the CPU's in f32 an error may be: sums are in another order.
const VALUE_FACTOR: f64 = 2.0;
const GRADIENT_FACTOR: f64 = 3.0;
/// A rounding of the logarithm of the sum and one of the result, of numbers about 10.
const VALUE_FLOOR: f64 = 2e-6;
/// Roundings of exp(x − lse) where |x| and lse are about 10, relative to the largest gradient.
const GRADIENT_FLOOR: f64 = 2e-6;
/// bf16 keeps eight bits: half a unit of the last, relative to an element.
const NARROW: f64 = 1.0 / 256.0;

/// What a loss and its backward leave.
#[derive(Debug, PartialEq)]
struct Found {
    loss: Vec<f64>,
    hits: Vec<f64>,
    lse: Vec<f64>,
    gradient: Vec<f64>,
}

enum Target {
    Hard(Vec<u32>),
    Soft(Vec<f32>),
}

fn wide<T: Real>(from: Vec<T>) -> Vec<f64> {
    from.into_iter().map(Real::wide).collect()
}

fn accum<B: Buffers>(backend: &B, from: &B::Accum, len: usize) -> Vec<f64> {
    let mut host = vec![B::Host::default(); len];
    backend.download_accum(from, 0, &mut host).unwrap();
    wide(host)
}

fn activation<B: Buffers>(backend: &B, values: &[f32]) -> B::Activation {
    let host: Vec<B::Host> = values.iter().map(|&v| B::Host::of(f64::from(v))).collect();
    let mut held = backend.activation(host.len()).unwrap();
    backend.upload(&host, &mut held, 0).unwrap();
    held
}

fn run<B: LossOps>(backend: &B, dims: &LossDims, logits: &[f32], target: &Target) -> Found {
    let rows = dims.batch * dims.schedule.tokens();
    let mut held = activation(backend, logits);
    let mut out = TokenLoss::new(backend, rows).unwrap();
    match target {
        Target::Hard(targets) => {
            let mut ids = backend.ids(targets.len()).unwrap();
            backend.upload_ids(targets, &mut ids, 0).unwrap();
            backend.cross_entropy(dims, &held, &ids, &mut out).unwrap();
            backend.cross_entropy_backward(dims, &mut held, &ids, &out).unwrap();
        }
        Target::Soft(teacher) => {
            let teacher = activation(backend, teacher);
            backend.soft_cross_entropy(dims, &held, &teacher, &mut out).unwrap();
            backend.soft_cross_entropy_backward(dims, &mut held, &teacher, &out).unwrap();
        }
    }
    let mut gradient = vec![B::Host::default(); logits.len()];
    backend.download(&held, 0, &mut gradient).unwrap();
    Found {
        loss: accum(backend, &out.loss_bl, rows),
        hits: accum(backend, &out.hits_bl, rows),
        lse: accum(backend, &out.lse_bl, rows),
        gradient: wide(gradient),
    }
}

/// A schedule of 30 tokens with a scale of weight zero, targets of a longer buffer.
fn dims(vocab: usize, smoothing: f64) -> LossDims {
    dims_of(ScaleSchedule::from_sides(&[1, 2, 3, 4]).unwrap(), vocab, smoothing)
}

fn dims_of(schedule: ScaleSchedule, vocab: usize, smoothing: f64) -> LossDims {
    // Every fourth scale weighs nothing: of 30 tokens the third.
    let mut weights = [0.0; MAX_SCALES];
    for (scale, weight) in weights.iter_mut().enumerate() {
        *weight = [0.25, 1.0, 0.0, 0.7][scale % 4];
    }
    let targets = TargetRows { tokens: schedule.tokens() + 3, shift: 2 };
    LossDims { batch: 2, first_sample: 0, schedule, vocab, smoothing, weights, targets }
}

fn normals<S: Storage>(len: usize, index: u64) -> Vec<f32> {
    let mut random = Stream::new(7, Purpose::Test, index);
    (0..len).map(|_| S::store(2.5 * random.normal() as f32).load()).collect()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |a, v| a.max(v.abs()))
}

fn error(found: &[f64], exact: &[f64]) -> f64 {
    largest(found.iter().zip(exact).map(|(a, b)| a - b))
}

/// Errors of the device within those of the CPU, for a storage type.
fn compare<S: Storage>(dims: &LossDims, logits: &[f32], target: &Target) {
    let exact = run(&CpuBackend::<f64>::new(), dims, logits, target);
    let plain = run(&CpuBackend::<f32>::new(), dims, logits, target);
    let on = |device: Result<_, _>| {
        run(&CudaBackend::<S, TestDevice>::new(device.unwrap()).unwrap(), dims, logits, target)
    };
    let mut devices = TestDevice::in_every_order();
    let found = on(devices.next().unwrap());
    devices.for_each(|device| assert_eq!(on(device), found, "another order of threads"));
    assert_eq!(found.hits, exact.hits);
    let values = [
        ("loss", &found.loss, &plain.loss, &exact.loss),
        ("lse", &found.lse, &plain.lse, &exact.lse),
    ];
    for (name, found, plain, exact) in values {
        let bound = VALUE_FACTOR * error(plain, exact) + VALUE_FLOOR;
        assert!(error(found, exact) <= bound, "{name}: {} > {bound}", error(found, exact));
    }
    let scale = largest(exact.gradient.iter().copied());
    let rounding =
        GRADIENT_FACTOR * error(&plain.gradient, &exact.gradient) + GRADIENT_FLOOR * scale;
    for (i, (&found, &exact)) in found.gradient.iter().zip(&exact.gradient).enumerate() {
        let narrow = if S::NARROW { NARROW * exact.abs() } else { 0.0 };
        assert!((found - exact).abs() <= rounding + narrow, "{i}: {found} {exact}");
    }
    let tokens = dims.schedule.tokens();
    let weightless_row = |row: usize| {
        let scales = 0..dims.schedule.len();
        let mut weightless = scales.filter(|&scale| dims.weights[scale] == 0.0);
        weightless.any(|scale| dims.schedule.range(scale).contains(&(row % tokens)))
    };
    let rows = found.gradient.chunks(dims.vocab).enumerate();
    assert!(rows.filter(|(row, _)| weightless_row(*row)).all(|(_, g)| g.iter().all(|&g| g == 0.0)));
}

fn hard<S: Storage>(vocab: usize, smoothing: f64) {
    let dims = dims(vocab, smoothing);
    let mut logits = normals::<S>(2 * 30 * vocab, 0);
    let mut targets: Vec<u32> = (0..2 * 33).map(|i| (i * 4099 % vocab) as u32).collect();
    // Hits: the target is the largest, the second of two largest, and the last code.
    for (row, at) in [(0, 2), (1, 3), (2, 4)] {
        logits[row * vocab + targets[at] as usize] = 20.0;
    }
    logits[vocab] = 20.0;
    targets[2] = vocab as u32 - 1;
    compare::<S>(&dims, &logits, &Target::Hard(targets));
}

fn soft<S: Storage>(vocab: usize) {
    let (dims, len) = (dims(vocab, 0.0), 2 * 33 * vocab);
    let mut logits = normals::<S>(2 * 30 * vocab, 1);
    let mut teacher = normals::<S>(len, 2);
    // The same prediction in row 0, another in row 1, and an outlier far below.
    for (row, at) in [(0, 7), (1, 8)] {
        logits[row * vocab + 7] = 20.0;
        teacher[(row + 2) * vocab + at] = 20.0;
    }
    logits[3 * vocab] = -8192.0;
    compare::<S>(&dims, &logits, &Target::Soft(teacher));
}

#[test]
fn hard_targets() {
    for smoothing in [0.0, 0.1] {
        hard::<f32>(VOCAB, smoothing);
        hard::<bf16>(VOCAB, smoothing);
        hard::<f32>(523, smoothing);
        hard::<bf16>(523, smoothing);
    }
}

#[test]
fn soft_targets() {
    soft::<f32>(VOCAB);
    soft::<bf16>(VOCAB);
    soft::<bf16>(523);
}

#[test]
fn every_length() {
    for schedule in lengths::schedules() {
        let dims = LossDims { batch: 1, ..dims_of(schedule, 64, 0.1) };
        let rows = schedule.tokens();
        let targets = (0..rows + 3).map(|i| (i * 41 % 64) as u32).collect();
        let logits = normals::<bf16>(rows * 64, 3);
        compare::<f32>(&dims, &logits, &Target::Hard(targets));
        let teacher = Target::Soft(normals::<bf16>((rows + 3) * 64, 4));
        compare::<bf16>(&LossDims { smoothing: 0.0, ..dims }, &logits, &teacher);
    }
}

/// Logits that are not finite spoil their own row, and only where it counts; so does a target
/// outside the vocabulary, which nothing is read for.
#[test]
fn rows_that_are_no_numbers() {
    let dims = LossDims { batch: 1, ..dims(64, 0.1) };
    let mut logits = normals::<f32>(30 * 64, 0);
    logits[5] = f32::NAN;
    logits[64..128].fill(f32::NEG_INFINITY);
    logits[6 * 64 + 1] = f32::NAN; // of the scale that does not count
    let mut targets = vec![3; 33];
    targets[2 + 2] = 64;
    targets[2 + 3] = u32::MAX;
    // One infinity below is an ordinary row.
    logits[4 * 64 + 9] = f32::NEG_INFINITY;
    let backend = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    let unsmoothed = LossDims { smoothing: 0.0, ..dims };
    let found = run(&backend, &unsmoothed, &logits, &Target::Hard(targets));
    let bad = |row: usize| found.gradient[row * 64..][..64].iter().any(|g| g.is_nan());
    for row in 0..30 {
        assert_eq!(found.loss[row].is_nan(), matches!(row, 0..4 | 6), "loss of row {row}");
        assert_eq!(bad(row), row < 4, "gradient of row {row}");
    }
    assert!(found.gradient[5 * 64..14 * 64].iter().all(|&g| g == 0.0));
}

#[test]
fn scale_sums_of_a_large_batch() {
    let schedule = ScaleSchedule::from_sides(&[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]).unwrap();
    let values = normals::<f32>(5 * schedule.tokens(), 9);
    let sums = |device: Result<_, _>| {
        let backend = CudaBackend::<bf16, TestDevice>::new(device.unwrap()).unwrap();
        let mut held = backend.accum(values.len()).unwrap();
        backend.upload_accum(&values, &mut held, 0).unwrap();
        let mut sums = backend.accum(13).unwrap();
        backend.scale_sums(5, &schedule, &held, &mut sums, 3).unwrap();
        accum(&backend, &sums, 13)
    };
    let mut devices = TestDevice::in_every_order();
    let found = sums(devices.next().unwrap());
    devices.for_each(|device| assert_eq!(sums(device), found));
    for scale in 0..10 {
        let rows = values.chunks(schedule.tokens()).map(|v| &v[schedule.range(scale)]);
        let want: f64 = rows.flatten().map(|&v| f64::from(v)).sum();
        // Summed in f64, rounded once.
        assert!((found[3 + scale] - want).abs() <= ROUNDED_ONCE * want.abs(), "{scale}");
    }
}
