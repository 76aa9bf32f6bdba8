//! Class rows of a batch, forward and backward.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::{Buffers, EmbeddingOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("class_embedding");
    for setting in SETTINGS {
        let (batch, c, classes) = (setting.batch, setting.width, 1001);
        let mut labels = backend.ids(batch).unwrap_or_else(|error| panic!("{error}"));
        for (b, label) in labels.as_mut_slice().iter_mut().enumerate() {
            *label = (b * 37 % classes) as u32;
        }
        let (table, mut grads) = (noise(classes * c), noise(classes * c));
        let (at, mut cond) = (slot(0, classes * c), noise(batch * c));
        group.throughput(Throughput::Bytes((2 * batch * c * size_of::<f32>()) as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.class_embedding(batch, c, &labels, &table, at, &mut cond)));
        });
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                run(backend.class_embedding_backward(batch, c, &labels, &cond, at, &mut grads));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
