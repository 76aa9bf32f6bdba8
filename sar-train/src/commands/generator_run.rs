//! The run of a generator in its folder: everything that `sar train`, `sar refine` and `sar demo` share
//! once it is settled what is trained on what.

use super::latents;
use super::resuming::{
    NOTHING_TO_RESUME, compare_classes, compare_images, from_step, tell_empty, tell_replaced,
};
use crate::backend::Compute;
use crate::checkpoint::{Checkpoints, Kind};
use crate::config::{Config, TrainConfig};
use crate::data::{Data, Latents, grid};
use crate::model::generator::{Generator, GeneratorShape};
use crate::run::{Interrupt, RunFolder};
use crate::sample::{Painter, columns, grid_labels};
use crate::train::{
    Batches, CachedBatches, EncodedBatches, HeldOut, Outcome, PaintHook, Session, TrainError,
    TrainState, Trainer, encode_all, held_out_of,
};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;
use sar_math::rollout::Plan;

/// Images of a step that the published rate is of.
const PUBLISHED_BATCH: usize = 256;

/// Held-out images below which what they say is rough: the classifier that measures has 64 features.
const FEW_HELD_OUT: usize = 65;

/// Held-out images that the loss is measured on, at most.
const HELD_OUT: usize = 1024;

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
    pub backend: &'w B,
    pub config: &'w Config,
    pub data: &'w Data,
    pub tokenizer: &'w TrainedTokenizer<B>,
    /// What it trains on in place of images.
    pub latents: Option<&'w Latents>,
    pub folder: &'w RunFolder,
}

impl<B: Compute> Work<'_, B> {
    /// Trains to the last step; returns the outcome and the weights.
    pub(crate) fn train(
        &self,
        start: Start,
        what: &str,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> anyhow::Result<(Outcome, Vec<f32>)> {
        let (config, tokenizer) = (self.config, self.tokenizer);
        check(config, self.data, tokenizer)?;
        compare_classes(self.folder, self.data)?;
        compare_images(self.folder, self.data)?;
        tell_empty(self.data);
        latents::compare(self.folder, self.latents, matches!(start, Start::Resume))?;
        if !quiet {
            eprintln!("{}", self.data.summary);
            eprintln!("{}", self.data.augment.described());
            eprintln!("{}", self.effort());
            eprintln!("{}", self.chance());
            if let Some(latents) = self.latents {
                eprintln!("on {}", latents.describe());
            }
            let notes =
                [self.slow(), self.small(), few_held_out(self.data), many_held_out(self.data)];
            for note in notes.into_iter().flatten() {
                eprintln!("note: {note}");
            }
        }
        self.tokenizer.keep_in(self.folder)?;
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let resumed = matches!(start, Start::Resume);
        let mut trainer = self.trainer(&generator, start)?;
        if resumed && !quiet {
            eprintln!("{}", from_step(trainer.step_number()));
        }
        let train = &config.train;
        // Before the memory for training images is had, so that one takes the place of the other.
        let held_out = self.held_out(interrupt)?;
        let mut batches = self.batches(trainer.step_number() * train.accumulate as u64)?;
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
        tell_replaced(self.data);
        Ok((trained?, trainer.export()?.weights))
    }

    /// Paints a grid of samples of the model as it is.
    fn painter<'g>(
        &'g self,
        generator: &'g Generator,
    ) -> anyhow::Result<
        impl FnMut(&Trainer<'_, B>) -> Result<image::RgbImage, TrainError> + use<'g, B>,
    > {
        let config = self.config;
        let settings = config.sample.settings(config.train.seed);
        let guided = settings.guidance != sar_math::guidance::Guidance::Off;
        let labels = grid_labels(config.generator.classes);
        let schedule = config.sample.schedule.unwrap_or(config.generator.schedule);
        let batch = config.sample.batch.min(labels.len());
        let decoder = self.tokenizer.decoder();
        let mut painter = Painter::new(self.backend, generator, decoder, &schedule, batch, guided)?;
        Ok(move |trainer: &Trainer<'_, B>| {
            let painted = painter
                .paint(trainer.params(), &labels, 0, &settings, 0)
                .map_err(TrainError::backend)?;
            let (height, width) = painter.size(schedule.len() - 1);
            let images = grid::Images { images_b3hw: &painted.images, height, width };
            Ok(grid::grid(images, columns(config.generator.classes))?)
        })
    }

    /// Latents of images that training does not see.
    fn held_out(&self, interrupt: &Interrupt) -> Result<Option<HeldOut<B::Host>>, TrainError> {
        let (of, images) = (&self.tokenizer.tokenizer, &self.data.validation);
        if images.is_empty() {
            return Ok(None);
        }
        match self.latents {
            Some(latents) => held_out_of::<B>(latents, HELD_OUT),
            None => {
                encode_all(self.backend, of, &self.tokenizer.params, images, HELD_OUT, interrupt)
            }
        }
        .map(Some)
    }

    /// Latents of training images from batch number `first` on.
    fn batches(&self, first: u64) -> Result<Box<dyn Batches<B> + '_>, TrainError> {
        let (of, train) = (&self.tokenizer.tokenizer, &self.config.train);
        let (batch, side) = (train.batch, self.data.train.side());
        Ok(match self.latents {
            Some(latents) => {
                let loader = self.data.loader_of(latents.clone(), batch, train.seed, first)?;
                let [channels, height, width] = latents.sizes().latent;
                Box::new(CachedBatches::new(loader, channels * height * width))
            }
            None => {
                let loader = self.data.loader(batch, train.seed, first)?;
                let params = &self.tokenizer.params;
                Box::new(EncodedBatches::new(self.backend, loader, of, params, batch, side)?)
            }
        })
    }

    fn trainer(&self, generator: &Generator, start: Start) -> anyhow::Result<Trainer<'_, B>> {
        let config = self.config;
        let size = {
            let side = self.tokenizer.tokenizer.latent_side(self.data.train.side());
            (side, side)
        };
        let quantizer = &self.tokenizer.quantizer;
        let new = |weights: &[f32]| {
            Trainer::new(self.backend, generator.clone(), config, weights, quantizer, size)
        };
        Ok(match start {
            Start::New => new(&generator.initial(config.train.seed))?,
            Start::From(weights) => new(&weights)?,
            Start::Resume => {
                let checkpoints = self.folder.checkpoints(config.train.keep)?;
                let Some(found) = checkpoints.take_up()? else {
                    anyhow::bail!("{}: {NOTHING_TO_RESUME}", self.folder.path().display());
                };
                for warning in &found.warnings {
                    eprintln!("warning: {warning}");
                }
                let saved =
                    Checkpoints::load::<TrainState>(&found, Kind::Generator, generator.layout())?;
                let mut trainer = new(&saved.weights)?;
                let (first, second) = (&saved.first_moment, &saved.second_moment);
                trainer.restore(saved.state, first, second, saved.ema.as_deref())?;
                trainer
            }
        })
    }

    /// How much work the run is.
    fn effort(&self) -> String {
        let (t, images) = (&self.config.train, self.data.train.len());
        let each = t.batch * t.accumulate;
        let times = t.steps as f64 * each as f64 / images.max(1) as f64;
        // Published for batches of hundreds on a million images; a small run learns ten times slower by it.
        let by_rule = t.lr.is_none() && t.base_lr == TrainConfig::default().base_lr;
        let rule = match by_rule && each < PUBLISHED_BATCH {
            true => " by the published rule; small models on few images learn faster at 1e-3",
            false => "",
        };
        format!(
            "{} steps of {each} images, {times:.1} times through them, at a learning rate of {:e} \
             (train.steps, train.batch, train.lr){rule}",
            t.steps,
            t.peak_lr()
        )
    }

    /// What to know where a run ends before its learning rate has risen.
    fn slow(&self) -> Option<String> {
        let t = &self.config.train;
        (t.warmup > 0 && t.warmup >= t.steps).then(|| {
            format!(
                "train.warmup is {} steps and the run has {}, so that its learning rate rises to {:.1e} and no \
                 further; a smaller train.warmup reaches {:e}",
                t.warmup,
                t.steps,
                t.highest_lr(),
                t.peak_lr()
            )
        })
    }

    /// What losses and accuracies are to be seen beside.
    fn chance(&self) -> String {
        let codes = self.config.generator.vocab as f64;
        format!(
            "to guess one of {codes} codes has a loss of {:.3} and an accuracy of {:.2} %",
            codes.ln(),
            100.0 / codes
        )
    }

    /// What to know where the last grid is smaller than the images' latents.
    fn small(&self) -> Option<String> {
        let side = self.data.train.side();
        let factor = self.tokenizer.tokenizer.downsample_factor();
        let last = self.config.generator.schedule.last();
        let squeezed = if last.height == last.width { "" } else { ", the images squeezed to that" };
        (last.height.min(last.width) < side / factor).then(|| {
            format!(
                "images of {side} px have latents of {latent}×{latent}, but generator.schedule ends \
                 in a grid of {last}: samples will be {}×{} px{squeezed}",
                last.height * factor,
                last.width * factor,
                latent = side / factor,
            )
        })
    }
}

/// What to know where few images are held out.
pub(super) fn few_held_out(data: &Data) -> Option<String> {
    let held_out = data.validation.len();
    (data.drawn && held_out > 0 && held_out < FEW_HELD_OUT).then(|| {
        format!(
            "only {held_out} images are held out, which makes what is measured on them rough; a larger \
             data.val_fraction holds out more, and cannot be changed later"
        )
    })
}

/// What to know where more images are held out than are measured on.
fn many_held_out(data: &Data) -> Option<String> {
    let held_out = data.validation.len();
    (held_out > HELD_OUT)
        .then(|| format!("the held-out loss is of {HELD_OUT} of the {held_out} held-out images"))
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
