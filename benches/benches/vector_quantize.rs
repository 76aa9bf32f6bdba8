//! Straight-through quantisation of a batch's latents, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run, slot};
use sar_math::backend::{Buffers, MapDims, QuantizeWeights, TokenizerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("vector_quantize");
    for (name, channels, vocab, side) in [("demo", 8, 512, 8), ("published", 32, 8912, 16)] {
        let dims = MapDims { batch: 4, channels, height: side, width: side };
        let (z, params) = (noise(dims.len()), noise(vocab * channels));
        let (mut quantized, mut dz, mut grads) = (z.clone(), z.clone(), params.clone());
        let (Ok(mut ids), Ok(mut distance)) =
            (backend.ids(dims.batch * side * side), backend.accum(1))
        else {
            panic!("no memory for the ids");
        };
        let codebook = slot(0, vocab * channels);
        let weights = QuantizeWeights { codebook: 1.0, commitment: 0.25 };
        group.throughput(Throughput::Elements((dims.batch * side * side) as u64));
        group.bench_function(format!("forward/{name}"), |bencher| {
            bencher.iter(|| {
                let (ids, quantized, distance) = (&mut ids, &mut quantized, &mut distance);
                run(backend
                    .vector_quantize(dims, vocab, &z, &params, codebook, ids, quantized, distance));
            });
        });
        group.bench_function(format!("backward/{name}"), |bencher| {
            bencher.iter(|| {
                let (dz, grads) = (&mut dz, &mut grads);
                run(backend.vector_quantize_backward(
                    dims, vocab, &z, &z, &ids, &params, codebook, weights, dz, grads,
                ));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
