//! Attention at lengths, head sizes and scales that the conformance kit does not reach, compared with
//! the CPU backend in f64; and the same bits whatever the order in which threads run.

#![allow(clippy::unwrap_used)]

mod lengths;

use sar_backend_cpu::{CpuBackend, NarrowCpu};
use sar_backend_cuda::{CudaBackend, CudaError, Device as _, Storage, TestDevice, bf16};
use sar_math::backend::{
    AttentionDims, AttentionSlots, CachedAttentionDims, RolloutOps, SCALE_MUL_MAX, Slot,
    TransformerOps,
};
use sar_math::{Real, Scale, ScaleSchedule};

/// Values of f32 may be wrong by as many times the error of the CPU backend in f32, which sums in
/// another order.
const VALUES: f64 = 2.0;
/// Gradients pass through twice as many sums.
const GRADIENTS: f64 = 3.0;
/// Rows of a tile.
const TILE: usize = 64;
/// Where the CPU backend is exact by luck: eight roundings of f32, on up to so many keys.
const F32_FLOOR: f64 = 5e-7;
const FLOOR_KEYS: f64 = 680.0;
/// Of bf16: the CPU backend rounds what is stored, tensor cores take probabilities and the gradients of scores
/// rounded as well.
const BF16_VALUES: f64 = 1.0 / 512.0;
const BF16_GRADIENTS: f64 = 2.0 / 512.0;

/// ln 4, which `scale_mul` starts from.
const INITIAL_SCALE: f64 = 1.386;

/// Operands: `qkv[b, l, 3, h, d]`, `d_out[b, l, h, d]`, parameters q bias, v bias, log-scale.
#[derive(Clone)]
struct Case {
    dims: AttentionDims,
    qkv: Vec<f64>,
    d_out: Vec<f64>,
    params: Vec<f64>,
}

impl Case {
    fn new(schedule: ScaleSchedule, [batch, heads, head_dim]: [usize; 3], scale_mul: f64) -> Self {
        let mut state = 7u64;
        // Numbers that every storage type holds, of variance 1.
        let mut draw = |n: usize| -> Vec<f64> {
            let next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
                f64::from(bf16::from_f64((unit - 0.5) * 12f64.sqrt()))
            };
            std::iter::repeat_with(next).take(n).collect()
        };
        let rows = batch * schedule.tokens();
        let width = heads * head_dim;
        let (qkv, d_out, mut params) =
            (draw(rows * 3 * width), draw(rows * width), draw(2 * width));
        params.extend(std::iter::repeat_n(scale_mul, heads));
        Self { dims: AttentionDims { batch, heads, head_dim, schedule }, qkv, d_out, params }
    }

    fn slots(&self) -> AttentionSlots {
        let width = self.dims.heads * self.dims.head_dim;
        let slot = |offset, len| Slot { offset, len };
        AttentionSlots {
            q_bias: slot(0, width),
            v_bias: slot(width, width),
            scale_mul: slot(2 * width, self.dims.heads),
        }
    }

    fn sample(&self, b: usize) -> Self {
        let part = |all: &[f64]| {
            let len = all.len() / self.dims.batch;
            all[b * len..][..len].to_vec()
        };
        let (qkv, d_out) = (part(&self.qkv), part(&self.d_out));
        Self { dims: AttentionDims { batch: 1, ..self.dims }, qkv, d_out, ..self.clone() }
    }
}

fn schedule(sides: &str) -> ScaleSchedule {
    sides.parse().unwrap()
}

/// What a run left, by name; gradients come last.
struct Outputs(Vec<(&'static str, Vec<f64>)>);

/// How many of the outputs are values of the forward.
const FORWARD: usize = 3;

fn run<B: TransformerOps>(backend: &B, case: &Case) -> Result<Outputs, B::Error> {
    let host =
        |values: &[f64]| -> Vec<B::Host> { values.iter().map(|&v| B::Host::of(v)).collect() };
    let dims = case.dims;
    let (rows, width) = (dims.batch * dims.schedule.tokens(), dims.heads * dims.head_dim);
    let mut params = backend.params(case.params.len())?;
    backend.upload_params(&host(&case.params), &mut params, 0)?;
    let mut qkv = backend.activation(rows * 3 * width)?;
    backend.upload(&host(&case.qkv), &mut qkv, 0)?;
    let mut norms = backend.accum(rows * 2 * dims.heads)?;
    let mut lse = backend.accum(rows * dims.heads)?;
    let mut out = backend.activation(rows * width)?;
    let slots = case.slots();
    backend.attention(dims, &mut qkv, &params, slots, &mut norms, &mut lse, &mut out)?;
    let mut d_out = backend.activation(rows * width)?;
    backend.upload(&host(&case.d_out), &mut d_out, 0)?;
    let mut dqkv = backend.activation(rows * 3 * width)?;
    let mut grads = backend.accum(case.params.len())?;
    backend.attention_backward(
        dims, &d_out, &out, &qkv, &norms, &lse, &params, slots, &mut dqkv, &mut grads,
    )?;
    let activation = |from: &B::Activation, len: usize| -> Result<Vec<f64>, B::Error> {
        let mut to = vec![B::Host::of(0.0); len];
        backend.download(from, 0, &mut to)?;
        Ok(to.into_iter().map(B::Host::wide).collect())
    };
    let accum = |from: &B::Accum, slot: Slot| -> Result<Vec<f64>, B::Error> {
        let mut to = vec![B::Host::of(0.0); slot.len];
        backend.download_accum(from, slot.offset, &mut to)?;
        Ok(to.into_iter().map(B::Host::wide).collect())
    };
    Ok(Outputs(vec![
        ("qkv in place", activation(&qkv, rows * 3 * width)?),
        ("lse", accum(&lse, Slot { offset: 0, len: rows * dims.heads })?),
        ("out", activation(&out, rows * width)?),
        ("gradient of qkv", activation(&dqkv, rows * 3 * width)?),
        ("gradient of q_bias", accum(&grads, slots.q_bias)?),
        ("gradient of v_bias", accum(&grads, slots.v_bias)?),
        ("gradient of scale_mul", accum(&grads, slots.scale_mul)?),
    ]))
}

/// The gradient of a log-scale is a sum over pairs of tokens of terms of either sign, which cancel:
/// the root of the sum over queries of squares of their size, of the head where it is largest.
fn scale_terms(case: &Case, exact: &Outputs) -> f64 {
    let AttentionDims { batch, heads, head_dim: d, schedule } = case.dims;
    let (tokens, width) = (schedule.tokens(), heads * d);
    assert_eq!(batch, 1);
    let [qkv, lse, out] = [0, 1, 2].map(|i| &exact.0[i].1);
    let part = |l: usize, which: usize, h: usize| &qkv[(l * 3 + which) * width + h * d..][..d];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let squares = (0..heads).map(|h| {
        let term = |l: usize| {
            let d_out = &case.d_out[l * width + h * d..][..d];
            let inner = dot(d_out, &out[l * width + h * d..][..d]);
            let of_key = |past: usize| {
                let score = dot(part(l, 0, h), part(past, 1, h));
                let p = (score - lse[h * tokens + l]).exp();
                (p * (dot(d_out, part(past, 2, h)) - inner) * score).abs()
            };
            (0..schedule.visible(l)).map(of_key).sum::<f64>()
        };
        (0..tokens).map(|l| term(l).powi(2)).sum::<f64>()
    });
    squares.fold(0.0, f64::max).sqrt()
}

/// The size of an output: its largest element, or that of the terms that cancel in it; 1 at least.
fn magnitude(name: &str, case: &Case, exact: &Outputs, values: &[f64]) -> f64 {
    let largest = values.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    match name {
        "gradient of scale_mul" => largest.max(scale_terms(case, exact)),
        _ => largest,
    }
}

/// The largest difference, relative to a magnitude.
fn error(found: &[f64], exact: &[f64], magnitude: f64) -> f64 {
    assert_eq!(found.len(), exact.len());
    let differences = found.iter().zip(exact).map(|(a, b)| (a - b).abs());
    // Not `max`, which would hide a NaN.
    differences.fold(0.0, |a, b| if b <= a { a } else { b }) / magnitude
}

fn gpu<S: Storage>() -> CudaBackend<S, TestDevice> {
    CudaBackend::new(TestDevice::with_order(2, 0).unwrap()).unwrap()
}

/// Sums over keys are chains, whose rounding grows with the root of the length; those of gradients with the length,
/// since the CPU backend adds up blocks.
fn floors(case: &Case) -> [f64; 2] {
    let longer = (case.dims.schedule.tokens() as f64 / FLOOR_KEYS).max(1.0);
    [F32_FLOOR * longer.sqrt(), F32_FLOOR * longer]
}

/// f32 against the CPU backend in f32, both measured by f64.
fn check_f32(case: &Case) {
    let exact = run(&CpuBackend::<f64>::new(), case).unwrap();
    let cpu = run(&CpuBackend::<f32>::new(), case).unwrap();
    let found = run(&gpu::<f32>(), case).unwrap();
    for (i, (name, values)) in exact.0.iter().enumerate() {
        let [value, gradient] = floors(case);
        let (times, floor) = if i < FORWARD { (VALUES, value) } else { (GRADIENTS, gradient) };
        let magnitude = magnitude(name, case, &exact, values);
        let [error, reference] = [&found, &cpu].map(|of| error(&of.0[i].1, values, magnitude));
        println!("f32 {name}: {error:.1e}, CPU {reference:.1e}");
        let allowed = times * reference + floor;
        assert!(error <= allowed, "{name}: {error:e}, CPU {reference:e}");
    }
}

/// bf16 against the CPU backend in bf16, both measured by f64 from the same numbers.
fn check_bf16(case: &Case) {
    let exact = run(&CpuBackend::<f64>::new(), case).unwrap();
    let cpu = run(&NarrowCpu::new(), case).unwrap();
    let found = run(&gpu::<bf16>(), case).unwrap();
    for (i, (name, values)) in exact.0.iter().enumerate() {
        let magnitude = magnitude(name, case, &exact, values);
        let [error, reference] = [&found, &cpu].map(|of| error(&of.0[i].1, values, magnitude));
        println!("bf16 {name}: {error:.1e}, CPU {reference:.1e}");
        let (times, floor) =
            if i < FORWARD { (VALUES, BF16_VALUES) } else { (GRADIENTS, BF16_GRADIENTS) };
        assert!(error <= times * reference + floor, "{name}: {error:e}, CPU {reference:e}");
    }
}

#[test]
fn every_length() {
    for schedule in lengths::schedules() {
        println!("{schedule}");
        // Of the size of the published models where others here are short; one head, for the time that it takes.
        let (heads, head_dim) = if schedule.tokens() < 680 { (3, 32) } else { (1, 64) };
        let case = Case::new(schedule, [1, heads, head_dim], INITIAL_SCALE);
        check_f32(&case);
        check_bf16(&case);
        check_cached(&case, 3);
    }
}

#[test]
fn short_schedules() {
    for (sides, heads, head_dim) in
        [("1", 3, 64), ("1_2", 2, 128), ("1_2", 3, 64), ("1_2", 3, 32), ("1_2", 5, 1)]
    {
        let case = Case::new(schedule(sides), [1, heads, head_dim], INITIAL_SCALE);
        check_f32(&case);
        check_bf16(&case);
    }
}

/// Head sizes that are padded: by whole 16-byte pieces, and so that rows are not aligned to them.
#[test]
fn padded_heads() {
    let sides: [usize; 7] = [1, 2, 3, 4, 5, 6, 8];
    let mut scales: Vec<Scale> = sides.map(Scale::square).to_vec();
    scales.push(Scale { height: 12, width: 13 });
    let schedule = ScaleSchedule::new(&scales).unwrap();
    assert_eq!(schedule.tokens(), 311);
    for head_dim in [20, 33, 48, 64] {
        let case = Case::new(schedule, [1, 1, head_dim], INITIAL_SCALE);
        check_f32(&case);
        check_bf16(&case);
    }
}

#[test]
fn heads_of_32_and_128_and_what_is_padded_to_them() {
    for (heads, head_dim) in [(3, 32), (1, 128), (1, 75), (1, 104)] {
        let case = Case::new(schedule("1_2_3_4_5_6_8"), [1, heads, head_dim], INITIAL_SCALE);
        check_f32(&case);
        check_bf16(&case);
    }
}

/// Scores of up to a hundred.
#[test]
fn scores_at_the_ceiling() {
    let case = Case::new(schedule("1_2_3_4_6_10_13_16"), [1, 1, 64], SCALE_MUL_MAX);
    assert_eq!(case.dims.schedule.tokens(), 591);
    check_f32(&case);
    check_bf16(&case);
    check_cached(&case, 0);
}

/// Vectors shorter than the least norm: it is a constant there, and their gradient is not projected.
#[test]
fn tiny_vectors() {
    let d = 64;
    let mut case = Case::new(schedule("1_2"), [1, 1, d], INITIAL_SCALE);
    let tiny = |x: &mut f64| *x = f64::from(bf16::from_f64(*x * 1e-14));
    // q and k of token 1, with no bias to hide the q.
    case.qkv[3 * d..5 * d].iter_mut().for_each(tiny);
    case.params[..d].fill(0.0);
    check_f32(&case);
    check_bf16(&case);
}

/// Attention scale by scale with a cache, which gives the outputs of the whole.
fn run_cached<B: RolloutOps>(backend: &B, case: &Case, capacity: usize) -> Vec<f64> {
    let AttentionDims { batch, heads, head_dim, schedule } = case.dims;
    assert_eq!(batch, 1);
    let width = heads * head_dim;
    let host =
        |values: &[f64]| -> Vec<B::Host> { values.iter().map(|&v| B::Host::of(v)).collect() };
    let mut params = backend.params(case.params.len()).unwrap();
    backend.upload_params(&host(&case.params), &mut params, 0).unwrap();
    // What lies beyond the filled part must not matter, whatever it is.
    let mut cache = backend.activation(2 * capacity * width).unwrap();
    backend.upload(&host(&vec![f64::NAN; 2 * capacity * width]), &mut cache, 0).unwrap();
    let mut outputs = Vec::new();
    for scale in 0..schedule.len() {
        let range = schedule.range(scale);
        let (past, tokens) = (range.start, range.len());
        let dims = CachedAttentionDims { batch, heads, head_dim, past, tokens, capacity };
        let mut qkv = backend.activation(tokens * 3 * width).unwrap();
        let part = &case.qkv[past * 3 * width..range.end * 3 * width];
        backend.upload(&host(part), &mut qkv, 0).unwrap();
        let mut out = backend.activation(tokens * width).unwrap();
        let slots = case.slots();
        backend.cached_attention(dims, &mut qkv, &params, slots, &mut cache, &mut out).unwrap();
        let mut to = vec![B::Host::of(0.0); tokens * width];
        backend.download(&out, 0, &mut to).unwrap();
        outputs.extend(to.into_iter().map(B::Host::wide));
    }
    outputs
}

#[test]
fn cached_scale_by_scale() {
    for (sides, shape, spare) in [
        ("1_2_3_4_5_6_8_10_13_16", [1, 1, 64], 0),
        ("1_2_3_6_9", [1, 3, 32], 1),
        ("1_2_3_6_9", [1, 1, 128], 7),
        ("1_2_3_6_9", [1, 3, 21], 5),
        ("1_2_3_6_9", [1, 2, 50], 5),
        ("1_2_3_6_9", [1, 1, 75], 0),
    ] {
        check_cached(&Case::new(schedule(sides), shape, INITIAL_SCALE), spare);
    }
}

/// A cache with room for `spare` tokens more than there are.
fn check_cached(case: &Case, spare: usize) {
    let capacity = case.dims.schedule.tokens() + spare;
    let exact = run_cached(&CpuBackend::<f64>::new(), case, capacity);
    let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let error = |found: Vec<f64>| error(&found, &exact, largest);
    let cpu = [
        error(run_cached(&CpuBackend::<f32>::new(), case, capacity)),
        error(run_cached(&NarrowCpu::new(), case, capacity)),
    ];
    let found = [
        error(run_cached(&gpu::<f32>(), case, capacity)),
        error(run_cached(&gpu::<bf16>(), case, capacity)),
    ];
    let [f32, bf16] = found;
    println!("cached: f32 {f32:.1e}, bf16 {bf16:.1e}; CPU {:.1e}, {:.1e}", cpu[0], cpu[1]);
    for ((found, cpu), floor) in found.iter().zip(cpu).zip([floors(case)[0], BF16_VALUES]) {
        assert!(*found <= VALUES * cpu + floor, "{:?}: {found:e}, CPU {cpu:e}", case.dims);
    }
}

/// Of what a tile of rows does not see nothing is read, not even to be multiplied by nothing: tiles that are masked are
/// skipped, and of the last one that is seen the rest.
fn later_scales_reach_nothing<S: Storage>(sides: &str) {
    let mut case = Case::new(schedule(sides), [1, 1, 64], INITIAL_SCALE);
    let last = case.dims.schedule.range(case.dims.schedule.len() - 1);
    case.qkv[last.start * 3 * 64..].fill(f64::NAN);
    let found = run(&gpu::<S>(), &case).unwrap();
    // Tiles of rows end with the last row; the first of them may begin before there are any.
    let rows = last.end - last.len().div_ceil(TILE) * TILE;
    let clean = run(&gpu::<S>(), &Case::new(schedule(sides), [1, 1, 64], INITIAL_SCALE)).unwrap();
    for (name, len) in [("qkv in place", rows * 3 * 64), ("out", rows * 64), ("lse", rows)] {
        let of = |outputs: &Outputs| {
            let (_, values) = outputs.0.iter().find(|(n, _)| *n == name).unwrap();
            values[..len].to_vec()
        };
        assert_eq!(of(&found), of(&clean), "{name}, {sides} in {}", S::NAME);
    }
}

#[test]
fn later_scales_reach_nothing_before_them() {
    for sides in ["1_2_3_4_6_10", "1_2_3_4_5_6_8_12x13"] {
        later_scales_reach_nothing::<f32>(sides);
        later_scales_reach_nothing::<bf16>(sides);
    }
}

/// The same of the backward: a tile of queries reads no tile of later scales, and a tile of keys none of queries that do
/// not see it.
fn masked_tiles_are_skipped_backward<S: Storage>(sides: &str) {
    let clean = Case::new(schedule(sides), [1, 1, 64], INITIAL_SCALE);
    let last = clean.dims.schedule.range(clean.dims.schedule.len() - 1);
    let gradients = |case: &Case| {
        let outputs = run(&gpu::<S>(), case).unwrap().0;
        outputs.into_iter().find(|(name, _)| *name == "gradient of qkv").unwrap().1
    };
    let expected = gradients(&clean);
    let of_q = |row: usize| row * 3 * 64..(row * 3 + 1) * 64;
    let mut later = clean.clone();
    later.qkv[last.start * 3 * 64..].fill(f64::NAN);
    later.d_out[last.start * 64..].fill(f64::NAN);
    let found = gradients(&later);
    // As above: tiles end with the last row.
    for row in 0..last.end - last.len().div_ceil(TILE) * TILE {
        assert_eq!(found[of_q(row)], expected[of_q(row)], "query {row}, {sides} in {}", S::NAME);
    }
    // Keys and values stay: later queries see them.
    let mut earlier = clean;
    for row in 0..last.start.saturating_sub(TILE) {
        earlier.qkv[of_q(row)].fill(f64::NAN);
        earlier.d_out[row * 64..(row + 1) * 64].fill(f64::NAN);
    }
    let found = gradients(&earlier);
    let rows = (last.start + TILE) * 3 * 64..last.end * 3 * 64;
    assert!(!rows.is_empty());
    assert_eq!(found[rows.clone()], expected[rows], "keys, {sides} in {}", S::NAME);
}

#[test]
fn what_is_masked_is_not_read_backward() {
    masked_tiles_are_skipped_backward::<f32>("1_2_3_4_6_8_10_13");
    masked_tiles_are_skipped_backward::<bf16>("1_2_3_4_6_8_10_13");
    masked_tiles_are_skipped_backward::<bf16>("1_2_3_4_5_6_8_12x13");
}

/// Nothing has a number for each pair of tokens: beside the operands there is the scratch that a backend begins with.
fn no_pairs_are_kept<S: Storage>() {
    let longest = lengths::schedules().last().unwrap();
    let (case, backend) = (Case::new(longest, [1, 1, 64], INITIAL_SCALE), gpu::<S>());
    let before = backend.device().peak_bytes();
    run(&backend, &case).unwrap();
    let (rows, width) = (longest.tokens(), 64);
    let activations = 8 * rows * width * size_of::<S>();
    let sums = size_of::<f32>() * (3 * rows + 2 * case.params.len());
    let narrow = size_of::<S>() * case.params.len();
    let more = backend.device().peak_bytes() - before;
    let beside = more.saturating_sub(activations + sums + narrow);
    assert!(more >= activations, "{more} bytes");
    // Half of all pairs and more see each other: a byte for each of those would be twice this.
    assert!(beside < rows * rows / 4, "{beside} bytes beside {activations} of operands");
}

#[test]
fn scores_are_never_all_there() {
    no_pairs_are_kept::<f32>();
    no_pairs_are_kept::<bf16>();
}

fn bits(outputs: &Outputs) -> Vec<u64> {
    outputs.0.iter().flat_map(|(_, values)| values.iter().map(|v| v.to_bits())).collect()
}

fn same_in_every_order<S: Storage>(case: &Case) {
    let backend = |threads, order| {
        CudaBackend::<S, _>::new(TestDevice::with_order(threads, order).unwrap()).unwrap()
    };
    let first = bits(&run(&backend(1, 0), case).unwrap());
    assert!(first.iter().all(|&bits| f64::from_bits(bits).is_finite()));
    let first_cached = run_cached(&backend(1, 0), case, case.dims.schedule.tokens());
    for &(threads, order) in TestDevice::orders() {
        let backend = backend(threads, order);
        assert_eq!(first, bits(&run(&backend, case).unwrap()), "{threads} threads, order {order}");
        let cached = run_cached(&backend, case, case.dims.schedule.tokens());
        assert_eq!(first_cached, cached, "{threads} threads, order {order}");
    }
}

/// A missing barrier or wait would show as a result that depends on the order.
#[test]
fn same_bits_in_every_order() {
    for (sides, head_dim) in [("1_2_3_4_6_8", 64), ("1_2_3_4_6", 20), ("1_2_3_4_6", 128)] {
        let case = Case::new(schedule(sides), [1, 1, head_dim], INITIAL_SCALE);
        same_in_every_order::<f32>(&case);
        same_in_every_order::<bf16>(&case);
    }
}

/// At the head size of the published models, a sample gives the same bits alone as among others.
#[test]
fn samples_do_not_depend_on_the_batch() {
    let case = Case::new(schedule("1_2_3_4_6"), [3, 2, 64], INITIAL_SCALE);
    let all = run(&gpu::<bf16>(), &case).unwrap();
    let alone = run(&gpu::<bf16>(), &case.sample(1)).unwrap();
    for ((name, all), (_, alone)) in all.0.iter().zip(&alone.0).take(FORWARD + 1) {
        assert_eq!(&all[alone.len()..2 * alone.len()], &alone[..], "{name}");
    }
}

#[test]
fn wide_heads_are_refused_by_name() {
    let case = Case::new(schedule("1"), [1, 1, 129], INITIAL_SCALE);
    let Err(refusal) = run(&gpu::<f32>(), &case) else { panic!("129 elements are too many") };
    assert!(matches!(refusal, CudaError::Unsupported { op: "attention", .. }));
    assert!(refusal.to_string().contains("128"), "{refusal}");
}
