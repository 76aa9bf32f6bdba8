//! Whether a run fits into memory, reported before it begins.

use crate::backend::with_storage;
use crate::cli::{BackendName, GlobalArgs};
use crate::config::{Config, GeneratorSection, SampleConfig, TokenizerTrainConfig};
use crate::model::generator::{GeneratorShape, parameters};
use crate::model::tokenizer::{Tokenizer, TokenizerConfig};
use crate::run::memory;
use crate::train::{MemoryPlan, rehearse_tokenizer};
use sar_backend_cuda::{CudaBackend, Device as _, Driver, Dry, Storage};

/// Fails if this machine could not even hold a generator's weights.
pub(crate) fn affordable(section: &GeneratorSection) -> anyhow::Result<()> {
    let parameters = parameters(&GeneratorShape::from(section));
    let (bytes, room) = (parameters.saturating_mul(4), memory::total().unwrap_or(u64::MAX));
    anyhow::ensure!(
        bytes <= room,
        "a generator of {parameters} parameters takes {} for its weights alone, and {} {}; lower generator.depth \
         or generator.width",
        memory::text(bytes),
        holder(),
        memory::text(room)
    );
    Ok(())
}

/// Fails if a run of `ranks` processes on this machine cannot fit into memory, because the system would end it without a
/// message; warns if it needs more than is free.
pub(crate) fn fits_in_memory(
    config: &Config,
    ranks: usize,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    affordable(&config.generator)?;
    const LESS: &str = "a smaller train.batch with a larger train.accumulate takes less for the same step, \
                        train.recompute=blocks less for its activations; `sar plan --config` shows what takes what";
    match global.backend {
        BackendName::Cpu => {
            let plan = MemoryPlan::of::<f32>(config, 0)?.saved_from_here(config);
            // The others have no optimiser, and keep weights or gradients once more to send them.
            let other = plan.total() - plan.moments - plan.saving + plan.gradients;
            let others = (ranks as u64).saturating_sub(1).saturating_mul(other);
            let less =
                if ranks > 1 { format!("fewer --ranks take less; {LESS}") } else { LESS.into() };
            fits("training", plan.total().saturating_add(others), &less)
        }
        // A device reports itself when it is full, before anything is lost.
        BackendName::Cuda => Ok(()),
    }
}

/// As [`fits_in_memory`], for a tokenizer's run on images of `side` pixels.
pub(crate) fn tokenizer_fits(
    config: &Config,
    side: usize,
    ranks: usize,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    const LESS: &str = "a smaller tokenizer_train.batch with a larger tokenizer_train.accumulate takes less for the same step; so does \
         a smaller data.image_side or tokenizer.ch";
    match global.backend {
        BackendName::Cpu => {
            let one = tokenizer_training(config, side, global)?;
            let parameters = Tokenizer::new(&config.tokenizer)?.layout().len() as u64;
            // The others have no moments, of which rank 0 has copies while it saves, and keep weights or gradients once
            // more to send them.
            let other = one.saturating_sub(4 * 4 * parameters);
            fits(
                "training",
                one.saturating_add((ranks as u64).saturating_sub(1).saturating_mul(other)),
                LESS,
            )
        }
        BackendName::Cuda => Ok(()),
    }
}

/// Fails if drawing images by a generator and its tokenizer, as `sample` says, cannot fit into memory.
pub(crate) fn drawing_fits(
    generator: &GeneratorSection,
    tokenizer: &TokenizerConfig,
    sample: &SampleConfig,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    const LESS: &str =
        "a smaller --batch draws the same images with less, and a shorter --schedule smaller ones";
    match global.backend {
        BackendName::Cpu => {
            let config = Config {
                generator: generator.clone(),
                tokenizer: tokenizer.clone(),
                sample: sample.clone(),
                ..Config::default()
            };
            fits("drawing images", MemoryPlan::of_sampling::<f32>(&config, 0)?, LESS)
        }
        BackendName::Cuda => Ok(()),
    }
}

fn fits(what: &str, needed: u64, less: &str) -> anyhow::Result<()> {
    let (Some(total), Some(available)) = (memory::total(), memory::available()) else {
        return Ok(());
    };
    let told =
        |room| format!("{what} takes about {}, and {} {room}", memory::text(needed), holder());
    anyhow::ensure!(
        needed as f64 <= NEARLY * total as f64,
        "{}; {less}",
        told(memory::text(total))
    );
    if needed > available {
        let free = told(format!("{} free of {}", memory::text(available), memory::text(total)));
        eprintln!("warning: {free}; {less}");
    }
    Ok(())
}

/// Returns the bytes that training a tokenizer on images of `side` pixels takes, counted for small
/// batches: each further image takes as much again.
///
/// # Errors
/// The tokenizer's configuration is invalid, it is not trained here, or its factor does not divide the side.
pub(crate) fn tokenizer_training(
    config: &Config,
    side: usize,
    global: &GlobalArgs,
) -> anyhow::Result<u64> {
    let held = |batch| with_storage!(global, |S| counted::<S>(config, side, batch, 0));
    let ([one, _], [two, _]) = (held(1)?, held(2)?);
    let others = config.tokenizer_train.batch.saturating_sub(1) as u64;
    let buffers = one.saturating_add((two - one).saturating_mul(others));
    let parameters = Tokenizer::new(&config.tokenizer)?.layout().len() as u64;
    Ok(match global.backend {
        // Weights and moments are copied while a checkpoint is written.
        BackendName::Cpu => buffers.saturating_add(3 * 4 * parameters),
        BackendName::Cuda => {
            // Convolutions process a batch in parts, each as large as the next: a step on some
            // images shows the memory.
            let images = config.tokenizer_train.batch.min((PIXELS / side.pow(2).max(1)).max(1));
            let counted = with_storage!(global, |S| counted::<S>(config, side, images, images));
            let [_, scratch] = counted?;
            buffers.saturating_add(scratch + Driver::PRODUCT_SPACE as u64)
        }
    })
}

/// Returns the bytes of a tokenizer's buffers in training, and of the scratch memory of ops in a
/// step on `images` images.
fn counted<S: Storage>(
    config: &Config,
    side: usize,
    batch: usize,
    images: usize,
) -> anyhow::Result<[u64; 2]> {
    let tokenizer = Tokenizer::new(&config.tokenizer)?;
    // What ops need in a step is the same in each of its micro-batches.
    let accumulate = if images == 0 { config.tokenizer_train.accumulate } else { 1 };
    let settings = TokenizerTrainConfig { batch, accumulate, ..config.tokenizer_train.clone() };
    let backend = CudaBackend::<S, Dry>::new(Dry::default())?;
    rehearse_tokenizer(&backend, &tokenizer, &settings, side, images)?;
    let (peak, scratch) = (backend.device().peak_bytes(), backend.scratch_bytes());
    Ok([peak - scratch, scratch].map(|bytes| bytes as u64))
}

/// Largest number of pixels in a step that is only counted.
const PIXELS: usize = 1 << 24;

/// Factor by which an estimate must exceed the memory to be believed: `sar plan` is held to a tenth.
const NEARLY: f64 = 1.1;

/// Says whose memory it is.
fn holder() -> &'static str {
    match memory::limit() {
        Some(_) => "this job or container may have",
        None => "this machine has",
    }
}
