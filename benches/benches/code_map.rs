//! Codes of the last scale as a map for the decoder, and those of the one before at its size; throughput counts
//! tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Buffers, RolloutDims, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("code_map");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let scale = schedule.len() - 1;
        let dims = RolloutDims {
            batch: setting.batch,
            schedule,
            scales: scale - 1..scale + 1,
            channels: setting.channels,
            vocab: setting.vocab,
        };
        let size = (schedule.last().height, schedule.last().width);
        let tokens = setting.batch * schedule.last().tokens();
        let codebook = noise(setting.vocab * setting.channels);
        let mut map = noise(tokens * setting.channels);
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        for (i, id) in ids.as_mut_slice().iter_mut().enumerate() {
            *id = (i * 7919 % setting.vocab) as u32;
        }
        group.throughput(Throughput::Elements(tokens as u64));
        for (name, scale) in [("forward", scale), ("resized", scale - 1)] {
            group.bench_function(format!("{name}/{}", setting.name), |bencher| {
                bencher
                    .iter(|| run(backend.code_map(&dims, scale, size, &ids, &codebook, &mut map)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
