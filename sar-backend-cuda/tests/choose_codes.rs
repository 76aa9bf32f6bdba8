//! Ids chosen on the device are those of `sar_math::sampling`, whatever the logits.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sar_backend_cpu::CpuBackend;
use sar_backend_cuda::{CudaBackend, ORDERS, Storage, TestDevice, bf16};
use sar_math::backend::{Choice, ChooseDims, DrawKeys, Filter, RolloutOps};
use sar_math::guidance::guide;
use sar_math::philox::{Purpose, Stream, token_uniform};
use sar_math::sampling::{argmax, choose, scratch_len};
use sar_math::{MAX_SCALES, ScaleSchedule};

const KEYS: DrawKeys = DrawKeys { seed: 0x1234_5678_9abc_def0, first_image: (1 << 40) + 3 };
/// Samples, of the five tokens of schedule 1_2.
const BATCH: usize = 2;
const ROWS: usize = BATCH * 5;

/// Strengths that round when multiplied.
fn strengths() -> [f64; MAX_SCALES] {
    core::array::from_fn(|i| 0.3 + 1.1 * i as f64)
}

fn dims(vocab: usize, guided: bool, choice: Choice) -> ChooseDims {
    let schedule = ScaleSchedule::from_sides(&[1, 2]).unwrap();
    let guidance = guided.then(strengths);
    ChooseDims { batch: BATCH, first_sample: 0, schedule, scales: 0..2, vocab, guidance, choice }
}

fn ids<B: RolloutOps<Host = f32>>(backend: &B, dims: &ChooseDims, logits: &[f32]) -> Vec<u32> {
    let mut held = backend.activation(logits.len()).unwrap();
    backend.upload(logits, &mut held, 0).unwrap();
    let mut ids = backend.ids(ROWS).unwrap();
    backend.choose_codes(dims, &held, &mut ids).unwrap();
    let mut found = vec![77; ROWS];
    backend.download_ids(&ids, 0, &mut found).unwrap();
    found
}

/// The logits of a row, after guidance.
fn mixed(dims: &ChooseDims, logits: &[f32], row: usize) -> Vec<f32> {
    let row_of = |row: usize| &logits[row * dims.vocab..][..dims.vocab];
    let Some(ramp) = dims.guidance else { return row_of(row).to_vec() };
    let t = ramp[usize::from(!row.is_multiple_of(5))] as f32;
    row_of(row).iter().zip(row_of(ROWS + row)).map(|(&c, &u)| guide(t, c, u)).collect()
}

/// What the contract asks for.
fn wanted(dims: &ChooseDims, logits: &[f32], row: usize) -> u32 {
    let logits = mixed(dims, logits, row);
    let Choice::Draw(filter, keys) = dims.choice else { return argmax(&logits) as u32 };
    let (sample, token) = (row / 5, row % 5);
    let (scale, within) = if token == 0 { (0, 0) } else { (1, token - 1) };
    let image = keys.first_image + sample as u64;
    let uniform = token_uniform(keys.seed, image, scale, within as u32);
    choose(&logits, filter, uniform, &mut vec![0; scratch_len(dims.vocab)]).unwrap() as u32
}

/// Rounds to what `S` holds, so that every backend has the same logits.
fn storable<S: Storage>(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|&l| S::store(l).load()).collect()
}

fn check<S: Storage>(order: usize, dims: &ChooseDims, logits: &[f32]) {
    let logits = storable::<S>(logits);
    let (threads, order) = ORDERS[order];
    let device = TestDevice::with_order(threads, order).unwrap();
    let found = ids(&CudaBackend::<S, _>::new(device).unwrap(), dims, &logits);
    let cpu = ids(&CpuBackend::<f32>::new(), dims, &logits);
    for row in 0..ROWS {
        let at = format!("{} row {row}: {dims:?}", S::NAME);
        assert_eq!(found[row], wanted(dims, &logits, row), "{at}");
        // Where nothing is above −∞ the contract says 0, which the CPU need not find beside a NaN.
        if mixed(dims, &logits, row).iter().any(|&l| l > f32::NEG_INFINITY) {
            assert_eq!(found[row], cpu[row], "CPU, {at}");
        }
    }
}

fn check_both(order: usize, dims: &ChooseDims, logits: &[f32]) {
    check::<f32>(order, dims, logits);
    check::<bf16>(order, dims, logits);
}

/// All give the CPU's ids, and so the same.
fn in_every_order(dims: &ChooseDims, logits: &[f32]) {
    (0..ORDERS.len()).for_each(|order| check_both(order, dims, logits));
}

/// Logits of both halves: a spread, every n-th of them on a grid (ties) or a number that is none.
fn logits(vocab: usize, seed: u64, spread: f32, special: usize) -> Vec<f32> {
    const SPECIAL: [f32; 6] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 3.0e38];
    let mut random = Stream::new(seed, Purpose::Test, 0);
    let logit = |_| {
        let value = spread * random.normal() as f32;
        match random.below(8) {
            0 | 1 => value.round(),
            2 if special > 0 => SPECIAL[random.below(SPECIAL.len().min(special))],
            _ => value,
        }
    };
    (0..2 * ROWS * vocab).map(logit).collect()
}

fn filters(vocab: usize) -> impl Strategy<Value = Filter> {
    let top_k = prop::sample::select(vec![0, 1, 2, 3, vocab / 10, vocab - 1, vocab, vocab + 1]);
    let p = vec![0.0, 0.3, 0.5, 0.96, 1.0, 1e-20, 1.5, -1.0, f64::NAN];
    (top_k, prop::sample::select(p)).prop_map(|(top_k, top_p)| Filter { top_k, top_p })
}

/// Vocabulary, guidance, choice, seed, spread and special numbers.
fn cases(vocabs: Vec<usize>) -> impl Strategy<Value = (ChooseDims, Vec<f32>, usize)> {
    prop::sample::select(vocabs).prop_flat_map(|vocab| {
        let choice = prop_oneof![
            1 => Just(Choice::Argmax),
            6 => filters(vocab).prop_map(|filter| Choice::Draw(filter, KEYS)),
        ];
        let spread = prop::sample::select(vec![0.0, 1e-6, 1.0, 4.0, 30.0]);
        let special = prop::sample::select(vec![0, 0, 1, 3, 6]);
        (choice, any::<bool>(), any::<u64>(), 0..ORDERS.len(), spread, special).prop_map(
            move |(choice, guided, seed, order, spread, special)| {
                (dims(vocab, guided, choice), logits(vocab, seed, spread, special), order)
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]
    #[test]
    fn small_vocabularies((dims, logits, order) in cases(vec![1, 2, 3, 37, 512])) {
        check_both(order, &dims, &logits[..ids_len(&dims)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8) })]
    #[test]
    fn published_vocabulary((dims, logits, order) in cases(vec![8912])) {
        check_both(order, &dims, &logits[..ids_len(&dims)]);
    }
}

/// Logits that a call takes.
fn ids_len(dims: &ChooseDims) -> usize {
    ROWS * dims.vocab * if dims.guidance.is_some() { 2 } else { 1 }
}

/// Rows of the published size with the published filters, in every order of threads.
#[test]
fn published_filters_in_any_order_of_threads() {
    let filter = Filter { top_k: 900, top_p: 0.96 };
    let dims = dims(8912, true, Choice::Draw(filter, KEYS));
    let logits = logits(8912, 1, 2.5, 0);
    in_every_order(&dims, &logits);
}

/// More ties with the k-th than shared memory has room for, and rows of which nothing is kept.
#[test]
fn rows_that_shared_memory_does_not_hold() {
    let draw = |top_k, top_p| Choice::Draw(Filter { top_k, top_p }, KEYS);
    let ties = vec![0.5; 2 * ROWS * 5000];
    in_every_order(&dims(5000, true, draw(5, 0.7)), &ties);
    let vocab = 20_001;
    let wide = logits(vocab, 3, 3.0, 2);
    in_every_order(&dims(vocab, false, draw(0, 0.9)), &wide[..ROWS * vocab]);
    in_every_order(&dims(vocab, true, draw(300, 0.5)), &wide);
    check::<f32>(0, &dims(vocab, false, draw(15_000, 0.999)), &wide[..ROWS * vocab]);
}
