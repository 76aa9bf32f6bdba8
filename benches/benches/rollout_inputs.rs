//! Inputs of all scales from the codes of the scales before; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Buffers, RolloutDims, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("rollout_inputs");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let dims = RolloutDims {
            batch: setting.batch,
            schedule,
            scales: 1..schedule.len(),
            channels: setting.channels,
            vocab: setting.vocab,
        };
        let codebook = noise(setting.vocab * setting.channels);
        let mut inputs = noise(rows * setting.channels);
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        for (i, id) in ids.as_mut_slice().iter_mut().enumerate() {
            *id = (i * 7919 % setting.vocab) as u32;
        }
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.rollout_inputs(&dims, &ids, &codebook, &mut inputs)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
