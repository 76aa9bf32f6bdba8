//! `y = x·Wᵀ + bias` and its gradients.

use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use crate::simd::vectorized;
use rayon::prelude::*;
use sar_math::backend::{LinearDims, Write};

/// Columns of a bias gradient that one task adds up: whole cache lines of every row.
const COLUMNS: usize = 64;
/// Rows added up before they go to the total, which keeps long sums accurate.
const ROWS: usize = 64;

pub(crate) fn forward<T: Element>(
    LinearDims { rows, inputs, outputs }: LinearDims,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    if rows == 0 || outputs == 0 {
        return;
    }
    let onto = bias.map_or(Onto::Nothing, Onto::Row);
    let weight = matrix(weight, outputs, inputs);
    matmul(T::one(), matrix(x, rows, inputs), weight.t(), onto, matrix_mut(y, rows, outputs), true);
}

/// `dx = dy·W`.
pub(crate) fn backward_input<T: Element>(
    LinearDims { rows, inputs, outputs }: LinearDims,
    dy: &[T],
    weight: &[T],
    dx: &mut [T],
) {
    let (dy, weight) = (matrix(dy, rows, outputs), matrix(weight, outputs, inputs));
    matmul(T::one(), dy, weight, Onto::Nothing, matrix_mut(dx, rows, inputs), true);
}

/// `dW = dyᵀ·x`, or `+=`.
pub(crate) fn backward_weight<T: Element>(
    LinearDims { rows, inputs, outputs }: LinearDims,
    dy: &[T],
    x: &[T],
    write: Write,
    dweight: &mut [T],
) {
    let onto = match write {
        Write::Overwrite if rows == 0 => return dweight.fill(T::zero()),
        Write::Overwrite => Onto::Nothing,
        Write::Accumulate if rows == 0 => return,
        Write::Accumulate => Onto::Itself,
    };
    let (dy, x) = (matrix(dy, rows, outputs), matrix(x, rows, inputs));
    matmul(T::one(), dy.t(), x, onto, matrix_mut(dweight, outputs, inputs), true);
}

/// `dbias += Σ dy`, the rows of `dy` being `dbias.len()` long.
pub(crate) fn backward_bias<T: Element>(dy: &[T], dbias: &mut [T]) {
    let outputs = dbias.len();
    dbias.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, dbias)| {
        vectorized!(column_sums(dy, outputs, block * COLUMNS, dbias));
    });
}

#[inline(always)]
fn column_sums<T: Element>(dy: &[T], outputs: usize, start: usize, sums: &mut [T]) {
    for rows in dy.chunks(ROWS * outputs) {
        let mut acc = [T::zero(); COLUMNS];
        let acc = &mut acc[..sums.len()];
        for row in rows.chunks_exact(outputs) {
            for (acc, &dy) in acc.iter_mut().zip(&row[start..]) {
                *acc += dy;
            }
        }
        for (sum, &acc) in sums.iter_mut().zip(acc.iter()) {
            *sum += acc;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_by_hand() {
        let dims = LinearDims { rows: 2, inputs: 2, outputs: 3 };
        let (x, w) = ([1.0, 2.0, -1.0, 0.5], [1.0, 0.0, 0.0, 1.0, 2.0, 2.0]);
        let mut y = [9.0; 6];
        forward(dims, &x, &w, Some(&[10.0, 20.0, 30.0]), &mut y);
        assert_eq!(y, [11.0, 22.0, 36.0, 9.0, 20.5, 29.0]);
        forward(dims, &x, &w, None, &mut y);
        assert_eq!(y, [1.0, 2.0, 6.0, -1.0, 0.5, -1.0]);

        let dy = [1.0, 0.0, 1.0, 0.0, 2.0, 0.0];
        let (mut dx, mut dw, mut db) = ([9.0; 4], [1.0; 6], [1.0; 3]);
        backward_input(dims, &dy, &w, &mut dx);
        assert_eq!(dx, [3.0, 2.0, 0.0, 2.0]);
        backward_weight(dims, &dy, &x, Write::Accumulate, &mut dw);
        assert_eq!(dw, [2.0, 3.0, -1.0, 2.0, 2.0, 3.0]);
        backward_weight(dims, &dy, &x, Write::Overwrite, &mut dw);
        assert_eq!(dw, [1.0, 2.0, -2.0, 1.0, 1.0, 2.0]);
        backward_bias(&dy, &mut db);
        assert_eq!(db, [2.0, 3.0, 2.0]);
    }

    #[test]
    fn bias_sums_take_every_row_and_column() {
        for (rows, outputs) in [(1, 1), (63, 64), (64, 65), (130, 129), (200, 3)] {
            let dy: Vec<f64> = (0..rows * outputs).map(|i| (i % 101) as f64).collect();
            let mut db = vec![0.0; outputs];
            backward_bias(&dy, &mut db);
            for j in 0..outputs {
                assert_eq!(db[j], (0..rows).map(|i| dy[i * outputs + j]).sum::<f64>());
            }
        }
    }
}
