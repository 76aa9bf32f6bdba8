//! Products against their sums, and the same bits however they are shared out.

use super::*;
use crate::mat::strided_mut;

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Elements between the rows of c: nothing may be written there.
const GAP: usize = 3;
const UNTOUCHED: f32 = 77.0;

/// The product of noise with noise: a and b in one of the four layouts, rows of c with gaps between them.
/// The views end where their slices end.
fn product<T: Element>(
    (rows, depth, cols): (usize, usize, usize),
    (a_t, b_t): (bool, bool),
    onto: Onto<'_, T>,
    parallel: bool,
) -> Vec<T> {
    let of = |x: Vec<f32>| -> Vec<T> { x.into_iter().map(|x| T::of(f64::from(x))).collect() };
    let (a, b) =
        (of(noise(A_STRIDE * depth.max(A_STRIDE), 1)), of(noise((cols + 5) * (depth + 5), 2)));
    let ends = |rows: usize, cols: usize, stride: usize| (rows.max(1) - 1) * stride + cols;
    let a = if a_t {
        strided(&a[..ends(depth, rows, A_STRIDE)], depth, rows, A_STRIDE).reversed_axes()
    } else {
        strided(&a[..ends(rows, depth, depth)], rows, depth, depth)
    };
    let b = if b_t {
        strided(&b[..ends(cols, depth, depth + 5)], cols, depth, depth + 5).reversed_axes()
    } else {
        strided(&b[..ends(depth, cols, cols + 5)], depth, cols, cols + 5)
    };
    let mut c = vec![T::of(f64::from(UNTOUCHED)); ends(rows, cols, cols + GAP)];
    let before = of(noise(rows * cols, 3));
    for (c, before) in c.chunks_mut(cols + GAP).zip(before.chunks(cols)) {
        c[..cols].copy_from_slice(before);
    }
    matmul(T::one(), a, b, onto, strided_mut(&mut c, rows, cols, cols + GAP), parallel);
    let mut out = Vec::new();
    for row in c.chunks(cols + GAP) {
        out.extend_from_slice(&row[..cols]);
        assert!(row[cols..].iter().all(|&v| v == T::of(f64::from(UNTOUCHED))), "between rows of c");
    }
    out
}

const A_STRIDE: usize = 700;
const LAYOUTS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[test]
fn a_row_does_not_depend_on_the_number_of_rows_or_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (depth, cols) in [
        (1, 5),
        (2, 40),
        (3, 1),
        (32, 3),
        (64, 64),
        (64, 130),
        (64, 257),
        (600, 70),
        (600, 140),
        (1100, 33),
        (7, 257),
    ] {
        let bias = noise(cols, 4);
        for layout in LAYOUTS {
            for onto in [Onto::Nothing, Onto::Itself, Onto::Row(&bias)] {
                let all = pool.install(|| product((600, depth, cols), layout, onto, true));
                for rows in [1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 65, 129, 299, 599] {
                    let some = product((rows, depth, cols), layout, onto, false);
                    let same = some.iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "rows {rows} depth {depth} cols {cols} {layout:?} {onto:?}");
                }
            }
        }
    }
}

/// Products of many shapes against sums in f64.
fn products_are_right<T: Element>(tolerance: f64) {
    for (rows, depth, cols) in [
        (1, 1, 1),
        (5, 0, 3),
        (17, 600, 33),
        (70, 1100, 65),
        (3, 70, 200),
        (40, 130, 321),
        (40, 600, 140),
        (600, 33, 140),
    ] {
        let (a, b) = (noise(A_STRIDE * depth.max(A_STRIDE), 1), noise((cols + 5) * (depth + 5), 2));
        let (before, bias) = (noise(rows * cols, 3), noise(cols, 4));
        let row: Vec<T> = bias.iter().map(|&v| T::of(f64::from(v))).collect();
        for ((a_t, b_t), onto, parallel) in LAYOUTS.into_iter().flat_map(|layout| {
            [Onto::Nothing, Onto::Itself, Onto::Row(&row[..])]
                .into_iter()
                .flat_map(move |onto| [true, false].map(|parallel| (layout, onto, parallel)))
        }) {
            let c = product((rows, depth, cols), (a_t, b_t), onto, parallel);
            for (place, &c) in c.iter().enumerate() {
                let (i, j) = (place / cols, place % cols);
                let mut expected = f64::from(match onto {
                    Onto::Nothing => 0.0,
                    Onto::Itself => before[place],
                    Onto::Row(_) => bias[j],
                });
                for k in 0..depth {
                    let a = if a_t { a[k * A_STRIDE + i] } else { a[i * depth + k] };
                    let b = if b_t { b[j * (depth + 5) + k] } else { b[k * (cols + 5) + j] };
                    expected += f64::from(a) * f64::from(b);
                }
                assert!((c.wide() - expected).abs() < tolerance, "{rows}x{depth}x{cols} {onto:?}");
            }
        }
    }
}

#[test]
fn products_are_right_in_either_precision() {
    /// Rounding of a sum of at most 1,100 products below 1, against f64.
    const F32: f64 = 2e-4;
    /// As many roundings of f64.
    const F64: f64 = 1e-12;
    products_are_right::<f32>(F32);
    products_are_right::<f64>(F64);
}

#[test]
fn nothing_is_done_where_c_has_no_rows_or_no_columns() {
    for (rows, depth, cols) in [(0, 3, 2), (2, 3, 0), (0, 0, 5), (0, 2, 1), (1, 0, 0)] {
        let (a, b) = (noise(rows * depth, 1), noise(depth * cols, 2));
        let (a, b) = (matrix(&a, rows, depth), matrix(&b, depth, cols));
        for onto in [Onto::Nothing, Onto::Itself] {
            matmul(1.0, a, b, onto, matrix_mut(&mut [], rows, cols), true);
        }
    }
}
