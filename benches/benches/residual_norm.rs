//! Gated residual and modulated layer norm; throughput counts each tensor read or written once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, SETTINGS, noise, run};
use sar_math::backend::{Branch, Modulation, Seen, Slot, TokenDims, TransformerOps, Write};

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("residual_norm");
    for setting in SETTINGS {
        let (batch, c, rows) = (setting.batch, setting.width, setting.rows());
        let dims = TokenDims { batch, tokens: rows / batch, width: c };
        let at = Modulation { stride: 6 * c, scale: 2 * c, shift: 4 * c };
        let (x, value, dy) = (noise(rows * c), noise(rows * c), noise(rows * c));
        let (ada, mut d_ada) = (noise(batch * 6 * c), noise(batch * 6 * c));
        let (mut sum, mut y, mut stats) = (x.clone(), x.clone(), noise(2 * rows));
        let (mut dx, mut dbranch, mut grads) = (x.clone(), x.clone(), noise(c));
        let branch = || Some(Branch { value_blc: &value, gate: 0, keep: None });
        let tensor = (rows * c * size_of::<f32>()) as u64;
        group.throughput(Throughput::Bytes(4 * tensor));
        group.bench_function(format!("forward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                let to = (&mut sum, &mut y, &mut stats);
                run(backend.residual_norm(dims, 1e-6, &x, branch(), &ada, at, to.0, to.1, to.2));
            });
        });
        group.throughput(Throughput::Bytes(2 * tensor));
        group.bench_function(format!("renorm/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.renorm(dims, &sum, None, &stats, &ada, at, &mut y)));
        });
        group.throughput(Throughput::Bytes(3 * tensor));
        group.bench_function(format!("renorm-of-branch/{}", setting.name), |bencher| {
            bencher.iter(|| run(backend.renorm(dims, &x, branch(), &stats, &ada, at, &mut y)));
        });
        group.throughput(Throughput::Bytes(6 * tensor));
        group.bench_function(format!("backward/{}", setting.name), |bencher| {
            bencher.iter(|| {
                run(backend.residual_norm_backward(
                    dims,
                    &dy,
                    Seen::Sum(&sum),
                    &stats,
                    branch(),
                    &ada,
                    at,
                    Some(Slot { offset: 0, len: c }),
                    Write::Accumulate,
                    &mut dx,
                    Some(&mut dbranch),
                    &mut d_ada,
                    &mut grads,
                ));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
