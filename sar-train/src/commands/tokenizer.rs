//! `sar tokenizer train|eval|encode`.

use super::models::{LoadedTokenizer, RUN_TOKENIZER, compare_images, run_data};
use super::output;
use crate::backend::Compute;
use crate::checkpoint::{Checkpoints, Header, Kind, Snapshot};
use crate::cli::{
    GlobalArgs, RunArgs, TokenizerArgs, TokenizerCommand, TokenizerEncodeArgs, TokenizerEvalArgs,
    TokenizerTrainArgs,
};
use crate::config::Config;
use crate::data::{self, Data, Dataset, grid};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::run::{Interrupt, Interrupted, NonFinite, Progress, RunFolder};
use crate::train::tokenizer::{
    TokenizerLosses, TokenizerProgress, TokenizerQuality, TokenizerTrainer,
};
use sar_math::backend::LatentDims;
use serde::Serialize;
use std::path::Path;

/// Validation images that quality is measured on, at most.
const EVALUATED: usize = 512;
/// Images beside their reconstructions in a grid.
const SHOWN: usize = 20;

/// Sections and keys that training a tokenizer uses.
const USED: [&str; 8] = [
    "data",
    "tokenizer",
    "tokenizer_train",
    "generator.schedule",
    "train.keep",
    "train.log_every",
    "train.save_every",
    "train.non_finite_limit",
];

/// Dispatches the subcommands.
///
/// # Errors
/// A configuration, data or checkpoint that cannot be used.
pub fn run<B: Compute>(
    backend: &B,
    args: &TokenizerArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    match &args.command {
        TokenizerCommand::Train(args) => train(backend, args, global),
        TokenizerCommand::Eval(args) => eval(backend, args),
        TokenizerCommand::Encode(args) => encode(backend, args, global),
    }
}

fn train<B: Compute>(
    backend: &B,
    args: &TokenizerTrainArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let (folder, config, data, start) = if args.run.resume {
        let (folder, config) = RunFolder::open_for_resume(&args.run.out)?;
        anyhow::ensure!(
            !folder.path().join(RUN_TOKENIZER).exists(),
            "{} is the run of a generator, which goes on with `sar train --resume`",
            folder.path().display()
        );
        let data = run_data(&config, Some(folder.path()))?;
        (folder, config, data, None)
    } else {
        let mut config = args.run.config(Config::default())?;
        args.run.sets_only(&USED, "a tokenizer's training is set in tokenizer_train")?;
        let start = match &args.run.init_from {
            Some(path) => {
                let from = LoadedTokenizer::open(backend, path)?;
                adopt(&mut config, from.tokenizer.config(), &args.run)?;
                Some(from.weights)
            }
            None => None,
        };
        // Before the folder: a run that cannot start leaves none behind.
        let data = data::open(&config.data)?;
        check_side(&Tokenizer::new(&config.tokenizer)?, &data)?;
        (RunFolder::create(&args.run.out, &config)?, config, data, start)
    };
    if !global.quiet {
        eprintln!("{}", data.summary);
    }
    let interrupt = Interrupt::listen()?;
    train_in(backend, &folder, &config, &data, start.as_deref(), &interrupt, global.quiet)?;
    output::result(format_args!("{}\n", folder.path().display()));
    Ok(())
}

/// A run that starts from weights has their shape, and its user may not have asked for another.
fn adopt(config: &mut Config, weights: &TokenizerConfig, args: &RunArgs) -> anyhow::Result<()> {
    let (asked, found) =
        (toml::Table::try_from(&config.tokenizer)?, toml::Table::try_from(weights)?);
    for (key, asked) in asked {
        let found = found.get(&key).map(toml::Value::to_string).unwrap_or_default();
        anyhow::ensure!(
            asked.to_string() == found || !args.names("tokenizer", &key),
            "tokenizer.{key} is {asked}, but the weights of --init-from have {found}; leave the key out"
        );
    }
    config.tokenizer = weights.clone();
    Ok(())
}

/// Images must be whole latents.
fn check_side(tokenizer: &Tokenizer, data: &Data) -> anyhow::Result<()> {
    let (side, factor) = (data.train.side(), tokenizer.downsample_factor());
    anyhow::ensure!(
        side.is_multiple_of(factor),
        "images are {side} px, which the tokenizer's factor of {factor} does not divide; set \
         data.image_side to a multiple"
    );
    Ok(())
}

/// A record of the log.
#[derive(Serialize)]
struct Record {
    loss: f64,
    quantization: f64,
    grad_norm: f64,
    lr: f64,
    grid: String,
    revived: usize,
}

impl Record {
    fn of(losses: &TokenizerLosses) -> Self {
        Self {
            loss: losses.reconstruction,
            quantization: losses.quantization,
            grad_norm: losses.grad_norm,
            lr: losses.lr,
            grid: format!("{}x{}", losses.grid.0, losses.grid.1),
            revived: losses.revived,
        }
    }
}

/// A tokenizer that has been trained in a run folder.
pub(crate) struct Trained<B: Compute> {
    pub loaded: LoadedTokenizer<B>,
    pub quality: TokenizerQuality,
    /// All validation images after encoding, quantising and decoding, `[n, 3, h, w]`.
    pub reconstructions: Vec<f32>,
}

/// Trains (or goes on training) the tokenizer of a run folder to its last step, from `start` where it
/// has weights to start from.
pub(crate) fn train_in<B: Compute>(
    backend: &B,
    folder: &RunFolder,
    config: &Config,
    data: &Data,
    start: Option<&[f32]>,
    interrupt: &Interrupt,
    quiet: bool,
) -> anyhow::Result<Trained<B>> {
    compare_images(folder, data)?;
    let settings = &config.tokenizer_train;
    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    let side = data.train.side();
    let mut trainer = TokenizerTrainer::new(backend, &tokenizer, settings, (side, side))?;
    let checkpoints = folder.checkpoints(config.train.keep)?;
    if !resume(&mut trainer, &checkpoints, &tokenizer)? {
        if let Some(weights) = start {
            let zeros = vec![0.0; weights.len()];
            let progress = trainer.progress().clone();
            trainer.restore(weights, [&zeros, &zeros], &progress)?;
        }
        // From here on there is something to resume, and a disk without room is found out early.
        save(&trainer, &checkpoints, &tokenizer)?;
    }
    let mut loader = data.loader(settings.batch, settings.seed, trainer.steps())?;
    let mut log = folder.log(trainer.steps())?;
    let mut board = folder.tensorboard(trainer.steps())?;
    let mut progress = Progress::new("tokenizer", settings.steps, trainer.steps(), quiet);
    let mut non_finite = NonFinite::new(config.train.non_finite_limit);
    while trainer.steps() < settings.steps {
        let batch = loader.next_batch()?;
        let losses = trainer.step(&batch.images_b3hw)?;
        let step = trainer.steps();
        let skipped = non_finite.note(step, !losses.skipped)?;
        if skipped {
            progress.warn(&format!("step {step}: a gradient is not finite; step skipped"));
        }
        if step % config.train.log_every == 0 || step == settings.steps {
            log.record(step, "train", &Record::of(&losses))?;
            board.scalar("tokenizer/reconstruction", step, losses.reconstruction)?;
            board.scalar("tokenizer/quantization", step, losses.quantization)?;
            progress.update(step, &format!("mse {:.4}", losses.reconstruction));
        }
        let asked = interrupt.is_asked() && step < settings.steps;
        let due = config.train.save_every > 0 && step % config.train.save_every == 0;
        // Not while steps are skipped: the checkpoints before are the ones to go back to.
        if (due && !skipped) || asked || step == settings.steps {
            save(&trainer, &checkpoints, &tokenizer)?;
        }
        if asked {
            return Err(Interrupted { step }.into());
        }
    }
    let mut held = &data.validation;
    if held.is_empty() {
        progress
            .warn("no image is held out (data.val_fraction); quality is that of training images");
        held = &data.train;
    }
    let quality = measure(&mut trainer, held, config)?;
    log.record(trainer.steps(), "eval", &quality_record(&quality))?;
    write_pictures(&mut trainer, &tokenizer, folder, held)?;
    let full = quality.scales.last().map_or(f64::NAN, |s| s.psnr);
    progress.finish(&format!(
        "PSNR {full:.2} dB, {:.0} % of the codebook used",
        100.0 * quality.codebook_used
    ));
    let weights = trainer.weights()?;
    let loaded = LoadedTokenizer::new(backend, &config.tokenizer, weights, trainer.steps())?;
    let factor = tokenizer.downsample_factor();
    let everything = pixels(&data.validation, data.validation.len())?;
    let reconstructions = trainer.reconstruct(&everything, (side / factor, side / factor))?;
    Ok(Trained { loaded, quality, reconstructions })
}

/// Whether there was a checkpoint to go on from.
fn resume<B: Compute>(
    trainer: &mut TokenizerTrainer<'_, B>,
    checkpoints: &Checkpoints,
    tokenizer: &Tokenizer,
) -> anyhow::Result<bool> {
    let Some(found) = checkpoints.latest()? else { return Ok(false) };
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    let saved =
        Checkpoints::load::<TokenizerProgress>(&found, Kind::Tokenizer, tokenizer.layout())?;
    let moments = [&saved.first_moment[..], &saved.second_moment[..]];
    trainer.restore(&saved.weights, moments, &saved.state)?;
    Ok(true)
}

fn save<B: Compute>(
    trainer: &TokenizerTrainer<'_, B>,
    checkpoints: &Checkpoints,
    tokenizer: &Tokenizer,
) -> anyhow::Result<()> {
    let header = Header::new(Kind::Tokenizer, trainer.steps(), tokenizer.config())?;
    let [first_moment, second_moment] = trainer.moments()?;
    checkpoints.save(&Snapshot {
        header: &header,
        layout: tokenizer.layout(),
        weights: &trainer.weights()?,
        ema: None,
        first_moment: &first_moment,
        second_moment: &second_moment,
        state: trainer.progress(),
    })?;
    Ok(())
}

/// Quality at every scale of the generator's schedule, on validation images.
fn measure<B: Compute>(
    trainer: &mut TokenizerTrainer<'_, B>,
    images: &Dataset,
    config: &Config,
) -> anyhow::Result<TokenizerQuality> {
    let factor = config.tokenizer.downsample_factor();
    let full = images.side() / factor;
    let mut grids: Vec<(usize, usize)> = config
        .generator
        .schedule
        .scales()
        .iter()
        .map(|s| (s.height, s.width))
        .filter(|&(h, w)| h.max(w) < full)
        .collect();
    grids.push((full, full));
    let pixels = pixels(images, EVALUATED)?;
    Ok(trainer.evaluate(&pixels, &grids)?)
}

/// At most `limit` images of a set, spread over it evenly.
pub(crate) fn pixels(images: &Dataset, limit: usize) -> anyhow::Result<Vec<f32>> {
    let count = images.len().min(limit);
    let chosen: Vec<usize> = (0..count).map(|i| i * images.len() / count.max(1)).collect();
    Ok(images.select(&chosen)?.images_b3hw)
}

#[derive(Serialize)]
struct QualityRecord {
    psnr: Vec<f64>,
    grids: Vec<String>,
    codebook_used: f64,
    perplexity: f64,
}

fn quality_record(quality: &TokenizerQuality) -> QualityRecord {
    QualityRecord {
        psnr: quality.scales.iter().map(|s| s.psnr).collect(),
        grids: quality.scales.iter().map(|s| format!("{}x{}", s.grid.0, s.grid.1)).collect(),
        codebook_used: quality.codebook_used,
        perplexity: quality.perplexity,
    }
}

/// Validation images above their reconstructions.
fn write_pictures<B: Compute>(
    trainer: &mut TokenizerTrainer<'_, B>,
    tokenizer: &Tokenizer,
    folder: &RunFolder,
    images: &Dataset,
) -> anyhow::Result<()> {
    let side = images.side();
    let originals = pixels(images, SHOWN)?;
    let grid_side = side / tokenizer.downsample_factor();
    let decoded = trainer.reconstruct(&originals, (grid_side, grid_side))?;
    let mut both = originals;
    let count = both.len() / (3 * side * side);
    both.extend(decoded);
    let picture = grid::grid(grid::Images::square(&both, side), count.max(1))?;
    folder.write_png("samples/reconstructions.png", &picture)?;
    Ok(())
}

fn eval<B: Compute>(backend: &B, args: &TokenizerEvalArgs) -> anyhow::Result<()> {
    let _place = args.grid.as_deref().map(output::ready).transpose()?;
    let loaded = LoadedTokenizer::open(backend, &args.tokenizer)?;
    let mut config = run_config(&args.tokenizer)?;
    config.tokenizer = loaded.tokenizer.config().clone();
    config.data.skip_bad_images |= args.skip_bad_images;
    let data = open_data(args.data.as_deref(), &config, &args.tokenizer)?;
    anyhow::ensure!(
        !data.validation.is_empty(),
        "no image is held out for validation; raise data.val_fraction"
    );
    check_side(&loaded.tokenizer, &data)?;
    let side = data.validation.side();
    let settings = &config.tokenizer_train;
    let mut trainer = TokenizerTrainer::new(backend, &loaded.tokenizer, settings, (side, side))?;
    let zeros = vec![0.0; loaded.weights.len()];
    let progress = trainer.progress().clone();
    trainer.restore(&loaded.weights, [&zeros, &zeros], &progress)?;
    let quality = measure(&mut trainer, &data.validation, &config)?;
    println!("{:>8}  {:>9}", "grid", "PSNR (dB)");
    for scale in &quality.scales {
        println!("{:>8}  {:>9.2}", format!("{}x{}", scale.grid.0, scale.grid.1), scale.psnr);
    }
    println!("codebook used: {:.1} %", 100.0 * quality.codebook_used);
    println!("perplexity of the codes: {:.1}", quality.perplexity);
    if let Some(path) = &args.grid {
        let originals = pixels(&data.validation, SHOWN)?;
        let full = side / loaded.tokenizer.downsample_factor();
        let decoded = trainer.reconstruct(&originals, (full, full))?;
        let mut both = originals;
        let count = both.len() / (3 * side * side);
        both.extend(decoded);
        grid::save_grid(path, grid::Images::square(&both, side), count.max(1))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn encode<B: Compute>(
    backend: &B,
    args: &TokenizerEncodeArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let loaded = LoadedTokenizer::open(backend, &args.tokenizer)?;
    anyhow::ensure!(
        args.force || !args.out.exists(),
        "{} exists; choose another name, or replace it with --force",
        args.out.display()
    );
    let mut config = run_config(&args.tokenizer)?;
    config.data.skip_bad_images |= args.skip_bad_images;
    let data = open_data(args.data.as_deref(), &config, &args.tokenizer)?;
    let _place = output::ready(&args.out)?;
    let schedule = args.schedule.unwrap_or(config.generator.schedule);
    let tokenizer = &loaded.tokenizer;
    check_side(tokenizer, &data)?;
    let (last, latent) = (schedule.last(), tokenizer.latent_side(data.train.side()));
    anyhow::ensure!(
        last.height.max(last.width) <= latent,
        "the schedule {schedule} ends in a grid of {last}, but images of {} px have latents of \
         {latent}×{latent}; end --schedule at {latent} or less",
        data.train.side()
    );
    let (side, sets) = (tokenizer.latent_side(data.train.side()), [&data.train, &data.validation]);
    let (k, v, t) =
        (tokenizer.config().latent_channels, tokenizer.config().vocab, schedule.tokens());
    let total: usize = sets.iter().map(|set| set.len()).sum();
    let mut progress = Progress::new("encoding", total as u64, 0, global.quiet);
    let mut coded = Coded::default();
    let each = k * side * side;
    const BATCH: usize = 64;
    let mut latents = backend.activation(BATCH * each)?;
    let mut tokens = backend.activation(BATCH * t * k)?;
    let mut codes = backend.ids(BATCH * t)?;
    for (set, validation) in sets.into_iter().zip([0, 1]) {
        let held = crate::train::encode_all(backend, tokenizer, &loaded.params, set, set.len())?;
        for part in held.latents.chunks(BATCH * each) {
            let batch = part.len() / each;
            backend.upload(part, &mut latents, 0)?;
            let dims = LatentDims { batch, channels: k, height: side, width: side };
            backend.area_tokens(dims, &schedule, &latents, &mut tokens)?;
            backend.nearest_code(batch * t, v, k, &tokens, &loaded.codebook, &mut codes)?;
            let done = coded.ids.len();
            coded.ids.resize(done + batch * t, 0);
            backend.download_ids(&codes, 0, &mut coded.ids[done..])?;
            progress.update((coded.ids.len() / t) as u64, "");
        }
        coded.validation.extend(std::iter::repeat_n(validation, held.labels.len()));
        coded.labels.extend(held.labels);
    }
    coded.write(&args.out, t, &schedule.to_string())?;
    progress.finish(&format!("{} images of {t} tokens", coded.labels.len()));
    println!("{}", args.out.display());
    Ok(())
}

/// The tokens of a data set, training images first.
#[derive(Default)]
struct Coded {
    /// `[images, T]`.
    ids: Vec<u32>,
    labels: Vec<u32>,
    /// 1 for images held out for validation.
    validation: Vec<u32>,
}

impl Coded {
    /// Writes all of it as safetensors, the schedule in the metadata.
    fn write(&self, path: &Path, tokens: usize, schedule: &str) -> anyhow::Result<()> {
        use safetensors::tensor::{Dtype, TensorView};
        let bytes = |v: &[u32]| v.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        let images = self.labels.len();
        let (ids, labels, validation) =
            (bytes(&self.ids), bytes(&self.labels), bytes(&self.validation));
        let views = [
            ("ids", TensorView::new(Dtype::U32, vec![images, tokens], &ids)?),
            ("labels", TensorView::new(Dtype::U32, vec![images], &labels)?),
            ("validation", TensorView::new(Dtype::U32, vec![images], &validation)?),
        ];
        let metadata = [("schedule".to_owned(), schedule.to_owned())].into();
        let file = safetensors::serialize(views, Some(metadata))?;
        grid::write_atomically(path, &file)?;
        Ok(())
    }
}

/// The configuration of the run that a path lies in, or the defaults.
fn run_config(path: &Path) -> anyhow::Result<Config> {
    let file = crate::checkpoint::locate(path, false)?.run.map(|run| run.join("config.toml"));
    match file.filter(|f| f.is_file()) {
        Some(file) => Ok(Config::load(&file)?),
        None => Ok(Config::default()),
    }
}

/// The data named, at the image side of the configuration, or the configuration's own.
fn open_data(named: Option<&str>, config: &Config, run: &Path) -> anyhow::Result<Data> {
    match named {
        Some(source) => Ok(data::open(&config.data.with_source(source))?),
        None => run_data(config, crate::checkpoint::locate(run, false)?.run.as_deref()),
    }
}
