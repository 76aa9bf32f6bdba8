//! The 32×32 table resized to every scale, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::EmbeddingOps;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("positions");
    for setting in SETTINGS {
        let (schedule, c) = (setting.schedule(), setting.width);
        let (table, mut grads) = (noise(c * 1024), noise(c * 1024));
        let (at, mut pos) = (slot(0, c * 1024), noise(schedule.tokens() * c));
        let bytes = (c * (1024 + schedule.tokens()) * size_of::<f32>()) as u64;
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.positions(&schedule, c, &table, at, &mut pos)));
        });
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.positions_backward(&schedule, c, &pos, at, &mut grads)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
