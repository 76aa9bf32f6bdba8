//! Guidance of features before the head; throughput counts each tensor read or written once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::RolloutOps;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("guide");
    // In place, call after call: without strength, which would let the features grow.
    for setting in SETTINGS {
        let len = setting.rows() * setting.width;
        let mut x = noise(2 * len);
        group.throughput(Throughput::Bytes((3 * len * size_of::<f32>()) as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.guide(len, 0.0, &mut x)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
