//! Against the formula written out, and against central differences.

use super::*;
use sar_math::ScaleSchedule;

/// Roundings of f64 in scores as large as 100, before an exponential.
const ROUNDING: f64 = 1e-12;

fn dims() -> AttentionDims {
    let schedule = ScaleSchedule::from_sides(&[1, 2, 9]).unwrap();
    AttentionDims { batch: 2, heads: 3, head_dim: 4, schedule }
}

/// Width and tokens of [`dims`].
const C: usize = 12;
const L: usize = 86;

fn noise(n: usize, k: usize) -> Vec<f64> {
    (0..n).map(|i| ((i * 7919 + k * 31) % 1009) as f64 / 500.0 - 1.0).collect()
}

/// qkv, q bias, v bias, log-scales (one of them clamped).
fn inputs() -> [Vec<f64>; 4] {
    [noise(2 * L * 3 * C, 1), noise(C, 2), noise(C, 3), vec![1.4, 5.0, -0.5]]
}

fn params(x: &[Vec<f64>; 4]) -> HeadParams<'_, f64> {
    HeadParams { q_bias: &x[1], v_bias: &x[2], scale_mul: &x[3], stored: None }
}

/// What a forward leaves: qkv, inverse norms, lse, out.
fn run(x: &[Vec<f64>; 4]) -> [Vec<f64>; 4] {
    let mut left = [x[0].clone(), vec![0.0; 2 * L * 6], vec![0.0; 2 * L * 3], vec![0.0; 2 * L * C]];
    let [qkv, norms, lse, out] = &mut left;
    forward(&dims(), qkv, params(x), norms, lse, out);
    left
}

/// The formula, token by token.
fn plain(x: &[Vec<f64>; 4]) -> Vec<f64> {
    let (dims, d) = (dims(), 4);
    let mut out = vec![0.0; 2 * L * C];
    let vector = |b: usize, l: usize, part: usize, h: usize| -> Vec<f64> {
        let bias = |i: usize| match part {
            0 => x[1][h * d + i],
            1 => 0.0,
            _ => x[2][h * d + i],
        };
        let v: Vec<f64> =
            (0..d).map(|i| x[0][((b * L + l) * 3 + part) * C + h * d + i] + bias(i)).collect();
        if part == 2 {
            return v;
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        let scale = if part == 0 { x[3][h].min(SCALE_MUL_MAX).exp() } else { 1.0 };
        v.iter().map(|v| v * scale / norm).collect()
    };
    for (b, h, l) in (0..2).flat_map(|b| (0..3).flat_map(move |h| (0..L).map(move |l| (b, h, l)))) {
        let q = vector(b, l, 0, h);
        let weights: Vec<f64> = (0..dims.schedule.visible(l))
            .map(|m| vector(b, m, 1, h).iter().zip(&q).map(|(k, q)| k * q).sum::<f64>().exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        for (m, weight) in weights.iter().enumerate() {
            for (i, v) in vector(b, m, 2, h).iter().enumerate() {
                out[(b * L + l) * C + h * d + i] += weight / sum * v;
            }
        }
    }
    out
}

#[test]
fn forward_is_the_formula() {
    let mut x = inputs();
    // A key of norm zero.
    x[0][C..C + 4].fill(0.0);
    let [.., out] = run(&x);
    for (found, expected) in out.iter().zip(plain(&x)) {
        assert!((found - expected).abs() < ROUNDING, "{found} {expected}");
    }
}

#[test]
fn f32_follows_f64() {
    /// Rounding of scores as large as 100 before an exponential.
    const TOLERANCE: f64 = 1e-4;
    let x = inputs();
    let [.., exact] = run(&x);
    let x = x.map(|x| x.iter().map(|&x| x as f32).collect::<Vec<f32>>());
    let params = HeadParams { q_bias: &x[1], v_bias: &x[2], scale_mul: &x[3], stored: None };
    let mut qkv = x[0].clone();
    let (mut norms, mut lse) = (vec![0.0; 2 * L * 6], vec![0.0; 2 * L * 3]);
    let mut out = vec![0.0; 2 * L * C];
    forward(&dims(), &mut qkv, params, &mut norms, &mut lse, &mut out);
    for (found, expected) in out.iter().zip(exact) {
        assert!((f64::from(*found) - expected).abs() < TOLERANCE, "{found} {expected}");
    }
}

#[test]
fn gradients_match_central_differences() {
    /// Truncation h²·(third derivative, large under a scale of 100) and rounding 1e-16/h, h = 1e-6.
    const TOLERANCE: f64 = 1e-6;
    let (dims, x) = (dims(), inputs());
    let d_out = noise(2 * L * C, 9);
    let [qkv, inverse_norms, lse, out] = run(&x);
    let saved = Saved {
        d_out: &d_out,
        out: &out,
        qkv: &qkv,
        inverse_norms: &inverse_norms,
        lse: &lse,
        params: params(&x),
    };
    let mut found = [vec![9.0; x[0].len()], vec![0.0; C], vec![0.0; C], vec![0.0; 3]];
    let mut partials = vec![9.0; 6 * partial_len(&dims)];
    let [dqkv, parts @ ..] = &mut found;
    backward(&dims, &saved, dqkv, &mut partials);
    for (grad, part) in parts.iter_mut().zip([0..4, 4..8, 8..9]) {
        add_partials(&dims, &partials, part, grad);
    }
    for which in 0..4 {
        for i in (0..x[which].len()).step_by(if which == 0 { 29 } else { 1 }) {
            let side = |h: f64| -> f64 {
                let mut x = x.clone();
                x[which][i] += h;
                run(&x)[3].iter().zip(&d_out).map(|(out, d)| out * d).sum()
            };
            let slope = (side(1e-6) - side(-1e-6)) / 2e-6;
            let found = found[which][i];
            assert!(
                (found - slope).abs() < TOLERANCE * (1.0 + slope.abs()),
                "{which} {i}: {found} {slope}"
            );
        }
    }
    assert_eq!(found[3][1], 0.0, "a clamped scale has no gradient");
}
