//! One optimiser step; throughput counts each buffer read or written once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sar_benches::{Backend, noise, run, slot};
use sar_math::backend::{AdamW, OptimizerOps};

/// Parameters: about those of a generator of depth 4 and width 256, and more than caches hold.
const PARAMETERS: usize = 1 << 23;

fn bench(criterion: &mut Criterion) {
    let backend = Backend::new();
    let mut group = criterion.benchmark_group("adamw");
    let hyper = AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.05,
        step: 10,
        clip: 2.0,
    };
    let grads = noise(PARAMETERS);
    let (mut params, mut first, mut second) =
        (noise(PARAMETERS), noise(PARAMETERS), noise(PARAMETERS));
    let mut norm = noise(1);
    run(backend.grad_norm(PARAMETERS, &grads, &mut norm));
    // A second moment is never negative.
    second.as_mut_slice().iter_mut().for_each(|v| *v *= *v);
    let decayed = [slot(0, PARAMETERS / 2)];
    let plain = [slot(PARAMETERS / 2, PARAMETERS / 2)];
    group.throughput(Throughput::Bytes((7 * PARAMETERS * size_of::<f32>()) as u64));
    group.bench_function("step", |bencher| {
        bencher.iter(|| {
            run(backend.adamw(
                &hyper,
                &decayed,
                &plain,
                &grads,
                &norm,
                &mut first,
                &mut second,
                &mut params,
            ));
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
