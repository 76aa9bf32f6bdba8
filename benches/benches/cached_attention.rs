//! Attention of the last scale of a sample on all before it, with guidance (a doubled batch).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::{AttentionSlots, CachedAttentionDims, RolloutOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("cached_attention");
    for setting in SETTINGS {
        let (schedule, c, heads) = (setting.schedule(), setting.width, setting.heads);
        let last = schedule.range(schedule.len() - 1);
        let dims = CachedAttentionDims {
            batch: 2 * setting.batch,
            heads,
            head_dim: c / heads,
            past: last.start,
            tokens: last.len(),
            capacity: last.end,
        };
        let slots = AttentionSlots {
            q_bias: slot(0, c),
            v_bias: slot(c, c),
            scale_mul: slot(2 * c, heads),
        };
        let params = noise(2 * c + heads);
        let mut qkv = noise(dims.batch * last.len() * 3 * c);
        let mut cache = noise(2 * dims.batch * last.end * c);
        let mut out = noise(dims.batch * last.len() * c);
        group.throughput(Throughput::Elements(4 * (dims.batch * last.len() * last.end * c) as u64));
        group.bench_function(setting.name, |bencher| {
            bencher.iter(|| {
                run(backend.cached_attention(dims, &mut qkv, &params, slots, &mut cache, &mut out));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
