//! The tokenizer's ops at sizes of real layers, where kernels take whole packs, several segments and
//! split products: against the CPU backend in f64, and the same bits for any order of threads.

#![allow(clippy::unwrap_used)]

use sar_backend_cpu::{CpuBackend, NarrowCpu};
use sar_backend_cuda::{CudaBackend, Storage, TestDevice, bf16};
use sar_math::Real;
use sar_math::backend::{
    Buffers, Conv, ConvDims, GroupNorm, MapDims, QuantizeWeights, Slot, TokenizerOps, Write,
};

/// How many times the CPU's error in f32 a value and a gradient may have: sums go in another order.
const VALUE_FACTOR: f64 = 2.0;
const GRADIENT_FACTOR: f64 = 3.0;
/// Errors relative to the largest element that are nobody's fault: four roundings of f32, where the
/// CPU happens to have none.
const F32_FLOOR: f64 = 4.0 * 6e-8;
/// Whatever the CPU backend's error: an element is rounded by up to 2⁻⁸ of itself when stored.
const BF16_MOST: [f64; 2] = [4e-3, 1.2e-2];
/// As [`F32_FLOOR`], of bf16: half a step of eight significant bits; and two of them of a gradient, which meets a
/// tensor that is stored on the way (columns, probabilities, scores' gradients) and that the CPU does not store.
const BF16_VALUE: f64 = 1.0 / 512.0;
const BF16_GRADIENT: f64 = 2.0 / 512.0;

/// Operands and results of an op, by name: results that start with `d` are gradients.
type Tensors = Vec<(&'static str, Vec<f64>)>;

/// Numbers in [−1, 1] that bf16 holds exactly.
fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f64::from(bf16::from_f64((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0))
    };
    (0..len).map(|_| next()).collect()
}

fn host<B: TokenizerOps>(values: &[f64]) -> Vec<B::Host> {
    values.iter().map(|&v| B::Host::of(v)).collect()
}

fn activation<B: TokenizerOps>(gpu: &B, values: &[f64]) -> B::Activation {
    let mut held = gpu.activation(values.len()).unwrap_or_else(|e| panic!("{e}"));
    gpu.upload(&host::<B>(values), &mut held, 0).unwrap_or_else(|e| panic!("{e}"));
    held
}

fn params<B: TokenizerOps>(gpu: &B, values: &[f64]) -> B::Params {
    let mut held = gpu.params(values.len()).unwrap_or_else(|e| panic!("{e}"));
    gpu.upload_params(&host::<B>(values), &mut held, 0).unwrap_or_else(|e| panic!("{e}"));
    held
}

fn read<B: TokenizerOps>(gpu: &B, from: &B::Activation, len: usize) -> Vec<f64> {
    let mut held = host::<B>(&vec![0.0; len]);
    gpu.download(from, 0, &mut held).unwrap_or_else(|e| panic!("{e}"));
    held.into_iter().map(Real::wide).collect()
}

fn read_accum<B: TokenizerOps>(gpu: &B, from: &B::Accum, len: usize) -> Vec<f64> {
    let mut held = host::<B>(&vec![0.0; len]);
    gpu.download_accum(from, 0, &mut held).unwrap_or_else(|e| panic!("{e}"));
    held.into_iter().map(Real::wide).collect()
}

/// Calls that must succeed.
fn ok<E: core::fmt::Display>(outcome: Result<(), E>) {
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// An op with operands that follow from its dimensions.
trait Op {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors;
}

impl Op for ConvDims {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let d = *self;
        let (rows, columns) = d.output();
        let (x_len, y_len) =
            (d.batch * d.inputs * d.height * d.width, d.batch * d.outputs * rows * columns);
        let weights = d.outputs * d.inputs * d.kernel * d.kernel;
        let layer = Conv {
            weight: Slot { offset: 0, len: weights },
            bias: Slot { offset: weights, len: d.outputs },
        };
        let (x, dy) = (activation(gpu, &numbers(x_len, 1)), activation(gpu, &numbers(y_len, 2)));
        let params = params(gpu, &numbers(weights + d.outputs, 3));
        let mut y = activation(gpu, &vec![7.0; y_len]);
        ok(gpu.conv2d(d, &x, &params, layer, &mut y));
        let mut dx = activation(gpu, &vec![7.0; x_len]);
        let mut grads = gpu.accum(weights + d.outputs).unwrap_or_else(|e| panic!("{e}"));
        ok(gpu.conv2d_backward(d, &dy, &x, &params, layer, Some(&mut dx), &mut grads));
        let mut dweight = read_accum(gpu, &grads, weights + d.outputs);
        let dbias = dweight.split_off(weights);
        vec![
            ("y", read(gpu, &y, y_len)),
            ("dx", read(gpu, &dx, x_len)),
            ("dweight", dweight),
            ("dbias", dbias),
        ]
    }
}

struct Norm {
    dims: MapDims,
    groups: usize,
    silu: bool,
    write: Write,
    /// Added to x: a mean far from zero.
    mean: f64,
}

impl Op for Norm {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let (d, len, c) = (self.dims, self.dims.len(), self.dims.channels);
        let slot = |offset| Slot { offset, len: c };
        let (weight, bias) = (slot(0), slot(c));
        let layer = GroupNorm { weight, bias, groups: self.groups, eps: 1e-6, silu: self.silu };
        let moved = |v: f64| f64::from(bf16::from_f64(v + self.mean));
        let x: Vec<f64> = numbers(len, 1).into_iter().map(moved).collect();
        let (x, dy) = (activation(gpu, &x), activation(gpu, &numbers(len, 2)));
        let params = params(gpu, &numbers(2 * c, 3));
        let mut y = activation(gpu, &vec![7.0; len]);
        let groups = 2 * d.batch * self.groups;
        let mut stats = gpu.accum(groups).unwrap_or_else(|e| panic!("{e}"));
        ok(gpu.group_norm(d, &x, &params, layer, &mut y, &mut stats));
        let mut dx = activation(gpu, &numbers(len, 4));
        let mut grads = gpu.accum(2 * c).unwrap_or_else(|e| panic!("{e}"));
        ok(gpu.group_norm_backward(
            d, &dy, &x, &stats, &params, layer, self.write, &mut dx, &mut grads,
        ));
        vec![
            ("y", read(gpu, &y, len)),
            ("stats", read_accum(gpu, &stats, groups)),
            ("dx", read(gpu, &dx, len)),
            ("dparams", read_accum(gpu, &grads, 2 * c)),
        ]
    }
}

struct Attention(MapDims);

impl Op for Attention {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let (d, len) = (self.0, self.0.len());
        let square = d.batch * (d.height * d.width).pow(2);
        let [q, k, v, dy] = [1, 2, 3, 4].map(|seed| activation(gpu, &numbers(len, seed)));
        let mut p = activation(gpu, &vec![7.0; square]);
        let mut out = [(); 4].map(|()| activation(gpu, &vec![7.0; len]));
        let [y, dq, dk, dv] = &mut out;
        ok(gpu.spatial_attention(d, &q, &k, &v, &mut p, y));
        ok(gpu.spatial_attention_backward(d, &dy, &q, &k, &v, &p, dq, dk, dv));
        let named = ["y", "dq", "dk", "dv"].into_iter().zip(&out);
        let mut all: Tensors = named.map(|(name, t)| (name, read(gpu, t, len))).collect();
        all.push(("probabilities", read(gpu, &p, square)));
        all
    }
}

struct Resample(MapDims, (usize, usize));

impl Op for Resample {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let (d, len, (height, width)) = (self.0, self.0.len(), self.1);
        let small = d.batch * d.channels * height * width;
        let x = activation(gpu, &numbers(len, 1));
        let (dy, d_small) =
            (activation(gpu, &numbers(4 * len, 2)), activation(gpu, &numbers(small, 3)));
        let [mut y, mut dx] = [4 * len, len].map(|n| activation(gpu, &vec![7.0; n]));
        let [mut area, mut d_area] = [small, len].map(|n| activation(gpu, &vec![7.0; n]));
        ok(gpu.upsample_nearest(d, &x, &mut y));
        ok(gpu.upsample_nearest_backward(d, &dy, &mut dx));
        ok(gpu.area_resize(d, height, width, &x, &mut area));
        ok(gpu.area_resize_backward(d, height, width, &d_small, &mut d_area));
        vec![
            ("upsampled", read(gpu, &y, 4 * len)),
            ("dx of upsampling", read(gpu, &dx, len)),
            ("area", read(gpu, &area, small)),
            ("dx of area", read(gpu, &d_area, len)),
        ]
    }
}

struct SquaredError(usize);

impl Op for SquaredError {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let len = self.0;
        let (x, target) = (activation(gpu, &numbers(len, 1)), activation(gpu, &numbers(len, 2)));
        let mut dx = activation(gpu, &vec![7.0; len]);
        let mut loss = gpu.accum(1).unwrap_or_else(|e| panic!("{e}"));
        // A weight of the order of the length, so that gradients are of order 1.
        ok(gpu.squared_error(len, &x, &target, len as f64 * 0.25, &mut loss, &mut dx));
        vec![("loss", read_accum(gpu, &loss, 1)), ("dx", read(gpu, &dx, len))]
    }
}

struct Quantize {
    dims: MapDims,
    vocab: usize,
    /// How many of the codes the positions choose from.
    chosen: usize,
}

impl Quantize {
    fn codebook(&self) -> Vec<f64> {
        numbers(self.vocab * self.dims.channels, 3)
    }

    /// Each position near a code: rounding does not change which.
    fn z(&self) -> Vec<f64> {
        let MapDims { batch, channels, height, width } = self.dims;
        let (area, codes) = (height * width, self.codebook());
        let mut z = numbers(self.dims.len(), 1);
        for position in 0..batch * area {
            let code = &codes[position * 31 % self.chosen * channels..][..channels];
            for (c, code) in code.iter().enumerate() {
                let z = &mut z[(position / area * channels + c) * area + position % area];
                *z = f64::from(bf16::from_f64(code * 1.5 + *z * 0.125));
            }
        }
        z
    }
}

impl Op for Quantize {
    fn run<B: TokenizerOps>(&self, gpu: &B) -> Tensors {
        let (d, len, vocab) = (self.dims, self.dims.len(), self.vocab);
        let positions = d.batch * d.height * d.width;
        let size = vocab * d.channels;
        let codebook = Slot { offset: 0, len: size };
        let params = params(gpu, &self.codebook());
        let (z, given) = (activation(gpu, &self.z()), activation(gpu, &numbers(len, 2)));
        let mut ids = gpu.ids(positions).unwrap_or_else(|e| panic!("{e}"));
        let [mut quantized, mut dz] = [(); 2].map(|()| activation(gpu, &vec![7.0; len]));
        let mut distance = gpu.accum(1).unwrap_or_else(|e| panic!("{e}"));
        let mut grads = gpu.accum(size).unwrap_or_else(|e| panic!("{e}"));
        ok(gpu.vector_quantize(
            d,
            vocab,
            &z,
            &params,
            codebook,
            &mut ids,
            &mut quantized,
            &mut distance,
        ));
        let weights = QuantizeWeights { codebook: len as f64, commitment: len as f64 * 0.25 };
        ok(gpu.vector_quantize_backward(
            d, vocab, &given, &z, &ids, &params, codebook, weights, &mut dz, &mut grads,
        ));
        let mut chosen = vec![0; positions];
        ok(gpu.download_ids(&ids, 0, &mut chosen));
        vec![
            ("ids", chosen.into_iter().map(f64::from).collect()),
            ("quantized", read(gpu, &quantized, len)),
            ("distance", read_accum(gpu, &distance, 1)),
            ("dz", read(gpu, &dz, len)),
            ("dcodebook", read_accum(gpu, &grads, size)),
        ]
    }
}

/// Largest difference relative to the largest element; NaN counts as infinite.
fn error(expected: &[f64], found: &[f64]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let scale = expected.iter().fold(f64::MIN_POSITIVE, |a, v| a.max(v.abs()));
    let worst = |worst: f64, (e, f): (&f64, &f64)| {
        let error = (e - f).abs();
        if error.is_nan() { f64::INFINITY } else { worst.max(error) }
    };
    expected.iter().zip(found).fold(0.0, worst) / scale
}

fn bits(tensors: &Tensors) -> Vec<u64> {
    tensors.iter().flat_map(|(_, t)| t).map(|v| v.to_bits()).collect()
}

fn same_for_any_order<S: Storage>(op: &impl Op) -> Tensors {
    let run =
        |device: Result<_, _>| op.run(&CudaBackend::<S, TestDevice>::new(device.unwrap()).unwrap());
    let mut devices = TestDevice::in_every_order();
    let first = run(devices.next().unwrap());
    assert!(devices.all(|device| bits(&run(device)) == bits(&first)), "the order of threads");
    first
}

fn check(op: &impl Op) {
    let exact = op.run(&CpuBackend::<f64>::new());
    let single = op.run(&CpuBackend::<f32>::new());
    let found = same_for_any_order::<f32>(op);
    let narrow_cpu = op.run(&NarrowCpu::new());
    let narrow = same_for_any_order::<bf16>(op);
    for (i, (name, exact)) in exact.iter().enumerate() {
        let gradient = name.starts_with('d') && *name != "distance";
        let (factor, of_bf16) = match gradient {
            true => (GRADIENT_FACTOR, BF16_GRADIENT),
            false => (VALUE_FACTOR, BF16_VALUE),
        };
        let errors = [&single, &found, &narrow_cpu, &narrow].map(|all| error(exact, &all[i].1));
        let [single, found, narrow_cpu, narrow] = errors;
        println!(
            "{name:18} f32 {found:.1e}, CPU {single:.1e}; bf16 {narrow:.1e}, CPU {narrow_cpu:.1e}"
        );
        assert!(found <= factor * single + F32_FLOOR, "{name}: {found:e}, CPU in f32 {single:e}");
        let allowed = (factor * narrow_cpu + of_bf16).min(BF16_MOST[usize::from(gradient)]);
        assert!(narrow <= allowed, "{name} in bf16: {narrow:e}, CPU {narrow_cpu:e}");
        if *name == "ids" {
            assert!(found == 0.0 && narrow == 0.0, "ids differ");
        }
    }
}

/// Layers of a tokenizer of 32-pixel images.
const LAYER: ConvDims = ConvDims {
    batch: 3,
    inputs: 32,
    outputs: 48,
    height: 16,
    width: 16,
    kernel: 3,
    stride: 1,
    pad_before: 1,
    pad_after: 1,
};

#[test]
fn first_convolution() {
    check(&ConvDims { batch: 2, inputs: 3, outputs: 32, height: 32, width: 32, ..LAYER });
}

#[test]
fn convolution_of_whole_packs() {
    check(&LAYER);
}

#[test]
fn convolution_that_halves() {
    check(&ConvDims { outputs: 32, stride: 2, pad_before: 0, ..LAYER });
}

#[test]
fn convolution_of_odd_sizes() {
    check(&ConvDims { inputs: 20, outputs: 17, height: 11, width: 13, ..LAYER });
}

/// Many positions and few channels: the weight gradient is a sum of split products.
#[test]
fn convolution_with_split_products() {
    check(&ConvDims { batch: 4, inputs: 4, outputs: 8, height: 40, width: 40, ..LAYER });
}

#[test]
fn pointwise_convolutions() {
    let point = ConvDims { kernel: 1, pad_before: 0, pad_after: 0, ..LAYER };
    check(&point);
    check(&ConvDims { inputs: 6, outputs: 5, height: 64, width: 72, ..point });
    check(&ConvDims { height: 5, width: 5, ..point });
}

#[test]
fn group_norm_of_32_groups() {
    let dims = MapDims { batch: 2, channels: 128, height: 16, width: 16 };
    let norm = Norm { dims, groups: 32, silu: true, write: Write::Accumulate, mean: 0.0 };
    check(&norm);
    check(&Norm { silu: false, write: Write::Overwrite, ..norm });
}

/// Groups and planes of several segments, the last of them short.
#[test]
fn group_norm_of_large_maps() {
    let dims = MapDims { batch: 2, channels: 4, height: 56, width: 50 };
    check(&Norm { dims, groups: 2, silu: true, write: Write::Overwrite, mean: 0.0 });
    let odd = MapDims { height: 57, width: 47, ..dims };
    check(&Norm { dims: odd, groups: 2, silu: true, write: Write::Accumulate, mean: 0.0 });
}

/// A mean of 100 deviations costs digits of x, none of the variance.
#[test]
fn group_norm_far_from_zero() {
    let dims = MapDims { batch: 1, channels: 4, height: 48, width: 48 };
    check(&Norm { dims, groups: 2, silu: false, write: Write::Overwrite, mean: 60.0 });
}

#[test]
fn spatial_attention() {
    check(&Attention(MapDims { batch: 2, channels: 64, height: 12, width: 10 }));
    check(&Attention(MapDims { batch: 1, channels: 48, height: 16, width: 16 }));
}

#[test]
fn resampling() {
    let dims = MapDims { batch: 2, channels: 32, height: 16, width: 16 };
    for to in [(1, 1), (5, 13), (16, 16), (19, 3)] {
        check(&Resample(dims, to));
    }
    for to in [(4, 5), (40, 47)] {
        check(&Resample(MapDims { batch: 3, channels: 5, height: 7, width: 9 }, to));
    }
}

#[test]
fn squared_error_of_several_chunks() {
    check(&SquaredError(3 * 8192));
    check(&SquaredError(2 * 8192 + 4099));
}

#[test]
fn quantisation_to_8912_codes() {
    let dims = MapDims { batch: 2, channels: 32, height: 8, width: 9 };
    check(&Quantize { dims, vocab: 8912, chosen: 8912 });
}

/// Several segments of positions, most codes chosen often and some never, channels not of a tile.
#[test]
fn quantisation_of_many_positions() {
    let dims = MapDims { batch: 3, channels: 20, height: 32, width: 33 };
    check(&Quantize { dims, vocab: 70, chosen: 41 });
    check(&Quantize { dims: MapDims { channels: 40, ..dims }, vocab: 65, chosen: 1 });
    check(&Quantize { dims: MapDims { batch: 9, ..dims }, vocab: 70, chosen: 2 });
}

/// An id that is no code reads nothing beyond the table and makes the step's gradients NaN there.
#[test]
fn an_id_beyond_the_codebook_is_not_a_number() {
    let (dims, vocab) = (MapDims { batch: 1, channels: 3, height: 2, width: 2 }, 5);
    let gpu = CudaBackend::<f32, TestDevice>::new(TestDevice::new().unwrap()).unwrap();
    let params = params(&gpu, &numbers(15, 1));
    let (z, given) = (activation(&gpu, &numbers(12, 2)), activation(&gpu, &numbers(12, 3)));
    let mut ids = gpu.ids(4).unwrap();
    gpu.upload_ids(&[4, 5, 0, u32::MAX], &mut ids, 0).unwrap();
    let (mut dz, mut grads) = (activation(&gpu, &[7.0; 12]), gpu.accum(15).unwrap());
    let codebook = Slot { offset: 0, len: 15 };
    let weights = QuantizeWeights { codebook: 1.0, commitment: 1.0 };
    ok(gpu.vector_quantize_backward(
        dims, vocab, &given, &z, &ids, &params, codebook, weights, &mut dz, &mut grads,
    ));
    let nan: Vec<bool> = read(&gpu, &dz, 12).iter().map(|v| v.is_nan()).collect();
    assert_eq!(nan, [[false, true, false, true]; 3].concat());
    assert!(read_accum(&gpu, &grads, 15).iter().all(|v| v.is_finite()));
}
