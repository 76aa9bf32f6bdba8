use super::super::check::{Random, central_difference};
use super::*;
use proptest::prelude::*;

/// Roundings of f64 in sums of at most 36 products of numbers below 1, in another order, and a bias.
const ROUNDING: f64 = 1e-13;

/// The convolution as a plain sum.
fn plain(d: ConvDims, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let (oh, ow) = d.output();
    let mut y = vec![0.0; d.batch * d.outputs * oh * ow];
    for (at, y) in y.iter_mut().enumerate() {
        let (i, j, o) = (at / ow % oh, at % ow, at / (oh * ow) % d.outputs);
        let n = at / (oh * ow * d.outputs);
        *y = b[o];
        for c in 0..d.inputs {
            for ky in 0..d.kernel {
                for kx in 0..d.kernel {
                    let (r, q) = (i * d.stride + ky, j * d.stride + kx);
                    let inside = |v: usize, n: usize| v >= d.pad_before && v < n + d.pad_before;
                    if inside(r, d.height) && inside(q, d.width) {
                        let row = (n * d.inputs + c) * d.height + r - d.pad_before;
                        *y += x[row * d.width + q - d.pad_before]
                            * w[((o * d.inputs + c) * d.kernel + ky) * d.kernel + kx];
                    }
                }
            }
        }
    }
    y
}

fn dims() -> impl Strategy<Value = ConvDims> {
    let sizes = (1..6usize, 1..5usize, 1..11usize, 1..7usize, 1..7usize);
    (sizes, 1..4usize, 1..4usize, 0..3usize, 0..3usize).prop_filter_map(
        "kernel larger than the map",
        |((batch, inputs, outputs, height, width), kernel, stride, pad_before, pad_after)| {
            let d = ConvDims {
                batch,
                inputs,
                outputs,
                height,
                width,
                kernel,
                stride,
                pad_before,
                pad_after,
            };
            (height.min(width) + pad_before + pad_after >= kernel).then_some(d)
        },
    )
}

fn run(d: ConvDims, x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
    let (oh, ow) = d.output();
    let mut y = vec![f64::NAN; d.batch * d.outputs * oh * ow];
    forward(d, x, w, b, &mut y);
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn forward_is_the_plain_sum_and_backward_its_gradient(d in dims(), seed: u64) {
        let mut random = Random(seed);
        let x = random.values(d.batch * d.inputs * d.height * d.width);
        let w = random.values(d.outputs * d.inputs * d.kernel * d.kernel);
        let b = random.values(d.outputs);
        let y = run(d, &x, &w, &b);
        for (i, (y, want)) in y.iter().zip(plain(d, &x, &w, &b)).enumerate() {
            prop_assert!((y - want).abs() < ROUNDING, "y[{}]: {} against {}", i, y, want);
        }
        let dy = random.values(y.len());
        let (mut dx, mut dw, mut db) = (vec![f64::NAN; x.len()], w.clone(), b.clone());
        backward(d, &dy, &x, &w, Some(&mut dx), &mut dw, &mut db);
        let (mut dw_alone, mut db_alone) = (w.clone(), b.clone());
        backward(d, &dy, &x, &w, None, &mut dw_alone, &mut db_alone);
        prop_assert_eq!(&dw, &dw_alone);
        prop_assert_eq!(&db, &db_alone);
        dw.iter_mut().zip(&w).for_each(|(d, w)| *d -= w);
        db.iter_mut().zip(&b).for_each(|(d, b)| *d -= b);
        central_difference("dx", &x, &dx, &dy, |x| run(d, x, &w, &b));
        central_difference("dw", &w, &dw, &dy, |w| run(d, &x, w, &b));
        central_difference("db", &b, &db, &dy, |b| run(d, &x, &w, b));
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let d = ConvDims {
        batch: 11,
        inputs: 5,
        outputs: 9,
        height: 12,
        width: 8,
        kernel: 3,
        stride: 1,
        pad_before: 1,
        pad_after: 1,
    };
    let mut random = Random(7);
    let mut values = |len| random.values(len).iter().map(|&v| v as f32).collect::<Vec<_>>();
    let (x, w) = (values(11 * 5 * 96), values(9 * 45));
    let (b, dy) = (values(9), values(11 * 9 * 96));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.map(|pool| {
            pool.install(|| {
                let mut out = vec![0.0; dy.len() + x.len() + w.len() + b.len()];
                let (y, rest) = out.split_at_mut(dy.len());
                let (dx, rest) = rest.split_at_mut(x.len());
                let (dw, db) = rest.split_at_mut(w.len());
                forward(d, &x, &w, &b, y);
                backward(d, &dy, &x, &w, Some(dx), dw, db);
                out
            })
        })
        .ok()
    };
    assert!(with(1).is_some());
    assert_eq!(with(1), with(2));
}
