//! Tokens of every other scale from another buffer; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, run};
use sar_math::backend::{Buffers, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("merge_ids");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let other: Vec<bool> = (0..schedule.len()).map(|scale| scale % 2 == 0).collect();
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        for (i, id) in ids.as_mut_slice().iter_mut().enumerate() {
            *id = (i * 7919 % setting.vocab) as u32;
        }
        let from = ids.clone();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher
                .iter(|| run(backend.merge_ids(setting.batch, &schedule, &other, &from, &mut ids)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
