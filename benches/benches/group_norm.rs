//! Group norm with SiLU at the levels of a tokenizer on 32×32 images, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run, slot};
use sar_math::backend::{GroupNorm, MapDims, TokenizerOps, Write};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("group_norm");
    for (name, channels, side) in [("full", 16, 32), ("half", 32, 16), ("latent", 32, 8)] {
        let dims = MapDims { batch: 32, channels, height: side, width: side };
        let layer = GroupNorm {
            weight: slot(0, channels),
            bias: slot(channels, channels),
            groups: 8,
            eps: 1e-6,
            silu: true,
        };
        let params = noise(2 * channels);
        let (x, dy) = (noise(dims.len()), noise(dims.len()));
        let (mut y, mut dx, mut grads) = (dy.clone(), x.clone(), params.clone());
        let mut stats = noise(dims.batch * layer.groups * 2);
        group.throughput(Throughput::Elements(dims.len() as u64));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| run(backend.group_norm(dims, &x, &params, layer, &mut y, &mut stats)));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| {
                let write = Write::Overwrite;
                let (dx, grads) = (&mut dx, &mut grads);
                run(backend
                    .group_norm_backward(dims, &dy, &x, &stats, &params, layer, write, dx, grads));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
