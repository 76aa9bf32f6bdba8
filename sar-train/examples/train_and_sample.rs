//! The whole chain from a program of one's own: a tokenizer, a generator by teacher forcing, samples.
//!
//! `cargo run --release -p sar-train --example train_and_sample` takes ten seconds on two cores and
//! writes `samples.png`; more steps make letters of it, and `sar demo` does the same in earnest.

use sar_backend_cpu::CpuBackend;
use sar_train::config::Config;
use sar_train::data::grid::{Images, save_grid};
use sar_train::data::{self, Data, DataConfig};
use sar_train::model::generator::{Generator, GeneratorShape};
use sar_train::model::tokenizer::Tokenizer;
use sar_train::sample::{Decoder, Painter};
use sar_train::train::tokenizer::TokenizerTrainer;
use sar_train::train::{EncodedBatches, Trainer, encode_all};
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

/// Images to codes and back. The trainer holds the weights.
fn train_tokenizer<'a>(
    backend: &'a Backend,
    tokenizer: &'a Tokenizer,
    config: &Config,
    data: &Data,
) -> Result<TokenizerTrainer<'a, Backend>, Box<dyn Error>> {
    let (settings, side) = (&config.tokenizer_train, data.train.side());
    let mut trainer = TokenizerTrainer::new(backend, tokenizer, settings, (side, side))?;
    let mut loader = data.loader(settings.batch, settings.seed, 0)?;
    for step in 1..=settings.steps {
        let losses = trainer.step(&loader.next_batch()?.values_b)?;
        if step % 50 == 0 {
            let (error, (rows, columns)) = (losses.reconstruction, losses.grid);
            println!("tokenizer, step {step}: squared error {error:.3} at {rows}×{columns}");
        }
    }
    Ok(trainer)
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = configuration()?;
    let backend = Backend::new();
    let data = data::open(&config.data)?;
    println!("{}", data.summary);

    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    let trained = train_tokenizer(&backend, &tokenizer, &config, &data)?;
    let weights = trained.params();
    let quantizer = tokenizer.quantizer(&backend, weights)?;

    let generator = Generator::new(&GeneratorShape::from(&config.generator))?;
    let (batch, seed) = (config.train.batch, config.train.seed);
    let side = data.train.side();
    let latent = tokenizer.latent_side(side);
    let (start, size) = (generator.initial(seed), (latent, latent));
    let mut trainer = Trainer::new(&backend, generator.clone(), &config, &start, &quantizer, size)?;
    let loader = data.loader(batch, seed, 0)?;
    let mut batches = EncodedBatches::new(&backend, loader, &tokenizer, weights, batch, side)?;
    let held_out = encode_all(&backend, &tokenizer, weights, &data.validation, HELD_OUT)?;
    for step in 1..=config.train.steps {
        trainer.step(&mut batches)?;
        if step % 50 == 0 {
            let held_out = trainer.held_out(&held_out)?.heldout_loss;
            println!("generator, step {step}: held-out loss {held_out:.3} nats per token");
        }
    }

    let decoder = Decoder { tokenizer: &tokenizer, params: weights, quantizer: &quantizer };
    let schedule = config.generator.schedule;
    let labels: Vec<u32> = (0..config.generator.classes as u32).collect();
    let mut painter = Painter::new(&backend, &generator, decoder, &schedule, labels.len(), true)?;
    let settings = config.sample.settings(seed);
    let painted = painter.paint(trainer.params(), &labels, 0, &settings, 0)?;
    let (height, width) = painter.size(schedule.len() - 1);
    let images = Images { images_b3hw: &painted.images, height, width };
    save_grid(Path::new("samples.png"), images, labels.len())?;
    println!("samples.png");
    Ok(())
}
