//! Tokens of a pass: the class token and the embedded codes, plus positions.

use super::linear;
use crate::Element;
use crate::mat::{Onto, matrix, matrix_mut};
use crate::matmul::matmul;
use rayon::prelude::*;
use sar_math::backend::EmbeddingDims;

/// Parameters of the forward, as slices.
pub(crate) struct Weights<'a, T> {
    /// `[C, K]`.
    pub word: &'a [T],
    pub bias: Option<&'a [T]>,
    pub pos_start: Option<&'a [T]>,
}

pub(crate) fn forward<T: Element>(
    dims: &EmbeddingDims,
    cond: &[T],
    inputs: &[T],
    weights: &Weights<'_, T>,
    pos: &[T],
    x: &mut [T],
) {
    let (width, tokens) = (dims.width, dims.span.len());
    if width == 0 || tokens == 0 {
        return;
    }
    let class = dims.class_tokens();
    let words = tokens - class;
    let pos = &pos[dims.span.start * width..dims.span.end * width];
    x.par_chunks_exact_mut(tokens * width).enumerate().for_each(|(b, x)| {
        let (first, others) = x.split_at_mut(class * width);
        for c in 0..first.len() {
            first[c] = cond[b * width + c] + pos[c];
            if let Some(pos_start) = weights.pos_start {
                first[c] += pos_start[c];
            }
        }
        others.copy_from_slice(&pos[class * width..]);
        if let Some(bias) = weights.bias {
            for row in others.chunks_exact_mut(width) {
                for (x, &bias) in row.iter_mut().zip(bias) {
                    *x += bias;
                }
            }
        }
        let size = words * dims.channels;
        let inputs = matrix(&inputs[b % dims.input_batch * size..][..size], words, dims.channels);
        let word = matrix(weights.word, width, dims.channels);
        matmul(T::one(), inputs, word.t(), Onto::Itself, matrix_mut(others, words, width), false);
    });
}

/// `dcond_b = dx_b0`, `dpos = Σ_b dx_b`.
pub(crate) fn backward<T: Element>(
    dims: &EmbeddingDims,
    dx: &[T],
    dcond: &mut [T],
    dpos: &mut [T],
) {
    let (width, sample) = (dims.width, dims.span.len() * dims.width);
    if sample == 0 {
        dcond.fill(T::zero());
        return;
    }
    for (dcond, dx) in dcond.chunks_exact_mut(width).zip(dx.chunks_exact(sample)) {
        dcond.copy_from_slice(&dx[..width]);
    }
    dpos.par_chunks_mut(width).enumerate().for_each(|(token, dpos)| {
        dpos.fill(T::zero());
        for dx in dx.chunks_exact(sample) {
            for (dpos, &dx) in dpos.iter_mut().zip(&dx[token * width..]) {
                *dpos += dx;
            }
        }
    });
}

/// `dword += Σ_b dx_bᵀ·inputs_b` over all tokens but the class token.
pub(crate) fn backward_word<T: Element>(
    dims: &EmbeddingDims,
    dx: &[T],
    inputs: &[T],
    dword: &mut [T],
) {
    let (width, channels) = (dims.width, dims.channels);
    let words = dims.span.len().saturating_sub(1);
    if words == 0 || width == 0 || channels == 0 {
        return;
    }
    let samples = dx.chunks_exact((words + 1) * width);
    for (dx, inputs) in samples.zip(inputs.chunks_exact(words * channels)) {
        let dx = matrix(&dx[width..], words, width);
        let inputs = matrix(inputs, words, channels);
        matmul(T::one(), dx.t(), inputs, Onto::Itself, matrix_mut(dword, width, channels), true);
    }
}

/// `dbias += Σ` of `dpos` over all tokens but the class token.
pub(crate) fn backward_bias<T: Element>(dpos: &[T], dbias: &mut [T]) {
    if let Some(words) = dpos.get(dbias.len()..) {
        linear::backward_bias(words, dbias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_by_hand() {
        let mut dims =
            EmbeddingDims { batch: 2, input_batch: 1, span: 0..2, width: 2, channels: 1 };
        let (cond, pos) = ([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]);
        let weights =
            Weights { word: &[10.0, 20.0], bias: Some(&[5.0, 6.0]), pos_start: Some(&[7.0, 8.0]) };
        let mut x = [0.0; 8];
        forward(&dims, &cond, &[2.0], &weights, &pos, &mut x);
        assert_eq!(x, [8.1, 10.2, 25.3, 46.4, 10.1, 12.2, 25.3, 46.4]);
        dims.span = 1..2;
        let mut x = [0.0; 4];
        forward(&dims, &cond, &[2.0], &weights, &pos, &mut x);
        assert_eq!(x, [25.3, 46.4, 25.3, 46.4]);
    }

    #[test]
    fn gradients_by_hand() {
        let dims = EmbeddingDims { batch: 2, input_batch: 2, span: 0..2, width: 2, channels: 1 };
        let dx = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let (mut dcond, mut dpos, mut dword, mut dbias) = ([9.0; 4], [9.0; 4], [1.0; 2], [1.0; 2]);
        backward(&dims, &dx, &mut dcond, &mut dpos);
        backward_word(&dims, &dx, &[2.0, 10.0], &mut dword);
        backward_bias(&dpos, &mut dbias);
        assert_eq!(dcond, [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(dpos, [6.0, 8.0, 10.0, 12.0]);
        assert_eq!(dword, [77.0, 89.0]);
        assert_eq!(dbias, [11.0, 13.0]);
    }
}
