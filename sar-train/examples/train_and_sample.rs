//! The whole chain from a program of one's own: a tokenizer, a generator by teacher forcing, samples.
//!
//! `cargo run --release -p sar-train --example train_and_sample` takes ten seconds on two cores and
//! writes `samples.png`, `tokenizer.safetensors` and `generator.safetensors`, which `sar sample` takes; more steps
//! make letters of it, and `sar demo` does the same in earnest.

use sar_backend_cpu::CpuBackend;
use sar_train::config::Config;
use sar_train::data::grid::{Images, save_grid};
use sar_train::data::{self, Data, DataConfig};
use sar_train::model::generator::{Generator, GeneratorShape};
use sar_train::model::tokenizer::Tokenizer;
use sar_train::run::Interrupt;
use sar_train::sample::Painter;
use sar_train::train::tokenizer::TokenizerTrainer;
use sar_train::train::{EncodedBatches, Trainer, encode_all};
use sar_train::trained::{TrainedGenerator, TrainedTokenizer};
use std::error::Error;
use std::path::Path;

type Backend = CpuBackend<f32>;

/// Held-out images that the loss is told of.
const HELD_OUT: usize = 200;

/// What is left out has its default; `sar train` writes the same as `config.toml`.
fn configuration() -> Result<Config, Box<dyn Error>> {
    let mut config = Config { data: DataConfig::glyphs10(), ..Config::default() };
    let tokenizer = &mut config.tokenizer_train;
    (tokenizer.steps, tokenizer.batch, tokenizer.warmup) = (100, 16, 10);
    let generator = &mut config.generator;
    (generator.depth, generator.width, generator.heads) = (2, 64, 4);
    let train = &mut config.train;
    (train.steps, train.batch, train.lr, train.warmup) = (150, 32, Some(2e-3), 10);
    config.validate()?;
    Ok(config)
}

/// Images to codes and back.
fn train_tokenizer(
    backend: &Backend,
    config: &Config,
    data: &Data,
) -> Result<TrainedTokenizer<Backend>, Box<dyn Error>> {
    let (settings, side) = (&config.tokenizer_train, data.train.side());
    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    let mut trainer = TokenizerTrainer::new(backend, &tokenizer, settings, (side, side))?;
    let mut loader = data.loader(settings.batch, settings.seed, 0)?;
    for step in 1..=settings.steps {
        let losses = trainer.step(&mut || Ok(loader.next_batch()?.values_b))?;
        if step % 50 == 0 {
            let (error, (rows, columns)) = (losses.reconstruction, losses.grid);
            println!("tokenizer, step {step}: squared error {error:.3} at {rows}×{columns}");
        }
    }
    let weights = trainer.weights()?;
    drop(trainer);
    Ok(TrainedTokenizer::new(backend, tokenizer, weights, settings.steps)?)
}

/// The weights of a model of the tokenizer's codes, after the last step.
fn train_generator(
    backend: &Backend,
    config: &Config,
    data: &Data,
    codes: &TrainedTokenizer<Backend>,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
    let (batch, seed) = (config.train.batch, config.train.seed);
    let side = data.train.side();
    let latent = codes.tokenizer.latent_side(side);
    let (start, size) = (generator.initial(seed), (latent, latent));
    let mut trainer = Trainer::new(backend, generator, config, &start, &codes.quantizer, size)?;
    let loader = data.loader(batch, seed, 0)?;
    let (tokenizer, params) = (&codes.tokenizer, &codes.params);
    let mut batches = EncodedBatches::new(backend, loader, tokenizer, params, batch, side)?;
    let (images, stop) = (&data.validation, Interrupt::none());
    let held_out = encode_all(backend, tokenizer, params, images, HELD_OUT, &stop)?;
    for step in 1..=config.train.steps {
        trainer.step(&mut batches)?;
        if step % 50 == 0 {
            let held_out = trainer.held_out(&held_out)?.heldout_loss;
            println!("generator, step {step}: held-out loss {held_out:.3} nats per token");
        }
    }
    Ok(trainer.export()?.weights)
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = configuration()?;
    let backend = Backend::new();
    let data = data::open(&config.data)?;
    println!("{}", data.summary);

    let tokenizer = train_tokenizer(&backend, &config, &data)?;
    tokenizer.save(Path::new("tokenizer.safetensors"))?;
    let weights = train_generator(&backend, &config, &data, &tokenizer)?;
    let (file, section, steps) = ("generator.safetensors", &config.generator, config.train.steps);
    let trained =
        TrainedGenerator::keep(Path::new(file), section, weights, steps, Some(data.classes))?;

    // Of a program that samples, this is the whole: `TrainedGenerator::open(path, false)` has what `keep` returned.
    let params = trained.params(&backend)?;
    let (model, schedule) = (&trained.generator, trained.section.schedule);
    let labels: Vec<u32> = (0..trained.section.classes as u32).collect();
    let decoder = tokenizer.decoder();
    let mut painter = Painter::new(&backend, model, decoder, &schedule, labels.len(), true)?;
    let settings = config.sample.settings(config.train.seed);
    let painted = painter.paint(&params, &labels, 0, &settings, 0)?;
    let (height, width) = painter.size(schedule.len() - 1);
    let images = Images { images_b3hw: &painted.images, height, width };
    save_grid(Path::new("samples.png"), images, labels.len())?;
    println!("samples.png");
    Ok(())
}
