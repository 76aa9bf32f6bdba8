//! A batch's latents at all scales; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{MapDims, RolloutOps, TokenSpan};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("area_tokens");
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let last = schedule.last();
        let dims = MapDims {
            batch: setting.batch,
            channels: setting.channels,
            height: last.height,
            width: last.width,
        };
        let span = TokenSpan::whole(&schedule);
        let latent = noise(setting.batch * setting.channels * last.tokens());
        let mut tokens = noise(rows * setting.channels);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.area_tokens(dims, &span, &latent, &mut tokens)));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
