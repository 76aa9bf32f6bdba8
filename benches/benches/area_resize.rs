//! Area resampling of latents to a coarse grid, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::{MapDims, TokenizerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("area_resize");
    for (name, side, to) in [("8to4", 8, 4), ("8to3", 8, 3), ("16to10", 16, 10)] {
        let dims = MapDims { batch: 32, channels: 32, height: side, width: side };
        let small = dims.batch * dims.channels * to * to;
        let (x, dy) = (noise(dims.len()), noise(small));
        let (mut y, mut dx) = (dy.clone(), x.clone());
        group.throughput(Throughput::Elements(dims.len() as u64));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| run(backend.area_resize(dims, to, to, &x, &mut y)));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| run(backend.area_resize_backward(dims, to, to, &dy, &mut dx)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
