//! The optimiser on buffers of many tensors: the same bits as the CPU backend in f32, and a narrow
//! copy that is the rounded weights.

#![allow(clippy::unwrap_used)]

use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::backend::{
    AdamW, BackendError as _, Buffers, EmbeddingOps as _, ErrorKind, Linear, LinearDims,
    OptimizerOps, Slot, TransformerOps,
};
use sar_math::philox::{Purpose, Stream};

/// Rounding the root of a sum in f64 to f32 moves it by 2⁻²⁴ of itself at most.
const ROUNDED_ONCE: f64 = 1e-7;

const HYPER: AdamW =
    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.05, step: 3, clip: 2.0 };

fn numbers(len: usize, index: u64) -> Vec<f32> {
    let mut random = Stream::new(11, Purpose::Test, index);
    (0..len).map(|_| random.normal() as f32).collect()
}

/// Parameters of some hundred tensors that decay and do not, of awkward lengths, with gaps between
/// some: more runs than one launch takes, and one of several blocks.
struct Layout {
    decayed: Vec<Slot>,
    plain: Vec<Slot>,
    len: usize,
}

fn layout() -> Layout {
    let (mut decayed, mut plain, mut offset) = (Vec::new(), Vec::new(), 0);
    for tensor in 0..180 {
        // The last of these end in each of the quads that a thread updates.
        let len = match tensor {
            40 => 10_001,
            41 => 3_081,
            43 => 2_057,
            _ => 1 + tensor * 7 % 61,
        };
        let slot = Slot { offset, len };
        if tensor % 2 == 0 {
            decayed.push(slot)
        } else {
            plain.push(slot)
        }
        offset += len + if tensor % 5 == 0 { 3 } else { 0 };
    }
    Layout { decayed, plain, len: offset }
}

/// Weights and both moments after a step.
fn step<B: OptimizerOps<Host = f32>>(backend: &B, layout: &Layout, norm: f32) -> [Vec<f32>; 3] {
    let len = layout.len;
    let accum = |values: &[f32]| {
        let mut held = backend.accum(values.len()).unwrap();
        backend.upload_accum(values, &mut held, 0).unwrap();
        held
    };
    let second: Vec<f32> = numbers(len, 3).iter().map(|v| v * v).collect();
    let (grads, norm) = (accum(&numbers(len, 1)), accum(&[norm]));
    let (mut first, mut second) = (accum(&numbers(len, 2)), accum(&second));
    let mut params = backend.params(len).unwrap();
    backend.upload_params(&numbers(len, 0), &mut params, 0).unwrap();
    let (decayed, plain) = (&layout.decayed, &layout.plain);
    backend
        .adamw(&HYPER, decayed, plain, &grads, &norm, &mut first, &mut second, &mut params)
        .unwrap();
    let mut found = [vec![0.0; len], vec![0.0; len], vec![0.0; len]];
    backend.download_params(&params, 0, &mut found[0]).unwrap();
    backend.download_accum(&first, 0, &mut found[1]).unwrap();
    backend.download_accum(&second, 0, &mut found[2]).unwrap();
    found
}

fn cuda<S: Storage>() -> CudaBackend<S, TestDevice> {
    CudaBackend::new(TestDevice::new().unwrap()).unwrap()
}

/// In every order of threads.
fn each<S: Storage>() -> impl Iterator<Item = CudaBackend<S, TestDevice>> {
    TestDevice::in_every_order().map(|device| CudaBackend::new(device.unwrap()).unwrap())
}

#[test]
fn adamw_gives_the_bits_of_the_cpu() {
    let layout = layout();
    for norm in [1.5, 8.0, 0.0] {
        let want = step(&CpuBackend::<f32>::new(), &layout, norm);
        each::<f32>().for_each(|cuda| assert_eq!(step(&cuda, &layout, norm), want));
        each::<bf16>().for_each(|cuda| assert_eq!(step(&cuda, &layout, norm), want));
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let layout = layout();
    let mut second = numbers(layout.len, 3);
    second.iter_mut().for_each(|v| *v *= *v);
    let before = [numbers(layout.len, 0), numbers(layout.len, 2), second];
    for norm in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(step(&cuda::<bf16>(), &layout, norm), before);
    }
}

/// What products read after a step is what the step left, rounded: seen through a product with the
/// unit matrix.
#[test]
fn the_narrow_copy_is_the_rounded_weights() {
    const SIDE: usize = 33;
    let backend = cuda::<bf16>();
    let slot = Slot { offset: 5, len: SIDE * SIDE };
    let len = slot.offset + slot.len;
    let mut params = backend.params(len).unwrap();
    backend.upload_params(&numbers(len, 0), &mut params, 0).unwrap();
    let mut grads = backend.accum(len).unwrap();
    backend.upload_accum(&numbers(len, 1), &mut grads, 0).unwrap();
    let mut norm = backend.accum(1).unwrap();
    backend.upload_accum(&[1.0], &mut norm, 0).unwrap();
    let (mut first, mut second) = (backend.accum(len).unwrap(), backend.accum(len).unwrap());
    backend
        .adamw(&HYPER, &[slot], &[], &grads, &norm, &mut first, &mut second, &mut params)
        .unwrap();
    let unit: Vec<f32> =
        (0..SIDE * SIDE).map(|i| f32::from(u8::from(i % (SIDE + 1) == 0))).collect();
    let mut x = backend.activation(unit.len()).unwrap();
    backend.upload(&unit, &mut x, 0).unwrap();
    let mut y = backend.activation(unit.len()).unwrap();
    let dims = LinearDims { rows: SIDE, inputs: SIDE, outputs: SIDE };
    let slots = Linear { weight: slot, bias: None };
    backend.linear(dims, &x, &params, slots, &mut y).unwrap();
    let (mut transposed, mut master) = (vec![0.0; unit.len()], vec![0.0; len]);
    backend.download(&y, 0, &mut transposed).unwrap();
    backend.download_params(&params, 0, &mut master).unwrap();
    for output in 0..SIDE {
        for input in 0..SIDE {
            let weight = master[slot.offset + output * SIDE + input];
            assert_eq!(transposed[input * SIDE + output], bf16::from_f32(weight).to_f32());
        }
    }
    assert_eq!(master[..slot.offset], numbers(len, 0)[..slot.offset]);
}

fn norm(backend: &CudaBackend<bf16, TestDevice>, grads: &[f32]) -> f32 {
    let mut held = backend.accum(grads.len()).unwrap();
    backend.upload_accum(grads, &mut held, 0).unwrap();
    let mut norm = backend.accum(1).unwrap();
    backend.grad_norm(grads.len(), &held, &mut norm).unwrap();
    let mut found = [0.0];
    backend.download_accum(&norm, 0, &mut found).unwrap();
    found[0]
}

#[test]
fn norms_of_several_chunks_and_of_what_overflows_f32() {
    let backend = cuda();
    let grads = numbers(3 * (1 << 16) + 7, 5);
    let want = grads.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt();
    let found = norm(&backend, &grads);
    // Summed in f64, rounded once.
    assert!((f64::from(found) - want).abs() <= ROUNDED_ONCE * want, "{found} {want}");
    each().for_each(|cuda| assert_eq!(found.to_bits(), norm(&cuda, &grads).to_bits()));
    assert_eq!(norm(&backend, &[3e30, 4e30]), 5e30);
    assert_eq!(norm(&backend, &[]), 0.0);
    let mut bad = grads;
    for value in [f32::NAN, f32::INFINITY] {
        bad[70_000] = value;
        assert!(!norm(&backend, &bad).is_finite());
    }
}

#[test]
fn averages_give_the_bits_of_the_cpu() {
    fn ema<B: OptimizerOps<Host = f32>>(backend: &B, len: usize) -> Vec<f32> {
        let mut params = backend.params(len).unwrap();
        backend.upload_params(&numbers(len, 0), &mut params, 0).unwrap();
        let mut average = backend.accum(len).unwrap();
        backend.upload_accum(&numbers(len, 1), &mut average, 0).unwrap();
        backend.ema(len, 0.9995, &params, &mut average).unwrap();
        let mut found = vec![0.0; len];
        backend.download_accum(&average, 0, &mut found).unwrap();
        found
    }
    for len in [1, 3, 4, 5003] {
        let want = ema(&CpuBackend::<f32>::new(), len);
        each::<bf16>().for_each(|cuda| assert_eq!(ema(&cuda, len), want));
    }
}

/// Training on weights that are only there to be read is refused, and so is what they have no f32 of.
#[test]
fn frozen_weights_are_not_trained_and_not_saved() {
    let device = TestDevice::in_every_order().next().unwrap().unwrap();
    let backend = CudaBackend::<bf16, TestDevice>::new(device).unwrap();
    let (host, table) = (vec![0.5; 48], Slot { offset: 17, len: 6 });
    let mut frozen = backend.frozen_params(&host, &[table]).unwrap();
    let grads = backend.accum(48).unwrap();
    let (norm, labels) = (backend.accum(1).unwrap(), backend.ids(1).unwrap());
    let (mut first, mut second) = (backend.accum(48).unwrap(), backend.accum(48).unwrap());
    let all = [Slot { offset: 0, len: 48 }];
    let (moments, mut cond) = ((&mut first, &mut second), backend.activation(6).unwrap());
    let trained =
        backend.adamw(&HYPER, &all, &[], &grads, &norm, moments.0, moments.1, &mut frozen);
    let averaged = backend.ema(48, 0.5, &frozen, &mut first);
    let saved = backend.download_params(&frozen, 0, &mut [0.0; 48]);
    let beside = Slot { offset: 18, len: 6 };
    let other = backend.class_embedding(1, 6, &labels, &frozen, beside, &mut cond);
    for (op, outcome) in [
        ("adamw", trained),
        ("ema", averaged),
        ("download_params", saved),
        ("class_embedding", other),
    ] {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shape);
        let error = error.to_string();
        assert!(error.starts_with(op) && error.contains("frozen"), "{error}");
    }
    backend.class_embedding(1, 6, &labels, &frozen, table, &mut cond).unwrap();
    let mut found = [0.0; 6];
    backend.download(&cond, 0, &mut found).unwrap();
    assert_eq!(found, [0.5; 6]);
    // A range of them is changed as that of others.
    backend.upload_params(&[2.0; 3], &mut frozen, 20).unwrap();
    backend.class_embedding(1, 6, &labels, &frozen, table, &mut cond).unwrap();
    backend.download(&cond, 0, &mut found).unwrap();
    assert_eq!(found, [0.5, 0.5, 0.5, 2.0, 2.0, 2.0]);
}
