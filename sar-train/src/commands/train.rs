//! `sar train` and `sar refine`: a generator on the images of a configuration.

use super::models::{
    LoadedGenerator, LoadedTokenizer, RUN_TOKENIZER, affordable, compare_images, run_data,
};
use super::output;
use crate::backend::Compute;
use crate::checkpoint::{Checkpoints, Disk, Header, Kind, save_weights};
use crate::cli::{GlobalArgs, RefineArgs, RunArgs, SarArgs, TrainArgs};
use crate::config::{Config, GeneratorSection, Mode, SarConfig, TrainConfig};
use crate::data::{self, Data, DataError, grid};
use crate::model::generator::{Generator, GeneratorShape};
use crate::run::{Interrupt, RunFolder};
use crate::sample::{Painter, SampleSettings, columns, grid_labels};
use crate::train::{EncodedBatches, Outcome, Session, TrainError, TrainState, Trainer, encode_all};
use anyhow::Context as _;
use clap::ValueEnum as _;
use sar_math::backend::Filter;
use sar_math::rollout::Plan;
use std::fmt::Display;

/// Sections that training a generator uses.
const USED: [&str; 6] = ["data", "generator", "train", "sar", "sample", "eval"];
/// Why the others change nothing.
const TRAINED_ALREADY: &str = "the tokenizer is used as it was trained";

/// Who has decided a shape.
const WEIGHTS: &str = "the weights of --init-from have";

/// What to do about a run without a checkpoint.
const NOTHING_TO_RESUME: &str = "the run has no checkpoint yet, so there is nothing to resume; start it anew in an empty folder";

/// What `sar refine` does, beside its progress.
const REFINING: &str = "refining";

/// Images of a step that the published rate is of.
const PUBLISHED_BATCH: usize = 256;

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

/// `sar train`.
///
/// # Errors
/// A configuration, data or checkpoint that cannot be used; see [`TrainError`].
pub fn run<B: Compute>(backend: &B, args: &TrainArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    if args.run.resume {
        return resume(backend, &args.run, global);
    }
    let mut config = args.run.config(Config::default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    config.train.mode = args.mode.unwrap_or(config.train.mode);
    if config.train.mode != Mode::Ssr {
        let rest: Vec<&str> = USED.into_iter().filter(|section| *section != "sar").collect();
        let mode = config.train.mode;
        args.run.sets_only(&rest, &format!("it is for --mode ssr, and this run's is {mode}"))?;
    }
    let path = args.tokenizer.as_deref().context("no tokenizer given; name it with --tokenizer")?;
    let tokenizer = LoadedTokenizer::open(backend, path)?;
    let start = match &args.run.init_from {
        Some(path) => {
            let from = LoadedGenerator::open(path, false)?;
            adopt(&mut config, &from, &args.run)?;
            Start::From(from.weights)
        }
        None => Start::New,
    };
    begin(backend, config, &args.run, global, &tokenizer, start, "training")
}

/// `sar refine`: SAR on a trained generator.
///
/// # Errors
/// As [`run`].
pub fn refine<B: Compute>(
    backend: &B,
    args: &RefineArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    if args.run.resume {
        return resume(backend, &args.run, global);
    }
    let path = args
        .run
        .init_from
        .as_deref()
        .context("no generator given; name the trained one with --init-from")?;
    let from = LoadedGenerator::open(path, false)?;
    let tokenizer = from.tokenizer(backend, args.tokenizer.as_deref())?;
    let mut run = args.run.clone();
    if let Some(preset) = args.sar.preset.and_then(|p| p.to_possible_value()) {
        // It replaces the file's switches, and --set's preset but not its keys: presets come first.
        run.set.push(format!("sar.preset={}", preset.get_name()));
    }
    let mut config = run.config(from.run_config()?.unwrap_or_default())?;
    args.run.sets_only(&USED, TRAINED_ALREADY)?;
    // A file may be that of the run to be refined, which says how it was trained.
    anyhow::ensure!(
        config.train.mode == Mode::Ssr || !args.run.sets("train", "mode"),
        "train.mode is {}, but `sar refine` trains by ssr; leave the key out, or use `sar train \
         --init-from … --mode {}`",
        config.train.mode,
        config.train.mode
    );
    adopt(&mut config, &from, &run)?;
    config.train.mode = Mode::Ssr;
    switch(&mut config.sar, &args.sar);
    let start = Start::From(from.weights);
    begin(backend, config, &args.run, global, &tokenizer, start, REFINING)
}

/// A run that starts from weights has their shape; a schedule of its own it may have.
fn adopt(config: &mut Config, from: &LoadedGenerator, args: &RunArgs) -> anyhow::Result<()> {
    let (asked, weights) = (&config.generator, &from.section);
    for (key, asked, found) in [
        ("depth", asked.depth, weights.depth),
        ("width", asked.width, weights.width),
        ("heads", asked.heads, weights.heads),
        ("vocab", asked.vocab, weights.vocab),
        ("channels", asked.channels, weights.channels),
        ("classes", asked.classes, weights.classes),
        ("pos_side", asked.pos_side, weights.pos_side),
        ("mlp_ratio", asked.mlp_ratio, weights.mlp_ratio),
    ] {
        fixed(args, key, asked, found, WEIGHTS)?;
    }
    for (key, asked, found) in
        [("norm_eps", asked.norm_eps, weights.norm_eps), ("alng", asked.alng, weights.alng)]
    {
        fixed(args, key, asked, found, WEIGHTS)?;
    }
    let schedule = if args.names("generator", "schedule") { asked } else { weights }.schedule;
    config.generator = GeneratorSection { schedule, ..weights.clone() };
    Ok(())
}

/// Fails where the user asked for a value of a key that something else has decided.
fn fixed<T: PartialEq + Display>(
    args: &RunArgs,
    key: &str,
    asked: T,
    found: T,
    who: &str,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        asked == found || !args.names("generator", key),
        "generator.{key} is {asked}, but {who} {found}; leave the key out"
    );
    Ok(())
}

/// Flags over what the preset, the file and --set say.
fn switch(sar: &mut SarConfig, args: &SarArgs) {
    sar.extent = args.extent.unwrap_or(sar.extent);
    sar.target = args.target.unwrap_or(sar.target);
    sar.decode = args.decode.unwrap_or(sar.decode);
    sar.top_k = args.top_k.unwrap_or(sar.top_k);
    sar.top_p = args.top_p.unwrap_or(sar.top_p);
    sar.guidance = args.guidance.unwrap_or(sar.guidance);
    sar.sigma = args.sigma.unwrap_or(sar.sigma);
}

fn begin<B: Compute>(
    backend: &B,
    mut config: Config,
    args: &RunArgs,
    global: &GlobalArgs,
    tokenizer: &LoadedTokenizer<B>,
    start: Start,
    what: &str,
) -> anyhow::Result<()> {
    let data = data::open(&config.data).map_err(|error| match &error {
        DataError::Missing { .. }
            if what == REFINING && args.data.is_none() && !args.names("data", "path") =>
        {
            let moved = "the images of the generator's run have moved: name them with --data";
            anyhow::Error::from(error).context(moved)
        }
        _ => error.into(),
    })?;
    if matches!(start, Start::New) {
        let (t, g) = (tokenizer.tokenizer.config(), &mut config.generator);
        let classes = data.classes.len();
        fixed(args, "vocab", g.vocab, t.vocab, "the tokenizer has")?;
        fixed(args, "channels", g.channels, t.latent_channels, "the tokenizer has")?;
        anyhow::ensure!(
            g.classes <= classes || !args.names("generator", "classes"),
            "generator.classes is {}, but the data have {classes}; leave the key out, or say by \
             data.num_classes={} that there are classes without images",
            g.classes,
            g.classes
        );
        fixed(args, "classes", g.classes, classes, "the data have")?;
        (g.vocab, g.channels, g.classes) = (t.vocab, t.latent_channels, classes);
    }
    config.validate()?;
    // Before the folder: a run that cannot start leaves none behind.
    affordable(&config.generator)?;
    check(&config, &data, tokenizer)?;
    // What is resolved is what is used.
    config.tokenizer = tokenizer.tokenizer.config().clone();
    let folder = RunFolder::create(&args.out, &config)?;
    let interrupt = Interrupt::listen()?;
    let work = Work { backend, config: &config, data: &data, tokenizer, folder: &folder };
    work.train(start, what, &interrupt, global.quiet)?;
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}

fn resume<B: Compute>(backend: &B, args: &RunArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let (folder, config) = RunFolder::open_for_resume(&args.out)?;
    let kept = folder.path().join(RUN_TOKENIZER);
    if !kept.is_file() {
        // It is written before the first checkpoint.
        let path = folder.path().display();
        match folder.checkpoints(config.train.keep)?.latest()? {
            None => anyhow::bail!("{path}: {NOTHING_TO_RESUME}"),
            Some(_) => anyhow::bail!(
                "{path} has no {RUN_TOKENIZER}, so it is no run of a generator; a tokenizer's goes on \
                 with `sar tokenizer train --resume`"
            ),
        }
    }
    let data = run_data(&config, Some(folder.path()))?;
    let tokenizer = LoadedTokenizer::open(backend, &kept)?;
    let interrupt = Interrupt::listen()?;
    let work =
        Work { backend, config: &config, data: &data, tokenizer: &tokenizer, folder: &folder };
    work.train(Start::Resume, "resuming", &interrupt, global.quiet)?;
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}

/// A generator's run with all that it needs.
pub(crate) struct Work<'w, B: Compute> {
    pub backend: &'w B,
    pub config: &'w Config,
    pub data: &'w Data,
    pub tokenizer: &'w LoadedTokenizer<B>,
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
        let (backend, config, tokenizer) = (self.backend, self.config, self.tokenizer);
        check(config, self.data, tokenizer)?;
        compare_images(self.folder, self.data)?;
        if !quiet {
            eprintln!("{}", self.data.summary);
            eprintln!("{}", self.effort());
            if let Some(note) = self.small() {
                eprintln!("note: {note}");
            }
        }
        self.keep_tokenizer()?;
        let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
        let mut trainer = self.trainer(&generator, start)?;
        let train = &config.train;
        let first = trainer.step_number() * train.accumulate as u64;
        let (model, params, side) =
            (&tokenizer.tokenizer, &tokenizer.params, self.data.train.side());
        // Before the memory for training images is had, so that one takes the place of the other.
        let held_out = match self.data.validation.is_empty() {
            true => None,
            false => Some(encode_all(backend, model, params, &self.data.validation, HELD_OUT)?),
        };
        let loader = self.data.loader(train.batch, train.seed, first)?;
        let mut batches = EncodedBatches::new(backend, loader, model, params, train.batch, side)?;
        let settings = settings(config, train.seed);
        let guided = settings.guidance != sar_math::guidance::Guidance::Off;
        let labels = grid_labels(config.generator.classes);
        let schedule = config.sample.schedule.unwrap_or(config.generator.schedule);
        let mut painter = Painter::new(
            backend,
            &generator,
            tokenizer.decoder(),
            &schedule,
            config.sample.batch.min(labels.len()),
            guided,
        )?;
        let mut paint = |trainer: &Trainer<'_, B>| {
            let painted = painter
                .paint(trainer.params(), &labels, 0, &settings, false)
                .map_err(TrainError::backend)?;
            let (height, width) = painter.size(schedule.len() - 1);
            let images = grid::Images { images_b3hw: &painted.images, height, width };
            Ok(grid::grid(images, columns(config.generator.classes))?)
        };
        let mut session = Session {
            run: self.folder,
            config,
            held_out: held_out.as_ref(),
            paint: Some(&mut paint),
            interrupt,
            what,
            quiet,
        };
        let outcome = session.train(&mut trainer, &mut batches)?;
        Ok((outcome, trainer.export()?.weights))
    }

    fn trainer(&self, generator: &Generator, start: Start) -> anyhow::Result<Trainer<'_, B>> {
        let config = self.config;
        let size = {
            let side = self.tokenizer.tokenizer.latent_side(self.data.train.side());
            (side, side)
        };
        let codebook = self.tokenizer.codebook_on_host(self.backend)?;
        let new = |weights: &[f32]| {
            Trainer::new(self.backend, generator.clone(), config, weights, &codebook, size)
        };
        Ok(match start {
            Start::New => new(&generator.initial(config.train.seed))?,
            Start::From(weights) => new(&weights)?,
            Start::Resume => {
                let checkpoints = self.folder.checkpoints(config.train.keep)?;
                let Some(found) = checkpoints.latest()? else {
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

    /// What to know where the last grid is smaller than the images' latents.
    fn small(&self) -> Option<String> {
        let side = self.data.train.side();
        let factor = self.tokenizer.tokenizer.downsample_factor();
        let last = self.config.generator.schedule.last();
        (last.height.max(last.width) < side / factor).then(|| {
            format!(
                "images of {side} px have latents of {latent}×{latent}, but generator.schedule ends \
                 in a grid of {last}: samples will be {}×{} px",
                last.height * factor,
                last.width * factor,
                latent = side / factor,
            )
        })
    }

    /// Keeps the tokenizer in the run, so that the run is whole on its own.
    fn keep_tokenizer(&self) -> anyhow::Result<()> {
        let path = self.folder.path().join(RUN_TOKENIZER);
        if path.is_file() {
            return Ok(());
        }
        let t = self.tokenizer;
        let header = Header::new(Kind::Tokenizer, t.step, t.tokenizer.config())?;
        save_weights(&Disk, &path, &header, t.tokenizer.layout(), &t.weights)?;
        Ok(())
    }
}

/// Whether generator, tokenizer, schedule and data fit each other.
fn check<B: Compute>(
    config: &Config,
    data: &Data,
    tokenizer: &LoadedTokenizer<B>,
) -> anyhow::Result<()> {
    let generator = &config.generator;
    tokenizer.fits(generator)?;
    anyhow::ensure!(
        data.classes.len() == generator.classes,
        "the data have {} classes, the generator {}; train it on data of its classes, or, where these \
         are the first of them, with --set data.num_classes={}",
        data.classes.len(),
        generator.classes,
        generator.classes
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
         {latent}×{latent}; end generator.schedule at {latent} or less",
        generator.schedule
    );
    // The way of training may ask for more scales than there are.
    let method = config.train.method(&config.sar);
    Plan::new(method, config.sar.target, &generator.schedule, config.train.seed, 0)
        .with_context(|| format!("train.mode {} on {}", config.train.mode, generator.schedule))?;
    Ok(())
}

/// Sampling as the configuration says, with this seed.
pub(crate) fn settings(config: &Config, seed: u64) -> SampleSettings {
    let s = &config.sample;
    SampleSettings {
        guidance: s.ramp.guidance(s.guidance),
        filter: Filter { top_k: s.top_k, top_p: s.top_p },
        seed,
        published_greedy: s.published_greedy,
    }
}
