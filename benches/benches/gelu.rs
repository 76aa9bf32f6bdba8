//! GELU of the hidden layer; throughput counts each tensor read or written once.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Slot, TransformerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("gelu");
    for setting in SETTINGS {
        let (rows, columns) = (setting.rows(), 4 * setting.width);
        let len = rows * columns;
        let (bias, mut grads) = (Some(Slot { offset: 0, len: columns }), noise(columns));
        let (x, mut y) = (noise(len), noise(len));
        let tensor = (len * size_of::<f32>()) as u64;
        group.throughput(Throughput::Bytes(2 * tensor));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.gelu(len, &x, &mut y)));
        });
        group.throughput(Throughput::Bytes(3 * tensor));
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                run(backend.gelu_backward(rows, columns, &x, bias, &mut y, &mut grads));
            });
        });
        group.throughput(Throughput::Bytes(4 * tensor));
        group.bench_function(format!("again and backward/{}", setting.name), |bencher| {
            // Both change in place, so each run has its own.
            bencher.iter_batched_ref(
                || (noise(len), noise(len)),
                |(x, dy)| run(backend.regelu_backward(rows, columns, bias, x, dy, &mut grads)),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
