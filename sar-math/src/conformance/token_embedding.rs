//! `token_embedding`: the tokens of a pass from class, inputs and positions.

use super::case::{Case, Numbers, mid_schedule};
use super::full_size::repeatable;
use super::math::dot;
use super::rig::{Layout, Rig};
use super::subject::{Expected, Outputs, Subject, Variable, Verifier};
use super::verdict::{Mismatch, Report};
use crate::backend::{EmbeddingDims, EmbeddingOps, EmbeddingSlots, Linear};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

#[derive(Clone)]
struct Operands {
    dims: EmbeddingDims,
    cond: Vec<f64>,
    inputs: Vec<f64>,
    pos: Vec<f64>,
    layout: Layout,
    slots: EmbeddingSlots,
    dx: Vec<f64>,
    /// Whether the span is a whole schedule and every sample has its own inputs.
    backward: bool,
}

/// Batch, samples of the inputs, width and latent channels.
type Sizes = (usize, usize, usize, usize);

impl Operands {
    fn draw(
        n: &mut Numbers,
        tokens: usize,
        span: Range<usize>,
        sizes: Sizes,
        pos_start: bool,
    ) -> Self {
        let (batch, input_batch, width, channels) = sizes;
        let mut layout = Layout::default();
        let weight = layout.draw(n, width * channels);
        let pos_start = pos_start.then(|| layout.draw(n, width));
        let bias = Some(layout.draw(n, width));
        let given = span.len() - usize::from(span.start == 0);
        Self {
            cond: n.values(batch * width),
            inputs: n.values(input_batch * given * channels),
            pos: n.values(tokens * width),
            layout,
            slots: EmbeddingSlots { word: Linear { weight, bias }, pos_start },
            dx: n.values(batch * span.len() * width),
            backward: span == (0..tokens) && batch == input_batch,
            dims: EmbeddingDims { batch, input_batch, span, width, channels },
        }
    }

    fn formula(
        &self,
        (cond, pos): (&[f64], &[f64]),
        (weight, bias): (&[f64], &[f64]),
        pos_start: Option<&[f64]>,
    ) -> Vec<f64> {
        let EmbeddingDims { batch, input_batch, ref span, width, channels } = self.dims;
        let class_tokens = usize::from(span.start == 0);
        let given = span.len() - class_tokens;
        let mut x = Vec::with_capacity(self.dx.len());
        for b in 0..batch {
            for token in span.clone() {
                for c in 0..width {
                    let value = if token == 0 {
                        cond[b * width + c] + pos_start.map_or(0.0, |p| p[c])
                    } else {
                        let row = b % input_batch * given + token - span.start - class_tokens;
                        let input = &self.inputs[row * channels..][..channels];
                        dot(input, &weight[c * channels..][..channels]) + bias[c]
                    };
                    x.push(value + pos[token * width + c]);
                }
            }
        }
        x
    }

    fn bias(&self) -> Vec<f64> {
        let zero = || vec![0.0; self.dims.width];
        self.slots.word.bias.map_or_else(zero, |bias| self.layout.get(bias))
    }
}

impl<B: EmbeddingOps> Subject<B> for Operands {
    fn ops(&self) -> &'static [&'static str] {
        &["token_embedding"]
    }

    fn run(&self, rig: &Rig<'_, B>, start: &[f64]) -> Result<Outputs, B::Error> {
        let (dims, slots) = (&self.dims, self.slots);
        let mut out = Outputs::default();
        let cond = rig.activation("cond", &self.cond)?;
        let inputs = rig.activation("inputs", &self.inputs)?;
        let params = rig.params("params", &self.layout.values)?;
        let pos = rig.activation("pos", &self.pos[..dims.span.end * dims.width])?;
        let mut x = rig.blank("x", self.dx.len())?;
        rig.backend.token_embedding(dims, &cond, &inputs, &params, slots, &pos, &mut x)?;
        out.push("x", rig.read("x", &x, self.dx.len())?);
        if !self.backward {
            out.grads = start.to_vec();
            return Ok(out);
        }
        let dx = rig.activation("dx", &self.dx)?;
        let inputs = rig.activation("inputs of backward", &self.inputs)?;
        let mut dcond = rig.blank("dcond", self.cond.len())?;
        let mut dpos = rig.blank("dpos", self.pos.len())?;
        let mut grads = rig.accum("grads", start)?;
        rig.backend.token_embedding_backward(
            dims, &dx, &inputs, slots, &mut dcond, &mut dpos, &mut grads,
        )?;
        out.push("cond", rig.read("dcond", &dcond, self.cond.len())?);
        out.push("pos", rig.read("dpos", &dpos, self.pos.len())?);
        out.grads = rig.read_accum("grads", &grads, start.len())?;
        Ok(out)
    }

    fn values(&self) -> Vec<Expected> {
        let weight = self.layout.get(self.slots.word.weight);
        let pos_start = self.slots.pos_start.map(|slot| self.layout.get(slot));
        let inputs = (self.cond.as_slice(), self.pos.as_slice());
        let x = self.formula(inputs, (&weight, &self.bias()), pos_start.as_deref());
        vec![Expected::near("x", x)]
    }

    fn variables(&self) -> Vec<Variable> {
        if !self.backward {
            return Vec::new();
        }
        let word = self.slots.word;
        let mut all = vec![
            Variable::activation("cond", &self.cond),
            Variable::activation("pos", &self.pos),
            Variable::parameter("word.weight", &self.layout, word.weight),
        ];
        all.extend(word.bias.map(|slot| Variable::parameter("word.bias", &self.layout, slot)));
        let pos_start = self.slots.pos_start;
        all.extend(pos_start.map(|slot| Variable::parameter("pos_start", &self.layout, slot)));
        all
    }

    fn objective(&self, at: &[Vec<f64>]) -> f64 {
        let pos_start = self.slots.pos_start.map(|_| at[4].as_slice());
        dot(&self.dx, &self.formula((&at[0], &at[1]), (&at[2], &at[3]), pos_start))
    }

    fn layout(&self) -> Option<&Layout> {
        Some(&self.layout)
    }

    fn rows(&self) -> usize {
        // Guided samples share their inputs.
        if self.dims.batch == self.dims.input_batch { self.dims.batch } else { 0 }
    }

    fn row(&self, row: usize) -> Option<Self> {
        let cut = |all: &[f64]| {
            let len = all.len() / self.dims.batch;
            all[row * len..][..len].to_vec()
        };
        Some(Self {
            dims: EmbeddingDims { batch: 1, input_batch: 1, ..self.dims.clone() },
            cond: cut(&self.cond),
            inputs: cut(&self.inputs),
            dx: cut(&self.dx),
            ..self.clone()
        })
    }

    fn by_row(&self) -> &'static [&'static str] {
        &["x"]
    }
}

/// Checks `token_embedding` and its backward: teacher and student passes, spans of single scales,
/// the class token alone, and guided samples that share their inputs.
///
/// # Errors
/// The first property that does not hold.
pub fn check<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Report, Mismatch> {
    let mut verifier = Verifier::new(backend, "token_embedding", case)?;
    let mut n = case.numbers("token_embedding");
    for pos_start in [true, false] {
        let tokens = n.schedule().tokens();
        let batch = n.between(1, 3);
        let sizes = (batch, batch, n.between(1, 5), n.between(1, 4));
        verifier.verify(&Operands::draw(&mut n, tokens, 0..tokens, sizes, pos_start))?;
    }
    for span in [0..1, 0..5, 1..5, 5..14] {
        let batch = n.between(1, 2);
        let sizes = (2 * batch, batch, n.between(1, 5), n.between(1, 4));
        verifier.verify(&Operands::draw(&mut n, 14, span, sizes, true))?;
    }
    Ok(verifier.report())
}

/// All bits of a mid-size run: 3 samples × 150 tokens × width 96, 8 channels.
///
/// # Errors
/// A second run, or a sample on its own, gives other bits.
pub fn fingerprint<B: EmbeddingOps>(backend: &B, case: Case) -> Result<Vec<u64>, Mismatch> {
    let mut n = case.numbers("token_embedding");
    let tokens = mid_schedule().tokens();
    repeatable(backend, &Operands::draw(&mut n, tokens, 0..tokens, (3, 3, 96, 8), true))
}
