//! Steps without gradients at the published sizes, beside the CPU backend in f32.

#![allow(clippy::unwrap_used)]

use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::ScaleSchedule;
use sar_math::backend::{LatentDims, RolloutDims, RolloutOps};
use sar_math::philox::{Purpose, Stream};

fn numbers<S: Storage>(len: usize, index: u64) -> Vec<f32> {
    let mut random = Stream::new(13, Purpose::Test, index);
    (0..len).map(|_| S::store(random.normal() as f32).load()).collect()
}

/// Rows of length 1, each of them twice, the lower index wins; of half of them the second differs from the
/// first by so little that products in f32 do not tell which is nearer.
fn codebook(vocab: usize, channels: usize) -> Vec<f32> {
    let mut codes = numbers::<f32>(vocab * channels, 1);
    for code in codes.chunks_mut(channels) {
        let norm = code.iter().map(|c| c * c).sum::<f32>().sqrt();
        code.iter_mut().for_each(|c| *c /= norm);
    }
    let half = vocab / 2 * channels;
    codes.copy_within(..half, half);
    for code in codes.chunks_mut(channels).skip(vocab / 2).step_by(2) {
        for (k, value) in code.iter_mut().enumerate().filter(|(k, _)| k % 3 > 0) {
            *value = f32::from_bits(value.to_bits() ^ (k as u32 % 2));
        }
    }
    codes
}

fn nearest<B: RolloutOps<Host = f32>>(
    backend: &B,
    [rows, vocab, channels]: [usize; 3],
    z: &[f32],
    codes: &[f32],
) -> Vec<u32> {
    let mut held = backend.activation(z.len()).unwrap();
    backend.upload(z, &mut held, 0).unwrap();
    let mut codebook = backend.accum(codes.len()).unwrap();
    backend.upload_accum(codes, &mut codebook, 0).unwrap();
    let mut ids = backend.ids(rows).unwrap();
    backend.nearest_code(rows, vocab, channels, &held, &codebook, &mut ids).unwrap();
    let mut found = vec![9; rows];
    backend.download_ids(&ids, 0, &mut found).unwrap();
    found
}

fn nearest_as_on_the_cpu<S: Storage>(sizes: [usize; 3], order: u64) {
    let [rows, vocab, channels] = sizes;
    let mut z = numbers::<S>(rows * channels, 2);
    // A vector of nothing: all codes are as near; and one with a NaN, which is near to none.
    z[channels..2 * channels].fill(0.0);
    z[2 * channels] = f32::NAN;
    let codes = codebook(vocab, channels);
    let want = nearest(&CpuBackend::<f32>::new(), sizes, &z, &codes);
    let device = TestDevice::with_order(1, order).unwrap();
    let found = nearest(&CudaBackend::<S, _>::new(device).unwrap(), sizes, &z, &codes);
    assert_eq!(found, want, "{sizes:?}");
}

#[test]
fn nearest_codes_are_those_of_the_cpu() {
    nearest_as_on_the_cpu::<f32>([70, 8912, 32], 0);
    nearest_as_on_the_cpu::<bf16>([131, 8912, 32], 3);
    nearest_as_on_the_cpu::<f32>([5, 300, 5], 1);
    nearest_as_on_the_cpu::<bf16>([64, 129, 72], 0);
}

fn schedule() -> ScaleSchedule {
    ScaleSchedule::from_sides(&[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]).unwrap()
}

fn inputs<B: RolloutOps<Host = f32>>(backend: &B, vocab: usize, ids: &[u32]) -> Vec<f32> {
    let dims = RolloutDims { batch: 2, schedule: schedule(), scales: 1..10, channels: 32, vocab };
    let mut held = backend.ids(ids.len()).unwrap();
    backend.upload_ids(ids, &mut held, 0).unwrap();
    let codes = codebook(vocab, 32);
    let mut codebook = backend.accum(codes.len()).unwrap();
    backend.upload_accum(&codes, &mut codebook, 0).unwrap();
    let mut found = vec![0.0; 2 * 679 * 32];
    let mut inputs = backend.activation(found.len()).unwrap();
    backend.rollout_inputs(&dims, &held, &codebook, &mut inputs).unwrap();
    backend.download(&inputs, 0, &mut found).unwrap();
    found
}

/// The same operations in the same order, and a rounding to what is stored.
#[test]
fn rollout_inputs_are_those_of_the_cpu() {
    let ids: Vec<u32> = (0..2 * 680).map(|i| i * 577 % 999).collect();
    let want = inputs(&CpuBackend::<f32>::new(), 999, &ids);
    let backend = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    assert_eq!(inputs(&backend, 999, &ids), want);
    let narrow: Vec<f32> = want.iter().map(|&v| bf16::store(v).load()).collect();
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    assert_eq!(inputs(&backend, 999, &ids), narrow);
}

/// An id outside the codebook is not read for, and shows in the next scale only.
#[test]
fn ids_outside_the_codebook_give_nan() {
    let mut ids = vec![1; 2 * 680];
    ids[680] = 999; // scale 1 of sample 1
    ids[679] = u32::MAX; // the last scale feeds none
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    let found = inputs(&backend, 999, &ids);
    let (before, after) = found.split_at(679 * 32);
    assert!(before.iter().all(|v| v.is_finite()) && after[4 * 32..].iter().all(|v| v.is_finite()));
    assert!(after[..4 * 32].iter().all(|v| v.is_nan()));
}

#[test]
fn area_tokens_are_those_of_the_cpu() {
    fn tokens<B: RolloutOps<Host = f32>>(backend: &B, latent: &[f32]) -> Vec<f32> {
        let dims = LatentDims { batch: 2, channels: 32, height: 16, width: 16 };
        let mut held = backend.activation(latent.len()).unwrap();
        backend.upload(latent, &mut held, 0).unwrap();
        let mut found = vec![0.0; 2 * 680 * 32];
        let mut tokens = backend.activation(found.len()).unwrap();
        backend.area_tokens(dims, &schedule(), &held, &mut tokens).unwrap();
        backend.download(&tokens, 0, &mut found).unwrap();
        found
    }
    let latent = numbers::<f32>(2 * 32 * 256, 4);
    let backend = CudaBackend::<f32, _>::new(TestDevice::with_order(2, 7).unwrap()).unwrap();
    assert_eq!(tokens(&backend, &latent), tokens(&CpuBackend::<f32>::new(), &latent));
}
