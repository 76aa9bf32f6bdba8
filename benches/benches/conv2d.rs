//! Convolutions of a tokenizer on 32×32 images, forward and backward; throughput counts multiply-adds
//! twice.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run, slot};
use sar_math::backend::{Conv, ConvDims, TokenizerOps};

/// Samples of a step.
const BATCH: usize = 32;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("conv2d");
    let layers = [
        ("image", 3, 16, 32, 3, 1),
        ("full", 16, 16, 32, 3, 1),
        ("half", 32, 32, 16, 3, 1),
        ("latent", 32, 32, 8, 3, 1),
        ("downsample", 16, 16, 32, 3, 2),
        ("pointwise", 32, 32, 8, 1, 1),
        ("wide", 128, 128, 32, 3, 1),
    ];
    for (name, inputs, outputs, side, kernel, stride) in layers {
        let pad = kernel / 2;
        let before = if stride == 1 { pad } else { 0 };
        let dims = ConvDims {
            batch: if name == "wide" { 2 } else { BATCH },
            inputs,
            outputs,
            height: side,
            width: side,
            kernel,
            stride,
            pad_before: before,
            pad_after: pad,
        };
        let weights = outputs * inputs * kernel * kernel;
        let layer = Conv { weight: slot(0, weights), bias: slot(weights, outputs) };
        let (rows, columns) = dims.output();
        let positions = dims.batch * rows * columns;
        let params = noise(weights + outputs);
        let x = noise(dims.batch * inputs * side * side);
        let dy = noise(positions * outputs);
        let (mut y, mut dx, mut grads) = (dy.clone(), x.clone(), params.clone());
        let flops = 2 * (positions * weights) as u64;
        group.throughput(Throughput::Elements(flops));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| run(backend.conv2d(dims, &x, &params, layer, &mut y)));
        });
        group.throughput(Throughput::Elements(2 * flops));
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| {
                let dx = Some(&mut dx);
                run(backend.conv2d_backward(dims, &dy, &x, &params, layer, dx, &mut grads));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
