//! Every other token from the codes that are given; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, run};
use sar_math::backend::{Buffers, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("keep_codes");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let (Ok(mut ids), Ok(mut kept)) = (backend.ids(rows), backend.ids(rows)) else {
            panic!("no memory for {rows} ids");
        };
        for (i, id) in ids.as_mut_slice().iter_mut().enumerate() {
            *id = (i * 7919 % setting.vocab) as u32;
        }
        for (i, kept) in kept.as_mut_slice().iter_mut().enumerate() {
            *kept = (i % 2) as u32;
        }
        let given = ids.clone();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                let scales = 0..schedule.len();
                let (batch, schedule) = (setting.batch, &schedule);
                run(backend.keep_codes(batch, schedule, scales, &kept, &given, &mut ids));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
