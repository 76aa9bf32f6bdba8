//! `adamw`: steps of AdamW with clipping, one weight that decays and one bias that does not.

use crate::support::{Golden, assert_close};
use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::backend::{AdamW, Buffers, OptimizerOps, Slot};

/// Rounding of a few steps, one of which divides by the root of a moment.
const TOLERANCE: f64 = 1e-12;

#[test]
fn golden_adamw_steps() {
    let golden = Golden::open("adamw");
    let backend = CpuBackend::<f64>::new();
    let count = |name: &str| golden.shape(name).iter().product::<usize>();
    let weight = Slot { offset: 0, len: count("w0") };
    let bias = Slot { offset: weight.len, len: count("b0") };
    let len = bias.end();
    let decays: Vec<f64> = numbers(&golden.meta["weight_decay"]);
    assert_eq!(decays.get(1), Some(&0.0), "the bias must not decay");
    let betas = numbers(&golden.meta["betas"]);

    let mut params = backend.params(len).unwrap();
    upload(&backend, &golden, &mut params, "w0", "b0");
    let (mut first, mut second) = (backend.accum(len).unwrap(), backend.accum(len).unwrap());
    let (mut grads, mut norm) = (backend.accum(len).unwrap(), backend.accum(1).unwrap());
    let names = golden.names();
    let steps = (0..).take_while(|i| names.contains(&format!("gw{i}"))).count();
    assert!(steps > 0, "no steps recorded");
    for step in 0..steps {
        upload(&backend, &golden, &mut grads, &format!("gw{step}"), &format!("gb{step}"));
        backend.grad_norm(len, &grads, &mut norm).unwrap();
        let want = golden.f64(&format!("norm{step}"));
        assert_close("norm", norm.as_slice(), &want, TOLERANCE * want[0].max(1.0));
        let hyper = AdamW {
            lr: golden.number("lr"),
            beta1: betas[0],
            beta2: betas[1],
            eps: golden.number("eps"),
            weight_decay: decays[0],
            step: step as u64 + 1,
            clip: golden.number("clip"),
        };
        backend
            .adamw(&hyper, &[weight], &[bias], &grads, &norm, &mut first, &mut second, &mut params)
            .unwrap();
        let after = step + 1;
        for (name, slot) in [(format!("w{after}"), weight), (format!("b{after}"), bias)] {
            let got = &params.as_slice()[slot.range()];
            assert_close(&name, got, &golden.f64(&name), TOLERANCE);
        }
    }
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn upload(
    backend: &CpuBackend<f64>,
    golden: &Golden,
    to: &mut Buffer<f64>,
    weight: &str,
    bias: &str,
) {
    let weight = golden.f64(weight);
    backend.upload_params(&weight, to, 0).unwrap();
    backend.upload_params(&golden.f64(bias), to, weight.len()).unwrap();
}
