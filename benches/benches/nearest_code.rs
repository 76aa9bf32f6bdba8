//! Nearest codes of a batch's tokens; throughput counts multiply-adds twice.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Buffers, CodeDims, Distance, RolloutOps, TokenSpan};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("nearest_code");
    for setting in SETTINGS {
        let (rows, vocab, channels) = (setting.rows(), setting.vocab, setting.channels);
        let z = noise(rows * channels);
        let span = TokenSpan::whole(&setting.schedule());
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        group.throughput(Throughput::Elements(2 * (rows * vocab * channels) as u64));
        for (name, distance) in [("forward", Distance::Cosine), ("euclidean", Distance::Euclidean)]
        {
            let codes = CodeDims { vocab, channels, distance };
            let mut codebook = noise(vocab * codes.columns());
            for row in codebook.as_mut_slice().chunks_exact_mut(codes.columns()) {
                let (code, rest) = row.split_at_mut(channels);
                let square = code.iter().map(|c| c * c).sum::<f32>();
                match distance {
                    Distance::Cosine => code.iter_mut().for_each(|c| *c /= square.sqrt()),
                    Distance::Euclidean => rest.fill(-0.5 * square),
                }
            }
            group.bench_function(format!("{name}/{}", setting.name), |bencher| {
                let batch = setting.batch;
                bencher.iter(|| {
                    run(backend.nearest_code(batch, &span, codes, &z, &codebook, &mut ids))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
