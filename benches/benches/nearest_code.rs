//! Nearest codes of a batch's tokens; throughput counts multiply-adds twice.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Buffers, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("nearest_code");
    for setting in SETTINGS {
        let (rows, vocab, channels) = (setting.rows(), setting.vocab, setting.channels);
        let z = noise(rows * channels);
        let mut codebook = noise(vocab * channels);
        for code in codebook.as_mut_slice().chunks_exact_mut(channels) {
            let norm = code.iter().map(|c| c * c).sum::<f32>().sqrt();
            code.iter_mut().for_each(|c| *c /= norm);
        }
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        group.throughput(Throughput::Elements(2 * (rows * vocab * channels) as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher
                .iter(|| run(backend.nearest_code(rows, vocab, channels, &z, &codebook, &mut ids)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
