//! Tokens of a teacher pass, forward and backward; throughput counts x once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::{EmbeddingDims, EmbeddingOps, EmbeddingSlots, Linear};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("token_embedding");
    for setting in SETTINGS {
        let (batch, rows) = (setting.batch, setting.rows());
        let (c, k, tokens) = (setting.width, setting.channels, rows / batch);
        let dims =
            EmbeddingDims { batch, input_batch: batch, span: 0..tokens, width: c, channels: k };
        let word = Linear { weight: slot(0, c * k), bias: Some(slot(c * k, c)) };
        let slots = EmbeddingSlots { word, pos_start: Some(slot(c * k + c, c)) };
        let (params, mut grads) = (noise(c * k + 2 * c), noise(c * k + 2 * c));
        let (inputs, mut x) = (noise(rows * k), noise(rows * c));
        let (mut cond, mut pos) = (noise(batch * c), noise(tokens * c));
        group.throughput(Throughput::Bytes((rows * c * size_of::<f32>()) as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                run(backend.token_embedding(&dims, &cond, &inputs, &params, slots, &pos, &mut x));
            });
        });
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                let to = (&mut cond, &mut pos, &mut grads);
                run(backend.token_embedding_backward(&dims, &x, &inputs, slots, to.0, to.1, to.2));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
