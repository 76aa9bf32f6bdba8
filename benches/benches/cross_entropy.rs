//! Cross-entropy of a step's logits; throughput counts each logit read or written once.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::MAX_SCALES;
use sar_math::backend::{Buffers, LossDims, LossOps, TargetRows, TokenLoss};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("cross_entropy");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let dims = LossDims {
            batch: setting.batch,
            first_sample: 0,
            schedule,
            vocab: setting.vocab,
            smoothing: 0.0,
            weights: [1.0 / rows as f64; MAX_SCALES],
            targets: TargetRows::beside(&schedule),
        };
        let logits = noise(rows * setting.vocab);
        let (Ok(targets), Ok(mut out)) = (backend.ids(rows), TokenLoss::new(&backend, rows)) else {
            panic!("no memory for {rows} rows");
        };
        let bytes = (logits.len() * size_of::<f32>()) as u64;
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.cross_entropy(&dims, &logits, &targets, &mut out)));
        });
        group.throughput(Throughput::Bytes(2 * bytes));
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            // In place, so every call needs its own logits.
            bencher.iter_batched_ref(
                || logits.clone(),
                |logits| run(backend.cross_entropy_backward(&dims, logits, &targets, &out)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
