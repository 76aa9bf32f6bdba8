//! Nearest ×2 at the levels of a tokenizer on 32×32 images, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::{MapDims, TokenizerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("upsample_nearest");
    for (name, channels, side) in [("half", 32, 16), ("latent", 32, 8)] {
        let dims = MapDims { batch: 32, channels, height: side, width: side };
        let (x, dy) = (noise(dims.len()), noise(4 * dims.len()));
        let (mut y, mut dx) = (dy.clone(), x.clone());
        group.throughput(Throughput::Elements(4 * dims.len() as u64));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| run(backend.upsample_nearest(dims, &x, &mut y)));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| run(backend.upsample_nearest_backward(dims, &dy, &mut dx)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
