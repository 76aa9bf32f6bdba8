//! Optimiser steps: gradients of the micro-batches, clipping, AdamW, running average.

use super::TrainError;
use super::ranks::{OtherRanks, check_ranks, share};
use super::replica::{Batches, Replica, StepLosses};
use crate::config::Config;
use crate::model::generator::Generator;
use crate::model::tokenizer::Quantizer;
use crate::optimizer::Optimizer;
use crate::params::hosted;
use crate::run::NonFinite;
use sar_math::Real as _;
use sar_math::backend::{AdamW, Backend};
use sar_math::loss::ScaleReport;
use serde::{Deserialize, Serialize};

/// State that a run needs, in addition to weights and moments, to continue bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Number of steps taken, including skipped ones.
    pub step: u64,
    /// Number of steps that changed the weights.
    pub updates: u64,
    /// Steps skipped because a gradient was not finite.
    pub non_finite: NonFinite,
    /// Seed of the run.
    pub seed: u64,
}

/// Losses of a step, means over its micro-batches, and its gradient norm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Loss of the first pass + σ·contrastive loss, nats per token.
    pub loss: f64,
    /// Loss of the first pass. Logged as `loss_tf` if the pass is fed ground truth, and as `loss_first_pass` if it is fed
    /// the model's own samples.
    #[serde(skip)]
    pub loss_tf: f64,
    /// Contrastive student-forcing loss, if there is a student pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_csf: Option<f64>,
    /// Loss of each scale of the first pass.
    pub scale_loss: Vec<f64>,
    /// Accuracy of each scale of the first pass.
    pub scale_acc: Vec<f64>,
    /// Loss of each scale of the student pass; `None` for scales that are not supervised.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student_scale_loss: Vec<Option<f64>>,
    /// Accuracy of each scale of the student pass; `None` for scales that are not supervised.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub student_scale_acc: Vec<Option<f64>>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// The schedule of the step.
    pub schedule: String,
}

/// A generator in training on one backend.
pub struct Trainer<'a, B: Backend> {
    pub(crate) replica: Replica<'a, B>,
    optimizer: Optimizer<B>,
    pub(crate) ema: Option<B::Accum>,
    pub(crate) state: TrainState,
    others: Option<Box<dyn OtherRanks<B, StepLosses> + 'a>>,
    /// Losses of the last step's micro-batches that other ranks took.
    others_losses: Vec<StepLosses>,
}

impl<'a, B: Backend> Trainer<'a, B> {
    /// Creates a trainer at step 0 from these weights, with moments of zero.
    ///
    /// `quantizer` is the tokenizer's; latents are `height`×`width`.
    ///
    /// # Errors
    /// As [`Trainer::blank`]; weights of another length.
    pub fn new(
        backend: &'a B,
        generator: Generator,
        config: &Config,
        weights: &[f32],
        quantizer: &'a Quantizer<B>,
        latent_size: (usize, usize),
    ) -> Result<Self, TrainError> {
        expect_length("weights", generator.layout().len(), weights.len())?;
        let mut trainer = Self::blank(backend, generator, config, quantizer, latent_size)?;
        let weights = hosted::<B>(weights);
        backend.upload_params(&weights, &mut trainer.replica.params, 0)?;
        if let Some(average) = trainer.ema.as_mut() {
            backend.upload_accum(&weights, average, 0)?;
        }
        Ok(trainer)
    }

    /// As [`Trainer::new`], with weights of zero.
    ///
    /// # Errors
    /// A configuration out of range, or a way of training that its schedule is too short for; out of memory.
    pub fn blank(
        backend: &'a B,
        generator: Generator,
        config: &Config,
        quantizer: &'a Quantizer<B>,
        latent_size: (usize, usize),
    ) -> Result<Self, TrainError> {
        let len = generator.layout().len();
        let replica = Replica::new(backend, generator, config, quantizer, latent_size)?;
        let averages = config.train.ema > 0.0;
        let ema = averages.then(|| backend.accum(len)).transpose()?;
        Ok(Self {
            optimizer: Optimizer::new(backend, replica.generator.layout())?,
            replica,
            ema,
            state: TrainState {
                step: 0,
                updates: 0,
                non_finite: NonFinite::new(config.train.non_finite_limit),
                seed: config.train.seed,
            },
            others: None,
            others_losses: Vec::new(),
        })
    }

    /// Shares the micro-batches of every step from now on with other ranks. The batches given to [`Trainer::step`] are
    /// then those of rank 0's [`share`] alone.
    ///
    /// # Errors
    /// [`TrainError::Ranks`] if there are more ranks than micro-batches.
    pub fn share_with(
        &mut self,
        others: Box<dyn OtherRanks<B, StepLosses> + 'a>,
    ) -> Result<(), TrainError> {
        check_ranks(others.ranks(), self.replica.config.accumulate)?;
        self.others = Some(others);
        Ok(())
    }

    /// Steps taken.
    pub fn step_number(&self) -> u64 {
        self.state.step
    }

    /// The model.
    pub fn generator(&self) -> &Generator {
        &self.replica.generator
    }

    /// The weights on the device.
    pub fn params(&self) -> &B::Params {
        &self.replica.params
    }

    /// Parameter gradients of the last step, on the device.
    pub fn gradients(&self) -> &B::Accum {
        self.replica.memory.gradients()
    }

    /// What codes are, and what they stand for.
    pub fn quantizer(&self) -> &'a Quantizer<B> {
        self.replica.quantizer
    }

    /// What the run needs beside weights and moments.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Takes up a saved state; the weights are those given to [`Trainer::new`].
    ///
    /// # Errors
    /// Buffers of another length: nothing has changed then.
    pub fn restore(
        &mut self,
        state: TrainState,
        first_moment: &[f32],
        second_moment: &[f32],
        ema: Option<&[f32]>,
    ) -> Result<(), TrainError> {
        let len = self.replica.generator.layout().len();
        expect_length("first moment", len, first_moment.len())?;
        expect_length("second moment", len, second_moment.len())?;
        if let Some(host) = ema {
            expect_length("running average", len, host.len())?;
        }
        let backend = self.replica.backend;
        let [first, second] = [first_moment, second_moment].map(hosted::<B>);
        self.optimizer.set_moments(backend, [&first, &second], 0)?;
        if let (Some(host), Some(average)) = (ema, self.ema.as_mut()) {
            backend.upload_accum(&hosted::<B>(host), average, 0)?;
        }
        // How many in a row are too many is the configuration's, which may have changed since.
        let limit = self.state.non_finite.limit;
        self.state = TrainState { non_finite: NonFinite { limit, ..state.non_finite }, ..state };
        Ok(())
    }

    /// One optimiser step; `true` where it was skipped because its gradient was not finite.
    ///
    /// # Errors
    /// The images', the backend's, those of other ranks; too many skipped steps in a row.
    pub fn step(&mut self, batches: &mut dyn Batches<B>) -> Result<bool, TrainError> {
        let (backend, step) = (self.replica.backend, self.state.step);
        let ranks = self.others.as_ref().map_or(1, |others| others.ranks());
        if let Some(others) = &mut self.others {
            others.begin(backend, step, &self.replica.params)?;
        }
        let share = share(self.replica.config.accumulate, 0, ranks);
        self.replica.gradients(step, share, batches)?;
        if let Some(others) = &mut self.others {
            let gradients = &mut self.replica.memory.grads.params;
            self.others_losses = others.add_gradients(backend, gradients)?;
        }
        let finite = self.update()?;
        self.state.step += 1;
        self.state.updates += u64::from(finite);
        Ok(self.state.non_finite.note(self.state.step, finite)?)
    }

    /// Clipping, AdamW and the running average; whether the gradient was finite.
    fn update(&mut self) -> Result<bool, B::Error> {
        let (b, len) = (self.replica.backend, self.replica.generator.layout().len());
        let anneal = self.replica.config.anneal();
        let hyper = AdamW {
            lr: anneal.learning_rate(self.state.step),
            beta1: self.replica.config.beta1,
            beta2: self.replica.config.beta2,
            eps: self.replica.config.eps,
            weight_decay: anneal.weight_decay(self.state.step),
            step: self.state.updates + 1,
            clip: self.replica.config.clip,
        };
        let Replica { memory, params, .. } = &mut self.replica;
        self.optimizer.step(b, &hyper, &memory.grads.params, params)?;
        let norm = self.optimizer.norm(b)?;
        if let Some(average) = self.ema.as_mut().filter(|_| norm.is_finite()) {
            b.ema(
                len,
                average_decay(self.replica.config.ema, self.state.updates),
                &self.replica.params,
                average,
            )?;
        }
        Ok(norm.is_finite())
    }

    /// Losses of the step just taken; `None` before the first. Waits for the device.
    ///
    /// # Errors
    /// A device fault.
    pub fn report(&self) -> Result<Option<StepReport>, TrainError> {
        let Some((mut losses, schedule)) = self.replica.losses()? else { return Ok(None) };
        self.others_losses.iter().for_each(|others| losses.merge(others));
        let StepLosses { first, second } = losses;
        let scales = schedule.len();
        let (loss_tf, loss_csf) = (first.mean_loss(), second.as_ref().map(ScaleReport::mean_loss));
        let of_student = |values: fn(&ScaleReport) -> &[f64]| {
            let counted =
                |second: &ScaleReport, i: usize| (second.tokens[i] > 0).then(|| values(second)[i]);
            let all = |second| (0..scales).map(|i| counted(second, i)).collect();
            second.as_ref().map_or_else(Vec::new, all)
        };
        Ok(Some(StepReport {
            loss: loss_tf + self.replica.settings.sigma() * loss_csf.unwrap_or(0.0),
            loss_tf,
            loss_csf,
            scale_loss: first.loss[..scales].to_vec(),
            scale_acc: first.accuracy[..scales].to_vec(),
            student_scale_loss: of_student(|second| &second.loss),
            student_scale_acc: of_student(|second| &second.accuracy),
            grad_norm: self.optimizer.norm(self.replica.backend)?,
            lr: self.replica.config.anneal().learning_rate(self.state.step.saturating_sub(1)),
            schedule: schedule.to_string(),
        }))
    }

    /// Names the tensors whose gradient was not finite in the last step, or its norm if each of them was.
    ///
    /// # Errors
    /// A device fault.
    pub(crate) fn not_finite(&self) -> Result<String, TrainError> {
        let Replica { backend, generator, memory, .. } = &self.replica;
        Ok(self.optimizer.not_finite(*backend, generator.layout(), &memory.grads.params)?)
    }

    /// Weights, moments and running average on the host, to be saved.
    ///
    /// # Errors
    /// A device fault.
    pub fn export(&self) -> Result<Export, TrainError> {
        let (backend, len) = (self.replica.backend, self.replica.generator.layout().len());
        let narrow = |host: Vec<B::Host>| host.into_iter().map(|v| v.wide() as f32).collect();
        let mut weights = vec![B::Host::default(); len];
        backend.download_params(&self.replica.params, 0, &mut weights)?;
        let [first_moment, second_moment] = self.optimizer.moments(backend)?.map(narrow);
        let average = |from: &B::Accum| -> Result<Vec<f32>, B::Error> {
            let mut host = vec![B::Host::default(); len];
            backend.download_accum(from, 0, &mut host)?;
            Ok(narrow(host))
        };
        let ema = self.ema.as_ref().map(average).transpose()?;
        Ok(Export { weights: narrow(weights), first_moment, second_moment, ema })
    }
}

/// A trainer's flat buffers on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// The parameters.
    pub weights: Vec<f32>,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// The running average, where one is kept.
    pub ema: Option<Vec<f32>>,
}

/// Decay of the running average after so many updates: at most `ema`, and lower at first, so that the average is
/// of what was learned and not of the weights that training began with (as TensorFlow's
/// `ExponentialMovingAverage` with a count of updates).
fn average_decay(ema: f64, updates: u64) -> f64 {
    let updates = updates as f64;
    ema.min((1.0 + updates) / (10.0 + updates))
}

pub(super) fn expect_length(
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), TrainError> {
    if expected == found { Ok(()) } else { Err(TrainError::Length { what, expected, found }) }
}
