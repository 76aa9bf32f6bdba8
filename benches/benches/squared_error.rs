//! Reconstruction error of a batch of images with its gradient.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::{Buffers, TokenizerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("squared_error");
    for (name, side) in [("32px", 32), ("64px", 64)] {
        let len = 32 * 3 * side * side;
        let (x, target) = (noise(len), noise(len));
        let mut dx = x.clone();
        let Ok(mut loss) = backend.accum(1) else {
            panic!("no memory for a number");
        };
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(format!("both/{name}"), |bencher| {
            bencher.iter(|| run(backend.squared_error(len, &x, &target, 1.0, &mut loss, &mut dx)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
