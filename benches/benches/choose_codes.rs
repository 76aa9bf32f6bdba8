//! Guidance, filter and draw over a whole schedule; throughput counts tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::MAX_SCALES;
use sar_math::backend::{Buffers, Choice, ChooseDims, DrawKeys, Filter, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("choose_codes");
    // The published filter of a rollout.
    let filter = Filter { top_k: 900, top_p: 0.96 };
    let draw = Choice::Draw(filter, DrawKeys { seed: 1, first_image: 0 });
    for setting in SETTINGS {
        let (rows, schedule) = (setting.rows(), setting.schedule());
        let mut logits = noise(2 * rows * setting.vocab);
        // As spread as those of a trained generator.
        logits.as_mut_slice().iter_mut().for_each(|logit| *logit *= 5.0);
        let Ok(mut ids) = backend.ids(rows) else {
            panic!("no memory for {rows} ids");
        };
        group.throughput(Throughput::Elements(rows as u64));
        for (name, choice, guidance) in [
            ("argmax", Choice::Argmax, None),
            ("draw", draw, None),
            ("guided draw", draw, Some([1.5; MAX_SCALES])),
        ] {
            let dims = ChooseDims {
                batch: setting.batch,
                first_sample: 0,
                schedule,
                scales: 0..schedule.len(),
                vocab: setting.vocab,
                guidance,
                choice,
            };
            group.bench_function(format!("{name}/{}", setting.name), |bencher| {
                bencher.iter(|| run(backend.choose_codes(&dims, &logits, &mut ids)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
