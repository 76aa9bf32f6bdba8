//! `adamw`: steps of AdamW with clipping, one weight that decays and one bias that does not.

use crate::backends::{Transfers, on_backends};
use crate::compare::Findings;
use crate::support::Golden;
use sar_math::backend::{AdamW, Backend, Slot};

/// Rounding of a few steps, one of which divides by the root of a moment.
const TOLERANCE: f64 = 1e-12;

// Weights, gradients and moments are f32 whatever activations are stored in.
on_backends!(golden_adamw_steps, steps, f32);

fn steps<B: Backend>(backend: &B) -> Findings {
    let golden = Golden::open("adamw");
    let mut found = Findings::default();
    let count = |name: &str| golden.shape(name).iter().product::<usize>();
    let weight = Slot { offset: 0, len: count("w0") };
    let bias = Slot { offset: weight.len, len: count("b0") };
    let len = bias.end();
    let decays: Vec<f64> = numbers(&golden.meta["weight_decay"]);
    assert_eq!(decays.get(1), Some(&0.0), "the bias must not decay");
    let betas = numbers(&golden.meta["betas"]);

    let both = |w: &str, b: &str| [golden.f64(w), golden.f64(b)].concat();
    let mut params = backend.put_params(&both("w0", "b0"));
    let (mut first, mut second) = (backend.accum(len).unwrap(), backend.accum(len).unwrap());
    let mut norm = backend.accum(1).unwrap();
    let names = golden.names();
    let steps = (0..).take_while(|i| names.contains(&format!("gw{i}"))).count();
    assert!(steps > 0, "no steps recorded");
    for step in 0..steps {
        let grads = backend.put_accum(&both(&format!("gw{step}"), &format!("gb{step}")));
        backend.grad_norm(len, &grads, &mut norm).unwrap();
        let name = format!("norm{step}");
        let want = golden.f64(&name);
        let tolerance = TOLERANCE * want[0].max(1.0);
        found.value(name, backend.get_accum(&norm, 1), want, tolerance);
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
        let (after, all) = (step + 1, backend.get_params(&params, len));
        for (name, slot) in [(format!("w{after}"), weight), (format!("b{after}"), bias)] {
            let want = golden.f64(&name);
            found.value(name, all[slot.range()].to_vec(), want, TOLERANCE);
        }
    }
    found
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}
