//! The head: logits of some samples of a pass at a time, so that those of a whole batch, `b·l·v`
//! numbers, are never needed at once.
//!
//! A part of the batch goes all the way: head, loss, the loss's gradient, and the head's backward,
//! which leaves the gradient of the last norm's output for [`Generator::backward`].

use super::{Generator, Gradients};
use sar_math::backend::{Backend, Buffers, LinearDims, ShapeError, Write};
use std::ops::Range;

/// Room for the logits of a part of a batch.
pub struct Head<B: Buffers> {
    /// Tokens that there is room for.
    rows: usize,
    /// What they are made from: the last norm's output, `[n, l, c]`.
    normed: B::Activation,
    /// Logits `[n, l, v]`; the loss turns them into their gradient.
    pub logits: B::Activation,
}

impl<B: Backend> Head<B> {
    /// Room for `rows` tokens: those of all samples of a part together.
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

    /// How many samples of `tokens` tokens there is room for; one at least.
    pub(crate) fn samples(&self, tokens: usize) -> usize {
        (self.rows / tokens.max(1)).max(1)
    }
}

/// `batch` samples in as few parts of at most `most` as it takes, all of nearly the same size.
pub(crate) fn parts(batch: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = batch.div_ceil(most.max(1));
    (0..count).map(move |i| batch * i / count..batch * (i + 1) / count)
}

impl Generator {
    /// Logits of `samples`, a range of the batch and perhaps another, one behind the other.
    ///
    /// `normed` is the last norm's output of samples of `tokens` tokens, `[b, l, c]`.
    ///
    /// # Errors
    /// Shape, where `head` has no room for them or `normed` ends before; a device fault.
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

    /// From the gradient of the logits of `samples`, left in `head`, to the head's parameter gradients
    /// and the gradient of the last norm's output of these samples.
    ///
    /// `head` may hold logits of further samples behind them, which have no gradient.
    ///
    /// # Errors
    /// As [`Generator::head`].
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
        // No branch has a gradient yet: its buffer is free.
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
