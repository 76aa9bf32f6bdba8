//! The published generator with its recorded parameters, and its teacher and student passes.

use crate::backends::Transfers;
use crate::compare::Findings;
use crate::support::{Golden, largest};
use sar_math::backend::{
    Backend, Choice, ChooseDims, LossDims, RolloutDims, TargetRows, TokenLoss,
};
use sar_math::{MAX_SCALES, Real, Scale, ScaleSchedule};
use sar_train::model::generator::{
    Generator, GeneratorShape, Gradients, Head, PassInput, Recompute, Trace,
};
use sar_train::model::tokenizer::Quantizer;
use sar_train::params::Tensor;

/// Logits and losses: f64 with sums in another order.
pub const VALUE: f64 = 1e-9;
/// Gradients, relative to the largest of the tensor.
const GRADIENT: f64 = 1e-9;
/// Rounding of sums that cancel, relative to the largest gradient of all.
const ROUNDING: f64 = 1e-13;

/// The published model with its recorded parameters and inputs.
pub struct Setup<'a, B: Backend> {
    pub backend: &'a B,
    pub generator: Generator,
    pub params: B::Params,
    pub quantizer: Quantizer<B>,
    pub schedule: ScaleSchedule,
    pub batch: usize,
    labels: Vec<u32>,
    pub targets: Vec<u32>,
    inputs: Vec<f64>,
}

impl<'a, B: Backend> Setup<'a, B> {
    pub fn open(backend: &'a B) -> (Self, Golden) {
        let file = Golden::open("teacher_forcing");
        let config = GeneratorShape {
            depth: file.usize("depth"),
            width: file.usize("width"),
            heads: file.usize("heads"),
            vocab: file.usize("vocab"),
            channels: file.usize("latent_channels"),
            classes: file.usize("num_classes"),
            pos_side: file.shape("param.pos_1LC")[2],
            levels: None,
            mlp_ratio: file.usize("mlp_ratio"),
            norm_eps: file.number("norm_eps"),
            alng: 1e-3,
        };
        assert_eq!(file.meta["attn_l2_norm"], true, "attention without L2 norms is not built");
        let generator = Generator::new(&config).unwrap();
        let mut host = vec![f64::NAN; generator.layout().len()];
        for t in generator.layout().tensors() {
            let name = format!("param.{}", t.name);
            assert_eq!(file.shape(&name), t.shape, "{name}");
            host[t.slot.range()].copy_from_slice(&file.f64(&name));
        }
        let params = backend.put_params(&host);
        let codes = Golden::open("quantizer").f64("codebook_l2");
        let codes: Vec<_> = codes.into_iter().map(B::Host::of).collect();
        let quantizer = Quantizer::direct(backend, &codes, config.vocab).unwrap();
        let setup = Self {
            backend,
            generator,
            params,
            quantizer,
            schedule: file.schedule(),
            batch: file.usize("batch"),
            labels: file.ids("labels"),
            targets: file.ids("targets"),
            inputs: file.f64("inputs"),
        };
        (setup, file)
    }

    pub fn loss_dims(&self, schedule: ScaleSchedule, from_scale: usize, factor: f64) -> LossDims {
        let supervised = schedule.span(from_scale..schedule.len()).len() * self.batch;
        let mut weights = [0.0; MAX_SCALES];
        weights[from_scale..schedule.len()].fill(factor / supervised as f64);
        let vocab = self.generator.shape().vocab;
        let targets = TargetRows::beside(&schedule);
        LossDims {
            batch: self.batch,
            first_sample: 0,
            schedule,
            vocab,
            smoothing: 0.0,
            weights,
            targets,
        }
    }

    /// Mean of the token losses from `from_scale` on.
    fn mean(&self, dims: &LossDims, from_scale: usize, loss: &TokenLoss<B>) -> (f64, Vec<f64>) {
        let from = dims.schedule.range(from_scale).start;
        let tokens = dims.schedule.tokens();
        let kept: Vec<f64> = self
            .backend
            .get_accum(&loss.loss_bl, self.batch * tokens)
            .chunks(tokens)
            .flat_map(|sample| &sample[from..])
            .copied()
            .collect();
        (kept.iter().sum::<f64>() / kept.len() as f64, kept)
    }

    /// The gradients of all parameters, recorded as `{prefix}{name}`.
    pub fn add_gradients(
        &self,
        found: &mut Findings,
        file: &Golden,
        prefix: &str,
        grads: &Gradients<B>,
    ) {
        let layout = self.generator.layout();
        let grads = self.backend.get_accum(&grads.params, layout.len());
        let recorded = |t: &Tensor| file.f64(&format!("{prefix}{}", t.name));
        let all = layout.tensors().iter().map(|t| largest(&recorded(t))).fold(0.0, f64::max);
        for t in layout.tensors() {
            let (name, want) = (format!("{prefix}{}", t.name), recorded(t));
            // Where a tensor's terms cancel entirely, what is left is rounding of the others'.
            let tolerance = (GRADIENT * largest(&want)).max(ROUNDING * all);
            found.gradient(name, grads[t.slot.range()].to_vec(), want, tolerance);
        }
    }

    /// The teacher pass with its backward; predictions, logits and loss.
    pub fn teacher(&self, trace: &mut Trace<B>, grads: &mut Gradients<B>) -> Teacher {
        let (b, g) = (self.backend, &self.generator);
        let (labels, inputs) = (b.put_ids(&self.labels), b.put(&self.inputs));
        let input = PassInput {
            batch: self.batch,
            schedule: self.schedule,
            labels: &labels,
            inputs: &inputs,
            input_batch: self.batch,
            with_start: true,
            keep: None,
        };
        g.forward(b, &self.params, &input, trace).unwrap();
        let rows = self.batch * self.schedule.tokens();
        let (tokens, all) = (self.schedule.tokens(), 0..self.batch);
        let whole = std::slice::from_ref(&all);
        let mut head = Head::new(b, g, rows).unwrap();
        g.head(b, &self.params, tokens, trace.output(), whole, &mut head).unwrap();
        let logits = b.get(&head.logits, rows * g.shape().vocab);
        let mut predictions = b.ids(rows).unwrap();
        let choose = ChooseDims {
            batch: self.batch,
            first_sample: 0,
            schedule: self.schedule,
            scales: 0..self.schedule.len(),
            vocab: g.shape().vocab,
            guidance: None,
            choice: Choice::Argmax,
        };
        b.choose_codes(&choose, &head.logits, &mut predictions).unwrap();
        let dims = self.loss_dims(self.schedule, 0, 1.0);
        let targets = b.put_ids(&self.targets);
        let mut loss = TokenLoss::new(b, rows).unwrap();
        b.cross_entropy(&dims, &head.logits, &targets, &mut loss).unwrap();
        let (mean, tokens) = self.mean(&dims, 0, &loss);
        b.cross_entropy_backward(&dims, &mut head.logits, &targets, &loss).unwrap();
        g.head_backward(b, &self.params, self.schedule.tokens(), all, &head, grads).unwrap();
        g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
        let predictions = b.get_ids(&predictions, rows);
        Teacher { logits, predictions, loss: mean, token_loss: tokens }
    }

    pub fn memory(&self) -> (Trace<B>, Gradients<B>) {
        let (b, g, tokens) = (self.backend, &self.generator, self.schedule.tokens());
        let trace = Trace::new(b, g, self.batch, tokens, Recompute::default()).unwrap();
        let grads = Gradients::new(b, g, self.batch, tokens).unwrap();
        (trace, grads)
    }

    /// The student pass on a rollout `ids` over the scales from `first` on, with its backward.
    pub fn student(
        &self,
        first: usize,
        ids: &[u32],
        target: Target<'_>,
        sigma: f64,
        trace: &mut Trace<B>,
        grads: &mut Gradients<B>,
    ) -> Student {
        let (b, g) = (self.backend, &self.generator);
        let all = self.schedule;
        let mut scales = vec![Scale::square(1)];
        scales.extend_from_slice(&all.scales()[first..]);
        let schedule = ScaleSchedule::new(&scales).unwrap();
        let span = all.span(first..all.len());
        let (k, v) = (g.shape().channels, g.shape().vocab);
        let dims = RolloutDims {
            batch: self.batch,
            schedule: all,
            scales: first..all.len(),
            channels: k,
            vocab: v,
        };
        let mut inputs = b.activation(self.batch * span.len() * k).unwrap();
        b.rollout_inputs(&dims, &b.put_ids(ids), self.quantizer.codebook(), &mut inputs).unwrap();
        let fed = b.get(&inputs, self.batch * span.len() * k);
        let labels = b.put_ids(&self.labels);
        let input = PassInput {
            batch: self.batch,
            schedule,
            labels: &labels,
            inputs: &inputs,
            input_batch: self.batch,
            with_start: false,
            keep: None,
        };
        g.forward(b, &self.params, &input, trace).unwrap();
        let (tokens, samples) = (schedule.tokens(), 0..self.batch);
        let whole = std::slice::from_ref(&samples);
        let mut head = Head::new(b, g, self.batch * tokens).unwrap();
        g.head(b, &self.params, tokens, trace.output(), whole, &mut head).unwrap();
        let logits = b
            .get(&head.logits, self.batch * tokens * v)
            .chunks(tokens * v)
            .flat_map(|sample| &sample[v..])
            .copied()
            .collect();
        let loss_dims = self.loss_dims(schedule, 1, sigma);
        let mut loss = TokenLoss::new(b, self.batch * tokens).unwrap();
        // The student's targets stand at its own places: its first token has none.
        let place = |ids: &[u32]| -> Vec<u32> {
            ids.chunks(all.tokens())
                .flat_map(|sample| std::iter::once(0).chain(sample[span.clone()].iter().copied()))
                .collect()
        };
        match target {
            Target::Hard => {
                let targets = b.put_ids(&place(ids));
                b.cross_entropy(&loss_dims, &head.logits, &targets, &mut loss).unwrap();
                let (mean, token_loss) = self.mean(&loss_dims, 1, &loss);
                let truth = b.put_ids(&place(&self.targets));
                let mut against = TokenLoss::new(b, self.batch * tokens).unwrap();
                b.cross_entropy(&loss_dims, &head.logits, &truth, &mut against).unwrap();
                let (truth, _) = self.mean(&loss_dims, 1, &against);
                b.cross_entropy_backward(&loss_dims, &mut head.logits, &targets, &loss).unwrap();
                g.head_backward(b, &self.params, tokens, samples, &head, grads).unwrap();
                g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
                Student { inputs: fed, logits, loss: mean, token_loss, against_truth: Some(truth) }
            }
            Target::Soft(teacher_logits) => {
                let soft = b.put(teacher_logits);
                b.soft_cross_entropy(&loss_dims, &head.logits, &soft, &mut loss).unwrap();
                let (mean, token_loss) = self.mean(&loss_dims, 1, &loss);
                b.soft_cross_entropy_backward(&loss_dims, &mut head.logits, &soft, &loss).unwrap();
                g.head_backward(b, &self.params, tokens, samples, &head, grads).unwrap();
                g.backward(b, &self.params, &input, self.batch, trace, grads).unwrap();
                Student { inputs: fed, logits, loss: mean, token_loss, against_truth: None }
            }
        }
    }
}

pub struct Teacher {
    pub logits: Vec<f64>,
    pub predictions: Vec<u32>,
    pub loss: f64,
    pub token_loss: Vec<f64>,
}

pub struct Student {
    pub inputs: Vec<f64>,
    pub logits: Vec<f64>,
    pub loss: f64,
    pub token_loss: Vec<f64>,
    /// Mean loss against the data's ids, of hard targets.
    pub against_truth: Option<f64>,
}

pub enum Target<'a> {
    /// The rollout's ids.
    Hard,
    /// The softmax of the teacher's logits.
    Soft(&'a [f64]),
}
