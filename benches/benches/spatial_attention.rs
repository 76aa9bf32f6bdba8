//! One-head attention over the positions of a tokenizer's map, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run};
use sar_math::backend::{MapDims, TokenizerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("spatial_attention");
    for (name, channels, side) in [("8x8", 32, 8), ("16x16", 64, 16)] {
        let dims = MapDims { batch: 8, channels, height: side, width: side };
        let (q, k, v) = (noise(dims.len()), noise(dims.len()), noise(dims.len()));
        let mut kept = noise(dims.batch * (side * side).pow(2));
        let (mut y, dy) = (q.clone(), noise(dims.len()));
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        group.throughput(Throughput::Elements(dims.len() as u64));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| run(backend.spatial_attention(dims, &q, &k, &v, &mut kept, &mut y)));
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| {
                let (dq, dk, dv) = (&mut dq, &mut dk, &mut dv);
                run(backend.spatial_attention_backward(dims, &dy, &q, &k, &v, &kept, dq, dk, dv));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
