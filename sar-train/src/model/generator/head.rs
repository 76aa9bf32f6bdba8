//! The head: computes logits for a part of a batch at a time, so that those of a whole batch,
//! `b·l·v` numbers, are never held at once.
//!
//! Each part goes all the way: head, loss, gradient of the loss and backward of the head, which
//! leaves the gradient of the last norm's output for [`Generator::backward`].

use super::{Generator, Gradients};
use sar_math::backend::{Backend, Buffers, LinearDims, ShapeError, Write};
use std::ops::Range;

/// Buffers for the logits of a part of a batch.
pub struct Head<B: Buffers> {
    /// Number of tokens that fit.
    rows: usize,
    /// Input of the head: the last norm's output, `[n, l, c]`.
    normed: B::Activation,
    /// Logits `[n, l, v]`; the loss turns them into their gradient.
    pub logits: B::Activation,
}

impl<B: Backend> Head<B> {
    /// Allocates buffers for `rows` tokens, counting those of all samples of a part.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &B, generator: &Generator, rows: usize) -> Result<Self, B::Error> {
        let g = generator.shape();
        Ok(Self {
            rows,
            normed: backend.activation(rows * g.width)?,
            logits: backend.activation(rows * g.vocab)?,
        })
    }

    /// Number of samples of `tokens` tokens that fit; at least one.
    pub(crate) fn samples(&self, tokens: usize) -> usize {
        (self.rows / tokens.max(1)).max(1)
    }
}

/// Splits `batch` samples into as few parts of at most `most` as possible, all of nearly the same
/// size.
pub(crate) fn parts(batch: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = batch.div_ceil(most.max(1));
    (0..count).map(move |i| batch * i / count..batch * (i + 1) / count)
}

impl Generator {
    /// Computes the logits of `samples`, one or more ranges of the batch, stored one after the
    /// other.
    ///
    /// `normed` is the last norm's output for samples of `tokens` tokens each, `[b, l, c]`.
    ///
    /// # Errors
    /// Shape, if the samples do not fit into `head` or lie beyond the end of `normed`; a device
    /// fault.
    pub fn head<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        tokens: usize,
        normed: &B::Activation,
        samples: &[Range<usize>],
        head: &mut Head<B>,
    ) -> Result<(), B::Error> {
        let (width, mut rows) = (self.shape().width, 0);
        ShapeError::at_least(
            "generator",
            "tokens of the head's room",
            samples.iter().map(|s| s.len() * tokens).sum(),
            head.rows,
        )?;
        for part in samples {
            let (from, count) = (part.start * tokens, part.len() * tokens);
            let to = &mut head.normed;
            backend.copy(normed, from * width, to, rows * width, count * width)?;
            rows += count;
        }
        let dims = self.head_dims(rows);
        backend.linear(dims, &head.normed, params, self.head, &mut head.logits)
    }

    /// Computes the head's parameter gradients and the gradient of the last norm's output for
    /// `samples`, from the gradient of their logits in `head`.
    ///
    /// `head` may hold logits of further samples after these; they have no gradient.
    ///
    /// # Errors
    /// As for [`Generator::head`].
    pub fn head_backward<B: Backend>(
        &self,
        backend: &B,
        params: &B::Params,
        tokens: usize,
        samples: Range<usize>,
        head: &Head<B>,
        grads: &mut Gradients<B>,
    ) -> Result<(), B::Error> {
        let (width, rows) = (self.shape().width, samples.len() * tokens);
        // No branch has a gradient yet, so its buffer can be used as scratch.
        let (scratch, dy) = (&mut grads.dbranch, &mut grads.dy);
        let (dims, d_logits) = (self.head_dims(rows), &head.logits);
        backend.linear_backward_input(dims, d_logits, params, self.head, scratch)?;
        let (write, into) = (grads.head, &mut grads.params);
        backend.linear_backward_weight(dims, d_logits, &head.normed, self.head, write, into)?;
        grads.head = Write::Accumulate;
        backend.copy(scratch, 0, dy, samples.start * tokens * width, rows * width)
    }

    fn head_dims(&self, rows: usize) -> LinearDims {
        LinearDims { rows, inputs: self.shape().width, outputs: self.shape().vocab }
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn parts_are_few_and_even_and_the_whole() {
        for batch in 0..40 {
            for most in 1..50 {
                let all: Vec<_> = parts(batch, most).collect();
                assert_eq!(all.len(), batch.div_ceil(most));
                assert_eq!(
                    all.iter().cloned().flatten().collect::<Vec<_>>(),
                    Vec::from_iter(0..batch)
                );
                let sizes = all.iter().map(ExactSizeIterator::len);
                let (least, largest) = (sizes.clone().min(), sizes.max());
                assert!(largest <= Some(most) && least.map(|n| n + 1) >= largest);
            }
        }
    }
}
