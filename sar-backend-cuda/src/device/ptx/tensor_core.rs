//! `ldmatrix` and `mma.m16n8k16` with the register layouts of the PTX ISA ("Warp Level Matrix Instructions").

use super::operations::{Row, WARP};
use half::bf16;

/// A matrix of 8 by 8 elements of 16 bits, by rows.
pub(super) type Matrix = [[u16; 8]; 8];

/// What each lane holds of a matrix: two neighbours of a row, or of a column where it is transposed.
pub(super) fn spread(matrix: &Matrix, transposed: bool) -> Row {
    core::array::from_fn(|lane| {
        let (major, minor) = (lane / 4, lane % 4 * 2);
        let element = |minor: usize| match transposed {
            false => matrix[major][minor],
            true => matrix[minor][major],
        };
        u64::from(element(minor)) | u64::from(element(minor + 1)) << 16
    })
}

/// The two elements of a register, in f64, in which their products are exact.
fn pair(register: u64) -> [f64; 2] {
    [register as u16, (register >> 16) as u16].map(|bits| bf16::from_bits(bits).to_f64())
}

/// d = ab + c, of 16×16, 16×8 and 16×8 elements.
pub(super) fn multiply(a: [&Row; 4], b: [&Row; 2], c: [&Row; 4]) -> [Row; 4] {
    let mut a_mk = [[0.0; 16]; 16];
    let mut b_kn = [[0.0; 8]; 16];
    for lane in 0..WARP {
        let (group, k) = (lane / 4, lane % 4 * 2);
        for (i, register) in a.iter().enumerate() {
            let (row, column) = (group + i % 2 * 8, k + i / 2 * 8);
            a_mk[row][column..][..2].copy_from_slice(&pair(register[lane]));
        }
        for (i, register) in b.iter().enumerate() {
            let [low, high] = pair(register[lane]);
            b_kn[k + i * 8][group] = low;
            b_kn[k + i * 8 + 1][group] = high;
        }
    }
    let mut d_mn = [[0.0; 8]; 16];
    for (d_n, a_k) in d_mn.iter_mut().zip(&a_mk) {
        for (a, b_n) in a_k.iter().zip(&b_kn) {
            d_n.iter_mut().zip(b_n).for_each(|(d, b)| *d += a * b);
        }
    }
    core::array::from_fn(|i| {
        core::array::from_fn(|lane| {
            let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
            let before = f64::from(f32::from_bits(c[i][lane] as u32));
            u64::from(((before + d_mn[row][column]) as f32).to_bits())
        })
    })
}
