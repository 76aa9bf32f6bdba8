//! Sums of a batch's token losses over each scale; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::LossOps;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("scale_sums");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let values = noise(rows);
        let mut sums = noise(schedule.len());
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher
                .iter(|| run(backend.scale_sums(setting.batch, &schedule, &values, &mut sums, 0)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
