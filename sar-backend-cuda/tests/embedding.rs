//! `class_embedding`, `positions` and `token_embedding` at widths of real models and at odd ones, on
//! all scales of a published schedule, and ids that no table has.

#![allow(clippy::unwrap_used)]

mod compare;
mod lengths;

use compare::{Case, Kind, Output, accum, activation, compare, noise, params, read, read_accum};
use sar_backend_cuda::{CudaBackend, TestDevice, bf16};
use sar_math::backend::{
    Backend, Buffers, EmbeddingDims, EmbeddingOps, EmbeddingSlots, Linear, Slot,
};
use sar_math::{Scale, ScaleSchedule};

/// 680 tokens.
const PUBLISHED: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];

struct Classes {
    labels: Vec<u32>,
    rows: usize,
    width: usize,
}

impl Case for Classes {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let (batch, width) = (self.labels.len(), self.width);
        // An offset that aligns to nothing.
        let table = Slot { offset: 1, len: self.rows * width };
        let params = params(backend, &noise(1, table.end()))?;
        let mut labels = backend.ids(batch)?;
        backend.upload_ids(&self.labels, &mut labels, 0)?;
        let mut cond = backend.activation(batch * width)?;
        backend.class_embedding(batch, width, &labels, &params, table, &mut cond)?;
        let dcond = activation(backend, &noise(2, batch * width))?;
        let mut grads = accum(backend, &noise(3, table.end()))?;
        backend.class_embedding_backward(batch, width, &labels, &dcond, table, &mut grads)?;
        Ok(vec![
            ("cond", Kind::Value, read(backend, &cond, batch * width)?),
            ("table", Kind::Wide, read_accum(backend, &grads, table.end())?),
        ])
    }
}

#[test]
fn classes_repeated_within_and_beyond_a_warp_of_samples() {
    for (batch, classes, width) in [(97, 5, 1024), (70, 1001, 97), (33, 1, 300)] {
        let labels = (0..batch).map(|b| (b * b + 3 * b) as u32 % classes).collect();
        compare(&Classes { labels, rows: classes as usize, width });
    }
}

#[test]
fn a_label_that_the_table_has_not_is_nan_and_has_no_gradient() {
    let backend = CudaBackend::<bf16, _>::new(TestDevice::new().unwrap()).unwrap();
    let case = Classes { labels: vec![1, 3, 0, u32::MAX, 1], rows: 3, width: 40 };
    let outputs = case.run(&backend).unwrap();
    for (b, row) in outputs[0].2.chunks(40).enumerate() {
        assert_eq!(row.iter().all(|v| v.is_nan()), b == 1 || b == 3, "sample {b}");
        assert_eq!(row.iter().any(|v| v.is_nan()), b == 1 || b == 3, "sample {b}");
    }
    let known = Classes { labels: vec![1, 2, 0, 2, 1], rows: 3, width: 40 };
    let known = &known.run(&backend).unwrap()[1].2;
    let start = noise(3, 121);
    for (i, found) in outputs[1].2.iter().enumerate() {
        let expected = if i < 81 { known[i] } else { start[i] };
        assert_eq!(*found, expected, "element {i}");
    }
}

struct Positions {
    schedule: ScaleSchedule,
    width: usize,
    side: usize,
}

impl Case for Positions {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let table = Slot { offset: 3, len: self.width * self.side * self.side };
        let len = self.schedule.tokens() * self.width;
        let params = params(backend, &noise(4, table.end()))?;
        let mut pos = backend.activation(len)?;
        backend.positions(&self.schedule, self.width, &params, table, &mut pos)?;
        let dpos = activation(backend, &noise(5, len))?;
        let mut grads = accum(backend, &noise(6, table.end()))?;
        backend.positions_backward(&self.schedule, self.width, &dpos, table, &mut grads)?;
        Ok(vec![
            ("pos", Kind::Value, read(backend, &pos, len)?),
            ("table", Kind::Wide, read_accum(backend, &grads, table.end())?),
        ])
    }
}

#[test]
fn positions_of_published_and_of_long_scales() {
    let published = ScaleSchedule::from_sides(&PUBLISHED).unwrap();
    compare(&Positions { schedule: published, width: 64, side: 32 });
    compare(&Positions { schedule: published, width: 33, side: 7 });
    let scale = |height, width| Scale { height, width };
    let long =
        ScaleSchedule::new(&[scale(1, 1), scale(2, 3), scale(5, 24), scale(40, 25)]).unwrap();
    compare(&Positions { schedule: long, width: 97, side: 32 });
}

struct Tokens {
    dims: EmbeddingDims,
    bias: bool,
    pos_start: bool,
}

impl Tokens {
    fn whole(batch: usize, tokens: usize, width: usize, channels: usize) -> Self {
        let dims = EmbeddingDims { batch, input_batch: batch, span: 0..tokens, width, channels };
        Self { dims, bias: true, pos_start: true }
    }
}

impl Case for Tokens {
    fn run<B: Backend>(&self, backend: &B) -> Result<Vec<Output>, B::Error> {
        let EmbeddingDims { batch, input_batch, ref span, width, channels } = self.dims;
        let words = span.len() - usize::from(span.start == 0);
        let weight = Slot { offset: 1, len: width * channels };
        let at = |i: usize| Slot { offset: weight.end() + i * width, len: width };
        let slots = EmbeddingSlots {
            word: Linear { weight, bias: self.bias.then_some(at(0)) },
            pos_start: self.pos_start.then_some(at(1)),
        };
        let len = at(2).offset;
        let x_len = batch * span.len() * width;
        let params = params(backend, &noise(7, len))?;
        let cond = activation(backend, &noise(8, batch * width))?;
        let inputs = activation(backend, &noise(9, input_batch * words * channels))?;
        let pos = activation(backend, &noise(10, span.end * width))?;
        let mut x = backend.activation(x_len)?;
        backend.token_embedding(&self.dims, &cond, &inputs, &params, slots, &pos, &mut x)?;
        let mut outputs = vec![("x", Kind::Value, read(backend, &x, x_len)?)];
        if span.start > 0 || batch != input_batch {
            return Ok(outputs);
        }
        let dx = activation(backend, &noise(11, x_len))?;
        let mut dcond = activation(backend, &vec![9.0; batch * width])?;
        let mut dpos = activation(backend, &vec![9.0; span.len() * width])?;
        let mut grads = accum(backend, &noise(12, len))?;
        backend.token_embedding_backward(
            &self.dims, &dx, &inputs, slots, &mut dcond, &mut dpos, &mut grads,
        )?;
        outputs.push(("dcond", Kind::Gradient, read(backend, &dcond, batch * width)?));
        outputs.push(("dpos", Kind::Gradient, read(backend, &dpos, span.len() * width)?));
        outputs.push(("parameters", Kind::Wide, read_accum(backend, &grads, len)?));
        Ok(outputs)
    }
}

#[test]
fn tokens_of_a_published_generator() {
    compare(&Tokens::whole(2, 680, 1024, 32));
}

#[test]
fn tokens_and_positions_of_every_length() {
    for schedule in lengths::schedules() {
        compare(&Tokens::whole(1, schedule.tokens(), 64, 32));
        compare(&Positions { schedule, width: 40, side: 32 });
    }
}

#[test]
fn tokens_of_odd_sizes() {
    // Channels below, at and beyond what a block has at once; widths beyond a block's columns.
    for (tokens, width, channels) in [(130, 97, 32), (65, 132, 8), (129, 260, 33), (64, 136, 71)] {
        compare(&Tokens::whole(3, tokens, width, channels));
    }
    compare(&Tokens { bias: false, pos_start: false, ..Tokens::whole(2, 30, 64, 8) });
    compare(&Tokens::whole(2, 1, 64, 8));
    compare(&Tokens::whole(9, 13, 68, 5));
}

#[test]
fn tokens_of_single_scales_for_guided_samples() {
    for span in [0..1, 1..5, 155..255, 424..680] {
        let dims = EmbeddingDims { batch: 4, input_batch: 2, span, width: 128, channels: 32 };
        compare(&Tokens { dims, bias: true, pos_start: true });
    }
}

#[test]
fn without_tokens_the_class_has_no_gradient() {
    let backend = CudaBackend::<f32, _>::new(TestDevice::new().unwrap()).unwrap();
    let dims = EmbeddingDims { batch: 2, input_batch: 2, span: 0..0, width: 4, channels: 3 };
    let word = Linear { weight: Slot { offset: 0, len: 12 }, bias: None };
    let slots = EmbeddingSlots { word, pos_start: None };
    let none = backend.activation(0).unwrap();
    let mut dpos = backend.activation(0).unwrap();
    let mut dcond = activation(&backend, &[9.0; 8]).unwrap();
    let mut grads = accum(&backend, &[1.5; 12]).unwrap();
    backend
        .token_embedding_backward(&dims, &none, &none, slots, &mut dcond, &mut dpos, &mut grads)
        .unwrap();
    assert_eq!(read(&backend, &dcond, 8).unwrap(), [0.0; 8]);
    assert_eq!(read_accum(&backend, &grads, 12).unwrap(), [1.5; 12]);
}
