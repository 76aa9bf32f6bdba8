//! Linear layers of a block and the head, forward and backward; throughput counts multiply-adds twice.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::{Linear, LinearDims, TransformerOps, Write};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("linear");
    for setting in SETTINGS {
        let (rows, c) = (setting.rows(), setting.width);
        let layers = [
            ("qkv", c, 3 * c),
            ("proj", c, c),
            ("fc1", c, 4 * c),
            ("fc2", 4 * c, c),
            ("head", c, setting.vocab),
        ];
        for (name, inputs, outputs) in layers {
            let dims = LinearDims { rows, inputs, outputs };
            let weights = inputs * outputs;
            let layer = Linear { weight: slot(0, weights), bias: Some(slot(weights, outputs)) };
            let params = noise(weights + outputs);
            let (x, dy) = (noise(rows * inputs), noise(rows * outputs));
            let (mut y, mut dx, mut grads) = (dy.clone(), x.clone(), params.clone());
            let flops = 2 * (rows * weights) as u64;
            group.throughput(Throughput::Elements(flops));
            group.bench_function(format!("forward/{}/{name}", setting.name), |bencher| {
                bencher.iter(|| run(backend.linear(dims, &x, &params, layer, &mut y)));
            });
            group.throughput(Throughput::Elements(2 * flops));
            group.bench_function(format!("backward/{}/{name}", setting.name), |bencher| {
                bencher.iter(|| {
                    run(backend.linear_backward_input(dims, &dy, &params, layer, &mut dx));
                    run(backend.linear_backward_weight(
                        dims,
                        &dy,
                        &x,
                        layer,
                        Write::Overwrite,
                        &mut grads,
                    ));
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
