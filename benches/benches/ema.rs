//! The running average of the parameters; throughput counts each buffer read or written once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::OptimizerOps;

/// More than caches hold.
const PARAMETERS: usize = 1 << 23;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("ema");
    let (params, mut average) = (noise(PARAMETERS), noise(PARAMETERS));
    group.throughput(Throughput::Bytes((3 * PARAMETERS * size_of::<f32>()) as u64));
    group.bench_function("step", |bencher| {
        bencher.iter(|| run(backend.ema(PARAMETERS, 0.999, &params, &mut average)));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
