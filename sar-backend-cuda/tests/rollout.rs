//! Steps without gradients at the published sizes, beside the CPU backend in f32.

#![allow(clippy::unwrap_used)]

mod lengths;

use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::backend::{Buffers, CodeDims, Distance, MapDims, RolloutDims, RolloutOps, TokenSpan};
use sar_math::philox::{Purpose, Stream};
use sar_math::{Scale, ScaleSchedule};

/// What stands where an op is to write nothing: no id, and a number that all types hold.
const UNTOUCHED: u32 = 1 << 20;

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

/// The same codes at three lengths, each with −|e|²/2 behind it.
fn lifted(vocab: usize, channels: usize) -> Vec<f32> {
    let codes = codebook(vocab, channels);
    let lift = |(v, code): (usize, &[f32])| {
        let length = [0.5, 1.0, 2.0][v % (vocab / 2) % 3];
        let mut row: Vec<f32> = code.iter().map(|c| length * c).collect();
        row.push(row.iter().map(|&c| f64::from(c) * f64::from(c)).sum::<f64>() as f32 * -0.5);
        row
    };
    codes.chunks(channels).enumerate().flat_map(lift).collect()
}

fn nearest<B: RolloutOps<Host = f32>>(
    backend: &B,
    batch: usize,
    span: &TokenSpan,
    codes: CodeDims,
    z: &[f32],
) -> Vec<u32> {
    let mut held = backend.activation(z.len()).unwrap();
    backend.upload(z, &mut held, 0).unwrap();
    let rows = match codes.distance {
        Distance::Cosine => codebook(codes.vocab, codes.channels),
        Distance::Euclidean => lifted(codes.vocab, codes.channels),
    };
    let mut codebook = backend.accum(rows.len()).unwrap();
    backend.upload_accum(&rows, &mut codebook, 0).unwrap();
    let mut found = vec![UNTOUCHED; batch * span.row()];
    let mut ids = backend.ids(found.len()).unwrap();
    backend.upload_ids(&found, &mut ids, 0).unwrap();
    backend.nearest_code(batch, span, codes, &held, &codebook, &mut ids).unwrap();
    backend.download_ids(&ids, 0, &mut found).unwrap();
    found
}

/// In every order of threads.
fn each<S: Storage>() -> impl Iterator<Item = CudaBackend<S, TestDevice>> {
    TestDevice::in_every_order().map(|device| CudaBackend::new(device.unwrap()).unwrap())
}

fn nearest_as_on_the_cpu<S: Storage>(
    batch: usize,
    span: &TokenSpan,
    [vocab, channels]: [usize; 2],
    distance: Distance,
) {
    let codes = CodeDims { vocab, channels, distance };
    let columns = span.columns();
    let mut z = numbers::<S>(batch * columns.len() * channels, 2);
    // A vector of nothing, to which all codes are as near by angle; one with a NaN, which is near to
    // none; and one so far away that what stands behind a code hardly counts.
    z[channels..2 * channels].fill(0.0);
    z[2 * channels] = f32::NAN;
    z[3 * channels..4 * channels].iter_mut().for_each(|z| *z *= 2f32.powi(40));
    let want = nearest(&CpuBackend::<f32>::new(), batch, span, codes, &z);
    for backend in each::<S>() {
        let found = nearest(&backend, batch, span, codes, &z);
        assert_eq!(found, want, "{batch} rows of {span:?}, {codes:?}");
    }
    for row in want.chunks(span.row()) {
        let is_written = |i| columns.contains(&i);
        assert!(row.iter().enumerate().all(|(i, &id)| (id < vocab as u32) == is_written(i)));
    }
}

/// Rows of so many tokens of one scale.
fn tokens(width: usize) -> TokenSpan {
    let scales = [Scale::square(1), Scale { height: 1, width }];
    TokenSpan::one(&ScaleSchedule::new(&scales).unwrap(), 1)
}

#[test]
fn nearest_codes_are_those_of_the_cpu() {
    use Distance::Cosine;
    nearest_as_on_the_cpu::<f32>(1, &tokens(70), [8912, 32], Cosine);
    nearest_as_on_the_cpu::<bf16>(1, &tokens(131), [8912, 32], Cosine);
    nearest_as_on_the_cpu::<f32>(1, &tokens(5), [300, 5], Cosine);
    nearest_as_on_the_cpu::<bf16>(2, &tokens(32), [129, 72], Cosine);
}

#[test]
fn nearest_codes_by_distance_are_those_of_the_cpu() {
    use Distance::Euclidean;
    nearest_as_on_the_cpu::<f32>(1, &tokens(70), [4096, 32], Euclidean);
    nearest_as_on_the_cpu::<bf16>(1, &tokens(131), [4096, 32], Euclidean);
    nearest_as_on_the_cpu::<f32>(1, &tokens(5), [300, 5], Euclidean);
    nearest_as_on_the_cpu::<bf16>(2, &tokens(32), [129, 71], Euclidean);
    nearest_as_on_the_cpu::<f32>(1, &tokens(67), [258, 1], Euclidean);
}

/// Rows of a block that are of several samples, and a scale between others.
#[test]
fn nearest_codes_of_a_scale_leave_the_others() {
    let span = |held, scales| TokenSpan { schedule: schedule(), held, scales };
    for distance in [Distance::Cosine, Distance::Euclidean] {
        nearest_as_on_the_cpu::<f32>(3, &span(0..10, 4..5), [300, 32], distance);
        nearest_as_on_the_cpu::<bf16>(2, &span(2..6, 3..6), [300, 7], distance);
        nearest_as_on_the_cpu::<f32>(70, &span(0..2, 0..1), [300, 7], distance);
    }
}

fn schedule() -> ScaleSchedule {
    ScaleSchedule::from_sides(&[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]).unwrap()
}

/// Of two samples.
fn inputs<B: RolloutOps<Host = f32>>(
    backend: &B,
    schedule: ScaleSchedule,
    vocab: usize,
    ids: &[u32],
) -> Vec<f32> {
    let scales = 1..schedule.len();
    let dims = RolloutDims { batch: 2, schedule, scales, channels: 32, vocab };
    let mut held = backend.ids(ids.len()).unwrap();
    backend.upload_ids(ids, &mut held, 0).unwrap();
    let codes = codebook(vocab, 32);
    let mut codebook = backend.accum(codes.len()).unwrap();
    backend.upload_accum(&codes, &mut codebook, 0).unwrap();
    let mut found = vec![0.0; 2 * (schedule.tokens() - schedule.range(0).len()) * 32];
    let mut inputs = backend.activation(found.len()).unwrap();
    backend.rollout_inputs(&dims, &held, &codebook, &mut inputs).unwrap();
    backend.download(&inputs, 0, &mut found).unwrap();
    found
}

/// The same operations in the same order, and a rounding to what is stored.
#[test]
fn rollout_inputs_are_those_of_the_cpu() {
    let ids: Vec<u32> = (0..2 * 680).map(|i| i * 577 % 999).collect();
    let want = inputs(&CpuBackend::<f32>::new(), schedule(), 999, &ids);
    each::<f32>().for_each(|backend| assert_eq!(inputs(&backend, schedule(), 999, &ids), want));
    let narrow: Vec<f32> = want.iter().map(|&v| bf16::store(v).load()).collect();
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    assert_eq!(inputs(&backend, schedule(), 999, &ids), narrow);
}

/// From codes to inputs, from a latent to tokens, and from those to the nearest codes.
#[test]
fn every_length_is_that_of_the_cpu() {
    let (cpu, latent) = (CpuBackend::<f32>::new(), numbers::<f32>(2 * 32 * 256, 4));
    let gpu = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    for schedule in lengths::schedules() {
        let span = TokenSpan::whole(&schedule);
        let ids: Vec<u32> = (0..2 * schedule.tokens() as u32).map(|i| i * 577 % 999).collect();
        assert_eq!(inputs(&gpu, schedule, 999, &ids), inputs(&cpu, schedule, 999, &ids));
        assert_eq!(area(&gpu, &span, &latent), area(&cpu, &span, &latent), "{schedule}");
        let z = numbers::<f32>(schedule.tokens() * 32, 2);
        for distance in [Distance::Cosine, Distance::Euclidean] {
            let codes = CodeDims { vocab: 300, channels: 32, distance };
            let [found, want] =
                [nearest(&gpu, 1, &span, codes, &z), nearest(&cpu, 1, &span, codes, &z)];
            assert_eq!(found, want, "{schedule}, {distance:?}");
        }
    }
}

/// An id outside the codebook is not read for, and shows in the next scale only.
#[test]
fn ids_outside_the_codebook_give_nan() {
    let mut ids = vec![1; 2 * 680];
    ids[680] = 999; // scale 1 of sample 1
    ids[679] = u32::MAX; // the last scale feeds none
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    let found = inputs(&backend, schedule(), 999, &ids);
    let (before, after) = found.split_at(679 * 32);
    assert!(before.iter().all(|v| v.is_finite()) && after[4 * 32..].iter().all(|v| v.is_finite()));
    assert!(after[..4 * 32].iter().all(|v| v.is_nan()));
}

fn map<B: RolloutOps<Host = f32>>(
    backend: &B,
    scale: usize,
    (height, width): (usize, usize),
    ids: &[u32],
) -> Vec<f32> {
    let dims =
        RolloutDims { batch: 2, schedule: schedule(), scales: 0..10, channels: 5, vocab: 999 };
    let mut held = backend.ids(ids.len()).unwrap();
    backend.upload_ids(ids, &mut held, 0).unwrap();
    let codes = codebook(dims.vocab, dims.channels);
    let mut codebook = backend.accum(codes.len()).unwrap();
    backend.upload_accum(&codes, &mut codebook, 0).unwrap();
    let mut found = vec![0.0; dims.batch * dims.channels * height * width];
    let mut map = backend.activation(found.len()).unwrap();
    backend.code_map(&dims, scale, (height, width), &held, &codebook, &mut map).unwrap();
    backend.download(&map, 0, &mut found).unwrap();
    found
}

/// The scales of sides 1, 5, 13 and 16: made larger, made smaller, changed along one side, left as they are.
#[test]
fn code_maps_of_any_size_are_those_of_the_cpu() {
    let ids: Vec<u32> = (0..2 * 680).map(|i| i * 577 % 999).collect();
    let wide: Vec<_> = each::<f32>().collect();
    let narrow = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    for scale in [0, 4, 8, 9] {
        for size in [(16, 16), (13, 16), (20, 9), (1, 1)] {
            let want = map(&CpuBackend::<f32>::new(), scale, size, &ids);
            let same = |wide| map(wide, scale, size, &ids) == want;
            assert!(wide.iter().all(same), "scale {scale} to {size:?}");
            let rounded: Vec<f32> = want.iter().map(|&v| bf16::store(v).load()).collect();
            assert_eq!(map(&narrow, scale, size, &ids), rounded, "scale {scale} to {size:?}");
        }
    }
}

/// It shows within two places of its own, and in no other sample.
#[test]
fn an_id_outside_the_codebook_gives_nan_near_its_place() {
    let mut ids = vec![1; 2 * 680];
    ids[680 + 30] = 999; // the first place of the scale of side 5 in sample 1
    let backend = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    let found = map(&backend, 4, (10, 10), &ids);
    let (before, after) = found.split_at(5 * 100);
    assert!(before.iter().all(|v| v.is_finite()));
    for channel in after.chunks(100) {
        for (at, value) in channel.iter().enumerate() {
            assert_eq!(value.is_nan(), at / 10 < 5 && at % 10 < 5, "place {at}");
        }
    }
}

#[test]
fn a_map_of_no_size_is_refused() {
    let backend = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    let dims = RolloutDims { batch: 0, schedule: schedule(), scales: 0..10, channels: 5, vocab: 0 };
    let (ids, codebook) = (backend.ids(0).unwrap(), backend.accum(0).unwrap());
    let mut map = backend.activation(0).unwrap();
    let mut refused = |size| {
        let outcome = backend.code_map(&dims, 3, size, &ids, &codebook, &mut map);
        outcome.map_err(|error| error.to_string()).unwrap_err()
    };
    assert!(refused((0, 4)).contains("height"));
    assert!(refused((4, 0)).contains("width"));
    assert!(refused((usize::MAX, 4)).contains("side"));
}

fn area<B: RolloutOps<Host = f32>>(backend: &B, span: &TokenSpan, latent: &[f32]) -> Vec<f32> {
    let dims = MapDims { batch: 2, channels: 32, height: 16, width: 16 };
    let mut held = backend.activation(latent.len()).unwrap();
    backend.upload(latent, &mut held, 0).unwrap();
    let mut found = vec![UNTOUCHED as f32; dims.batch * span.row() * dims.channels];
    let mut tokens = backend.activation(found.len()).unwrap();
    backend.upload(&found, &mut tokens, 0).unwrap();
    backend.area_tokens(dims, span, &held, &mut tokens).unwrap();
    backend.download(&tokens, 0, &mut found).unwrap();
    found
}

#[test]
fn area_tokens_are_those_of_the_cpu() {
    let (whole, latent) = (TokenSpan::whole(&schedule()), numbers::<f32>(2 * 32 * 256, 4));
    let want = area(&CpuBackend::<f32>::new(), &whole, &latent);
    each::<f32>().for_each(|backend| assert_eq!(area(&backend, &whole, &latent), want));
}

#[test]
fn area_tokens_of_a_scale_leave_the_others() {
    let latent = numbers::<bf16>(2 * 32 * 256, 4);
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    for (held, scales) in [(0..10, 4..5), (2..7, 3..5), (9..10, 9..10), (3..5, 4..4)] {
        let span = TokenSpan { schedule: schedule(), held, scales };
        let want = area(&CpuBackend::<f32>::new(), &span, &latent);
        let rounded: Vec<f32> = want.iter().map(|&v| bf16::store(v).load()).collect();
        let found = area(&backend, &span, &latent);
        assert_eq!(found, rounded, "{span:?}");
        for row in found.chunks(span.row() * 32) {
            for (i, &value) in row.iter().enumerate() {
                let is_written = span.columns().contains(&(i / 32));
                assert_eq!(value != UNTOUCHED as f32, is_written, "{span:?}, element {i}");
            }
        }
    }
}
