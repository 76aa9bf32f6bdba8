//! Block-causal attention; throughput counts the multiply-adds of visible pairs, twice each.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run, slot};
use sar_math::backend::{AttentionDims, AttentionSlots, TransformerOps};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("attention");
    for setting in SETTINGS {
        let (schedule, rows) = (setting.schedule(), setting.rows());
        let (c, heads) = (setting.width, setting.heads);
        let dims = AttentionDims { batch: setting.batch, heads, head_dim: c / heads, schedule };
        let slots = AttentionSlots {
            q_bias: slot(0, c),
            v_bias: slot(c, c),
            scale_mul: slot(2 * c, heads),
        };
        let (params, d_out) = (noise(2 * c + heads), noise(rows * c));
        let (mut qkv, mut dqkv) = (noise(3 * rows * c), noise(3 * rows * c));
        let (mut norms, mut lse) = (noise(2 * rows * heads), noise(rows * heads));
        let (mut out, mut grads) = (noise(rows * c), noise(2 * c + heads));
        let visible: usize = (0..schedule.tokens()).map(|token| schedule.visible(token)).sum();
        let product = 2 * (setting.batch * visible * c) as u64;
        group.throughput(Throughput::Elements(2 * product));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                let to = (&mut norms, &mut lse, &mut out);
                run(backend.attention(dims, &mut qkv, &params, slots, to.0, to.1, to.2));
            });
        });
        group.throughput(Throughput::Elements(5 * product));
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                run(backend.attention_backward(
                    dims, &d_out, &out, &qkv, &norms, &lse, &params, slots, &mut dqkv, &mut grads,
                ));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
