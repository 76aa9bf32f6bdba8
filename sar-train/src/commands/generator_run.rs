//! The run of a generator in its folder: everything that `sar train`, `sar refine` and `sar demo` share
//! once it is settled what is trained on what.

use super::inputs::Inputs;
use super::latents;
use super::ranks::gather;
use super::resuming::{
    NOTHING_TO_RESUME, compare_classes, compare_images, from_step, resumed, tell_empty,
    tell_replaced,
};
use crate::backend::Compute;
use crate::checkpoint::Kind;
use crate::config::Config;
use crate::data::{Data, grid};
use crate::hash::sha256_of;
use crate::model::generator::{Generator, GeneratorShape};
use crate::ranks::{Job, Meeting};
use crate::run::{Interrupt, Recorded, RunFolder};
use crate::sample::{Painter, columns, grid_labels};
use crate::train::{
    HeldOut, Outcome, PaintHook, Session, TrainError, TrainState, Trainer, encode_all, held_out_of,
    share,
};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;
use sar_math::rollout::Plan;

/// Held-out images that the loss is measured on, at most.
pub(super) const HELD_OUT: usize = 1024;

/// Where a run's weights come from.
pub(crate) enum Start {
    /// Initial values from the seed.
    New,
    /// Weights of another run; moments start anew.
    From(Vec<f32>),
    /// The newest checkpoint of this run.
    Resume,
}

/// A generator's run with all that it needs.
pub(crate) struct Work<'w, B: Compute> {
    pub inputs: Inputs<'w, B>,
    pub folder: &'w RunFolder,
    /// Where other ranks come to share its steps, if there are any.
    pub meeting: Option<Meeting>,
}

impl<'w, B: Compute> Work<'w, B> {
    /// Trains to the last step; returns the outcome and the weights.
    pub(crate) fn train(
        mut self,
        start: Start,
        what: &str,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> anyhow::Result<(Outcome, Vec<f32>)> {
        let (config, tokenizer) = (self.inputs.config, self.inputs.tokenizer);
        check(config, self.inputs.data, tokenizer)?;
        compare_classes(self.folder, self.inputs.data)?;
        compare_images(self.folder, self.inputs.data)?;
        tell_empty(self.inputs.data);
        let resumed = matches!(start, Start::Resume);
        latents::compare(self.folder, self.inputs.latents, config.train.seed, resumed)?;
        self.inputs.introduce(quiet);
        self.inputs.tokenizer.keep_in(self.folder)?;
        self.folder.other(Recorded::Tokenizer, &sha256_of(&tokenizer.weights))?;
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let mut trainer = self.trainer(&generator, start)?;
        if resumed && !quiet {
            eprintln!("{}", from_step(trainer.step_number()));
        }
        let train = &config.train;
        let ranks = self.bring_in_ranks(&mut trainer, interrupt, quiet)?;
        // Before the memory for training images is had, so that one takes the place of the other.
        let held_out = self.held_out(interrupt)?;
        let mut batches =
            self.inputs.batches(trainer.step_number(), share(train.accumulate, 0, ranks))?;
        let mut paint = (train.sample_every > 0).then(|| self.painter(&generator)).transpose()?;
        let mut session = Session {
            run: self.folder,
            config,
            held_out: held_out.as_ref(),
            paint: paint.as_mut().map(|paint| paint as &mut PaintHook<'_, B>),
            interrupt,
            what,
            quiet,
        };
        let trained = session.train(&mut trainer, &mut *batches);
        tell_replaced(self.inputs.data);
        Ok((trained?, trainer.export()?.weights))
    }

    /// Shares the trainer's steps with the other ranks, once they are there; returns the number of all ranks.
    fn bring_in_ranks(
        &mut self,
        trainer: &mut Trainer<'w, B>,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> anyhow::Result<usize> {
        let (config, done) = (self.inputs.config, trainer.step_number());
        let Some(meeting) = self.meeting.take() else { return Ok(1) };
        let (ranks, tokenizer) = (meeting.ranks(), self.inputs.tokenizer);
        let config = Config { tokenizer: tokenizer.tokenizer.config().clone(), ..config.clone() };
        let job = Job {
            model: Kind::Generator,
            ranks,
            step: done,
            config: config.to_toml()?,
            images: self.inputs.data.fingerprint(),
        };
        let (weights, parameters) = (&tokenizer.weights, trainer.generator().layout().len());
        let steps = config.train.steps;
        match gather(meeting, &job, steps, weights, parameters, interrupt, quiet)? {
            Some(others) => trainer.share_with(Box::new(others))?,
            None => return Ok(1),
        }
        Ok(ranks)
    }

    /// Paints a grid of samples of the model as it is.
    fn painter<'g>(
        &'g self,
        generator: &'g Generator,
    ) -> anyhow::Result<
        impl FnMut(&Trainer<'_, B>) -> Result<image::RgbImage, TrainError> + use<'g, B>,
    > {
        let config = self.inputs.config;
        let settings = config.sample.settings(config.train.seed);
        let guided = settings.guidance != sar_math::guidance::Guidance::Off;
        let labels = grid_labels(config.generator.classes);
        let schedule = config.sampled_schedule();
        let batch = config.sample.batch.min(labels.len());
        let decoder = self.inputs.tokenizer.decoder();
        let mut painter =
            Painter::new(self.inputs.backend, generator, decoder, &schedule, batch, guided)?;
        Ok(move |trainer: &Trainer<'_, B>| {
            let painted = painter.paint(trainer.params(), &labels, 0, &settings, 0)?;
            let (height, width) = painter.size(schedule.len() - 1);
            let images = grid::Images { images_b3hw: &painted.images, height, width };
            Ok(grid::grid(images, columns(config.generator.classes))?)
        })
    }

    /// Latents of images that training does not see.
    fn held_out(&self, interrupt: &Interrupt) -> Result<Option<HeldOut<B::Host>>, TrainError> {
        let (of, images) = (&self.inputs.tokenizer.tokenizer, &self.inputs.data.validation);
        if images.is_empty() {
            return Ok(None);
        }
        match self.inputs.latents {
            Some(latents) => held_out_of::<B>(latents, HELD_OUT),
            None => encode_all(
                self.inputs.backend,
                of,
                &self.inputs.tokenizer.params,
                images,
                HELD_OUT,
                interrupt,
            ),
        }
        .map(Some)
    }

    fn trainer(&self, generator: &Generator, start: Start) -> anyhow::Result<Trainer<'w, B>> {
        let config = self.inputs.config;
        let size = self.inputs.latent_size();
        let quantizer = &self.inputs.tokenizer.quantizer;
        let new = |weights: &[f32]| {
            Trainer::new(self.inputs.backend, generator.clone(), config, weights, quantizer, size)
        };
        Ok(match start {
            Start::New => new(&generator.initial(config.train.seed))?,
            Start::From(weights) => new(&weights)?,
            Start::Resume => {
                let (kind, layout) = (Kind::Generator, generator.layout());
                let saved = resumed::<TrainState>(self.folder, config.train.keep, kind, layout)?;
                let saved = saved.with_context(|| {
                    format!("{}: {NOTHING_TO_RESUME}", self.folder.path().display())
                })?;
                let mut trainer = new(&saved.weights)?;
                let (first, second) = (&saved.first_moment, &saved.second_moment);
                trainer.restore(saved.state, first, second, saved.ema.as_deref())?;
                trainer
            }
        })
    }
}

/// Whether generator, tokenizer, schedule and data fit each other.
pub(super) fn check<B: Compute>(
    config: &Config,
    data: &Data,
    tokenizer: &TrainedTokenizer<B>,
) -> anyhow::Result<()> {
    let generator = &config.generator;
    tokenizer.fits(generator)?;
    if let Some(schedule) = &config.sample.schedule {
        generator.covers("sample.schedule", schedule)?;
    }
    let (found, expected) = (data.classes.len(), generator.classes);
    // Of more than there are no number makes fewer.
    let first = match found < expected {
        true => format!(
            ", or, where these are the first of them, with --set data.num_classes={expected}"
        ),
        false => String::new(),
    };
    anyhow::ensure!(
        found == expected,
        "the data have {found} classes, the generator {expected}; train it on data of its classes, or with `sar train \
         --init-from … --new-classes` where they are others{first}"
    );
    let (side, last) = (data.train.side(), generator.schedule.last());
    let factor = tokenizer.tokenizer.downsample_factor();
    anyhow::ensure!(
        side.is_multiple_of(factor),
        "images are {side} px, which the tokenizer's factor of {factor} does not divide; set \
         data.image_side to a multiple"
    );
    let latent = side / factor;
    anyhow::ensure!(
        last.height.max(last.width) <= latent,
        "the schedule {} ends in a grid of {last}, but images of {side} px have latents of \
         {latent}×{latent}; set data.image_side={} for images that the schedule draws, or end \
         generator.schedule at {latent} or less",
        generator.schedule,
        last.height.max(last.width) * factor
    );
    anyhow::ensure!(
        !tokenizer.quantizer.adds_up() || (last.height, last.width) == (latent, latent),
        "the scales of this tokenizer add up to the {latent}×{latent} latents of images of {side} px, and the schedule \
         {} ends in a grid of {last}; set data.image_side={} or another schedule",
        generator.schedule,
        last.height.max(last.width) * factor
    );
    // The way of training may ask for more scales than there are.
    let method = config.train.method(&config.sar);
    Plan::new(method, config.sar.target, &generator.schedule, config.train.seed, 0)
        .with_context(|| format!("train.mode {} on {}", config.train.mode, generator.schedule))?;
    Ok(())
}
