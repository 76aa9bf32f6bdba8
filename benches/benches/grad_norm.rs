//! The global norm of a gradient; throughput counts it read once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::OptimizerOps;

/// More than caches hold.
const PARAMETERS: usize = 1 << 23;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("grad_norm");
    let (grads, mut norm) = (noise(PARAMETERS), noise(1));
    group.throughput(Throughput::Bytes((PARAMETERS * size_of::<f32>()) as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| run(backend.grad_norm(PARAMETERS, &grads, &mut norm)));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
