//! Whether a run fits into the memory that there is, told before it begins.

use super::output;
use crate::cli::{BackendName, Dtype, GlobalArgs};
use crate::config::{Config, GeneratorSection};
use crate::model::generator::{GeneratorShape, parameters};
use crate::model::tokenizer::Tokenizer;
use crate::run::memory;
use crate::train::{MemoryPlan, rehearse_tokenizer};
use sar_backend_cuda::{CudaBackend, Device as _, Driver, Dry, Storage, bf16};

/// Fails where this machine could not even hold a generator's weights.
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

/// Fails where a run cannot fit into the memory that there is, which the system would end without a word; warns where
/// it needs more than is free.
pub(crate) fn fits_in_memory(config: &Config, global: &GlobalArgs) -> anyhow::Result<()> {
    affordable(&config.generator)?;
    const LESS: &str = "a smaller train.batch with a larger train.accumulate takes less for the same step, \
                        train.recompute=blocks less for its activations; `sar plan --config` shows what takes what";
    match global.backend {
        BackendName::Cpu => {
            fits(MemoryPlan::of(config, 4, 0).saved_from_here(config).total(), LESS)
        }
        // A device says itself when it is full, and before anything is lost.
        BackendName::Cuda => Ok(()),
    }
}

/// As [`fits_in_memory`], of a tokenizer's run on images of `side` pixels.
pub(crate) fn tokenizer_fits(
    config: &Config,
    side: usize,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    const LESS: &str =
        "a smaller tokenizer_train.batch, data.image_side or tokenizer.ch takes less";
    match global.backend {
        BackendName::Cpu => fits(tokenizer_training(config, side, global)?, LESS),
        BackendName::Cuda => Ok(()),
    }
}

fn fits(needed: u64, less: &str) -> anyhow::Result<()> {
    let (Some(total), Some(available)) = (memory::total(), memory::available()) else {
        return Ok(());
    };
    let told =
        |room| format!("training takes about {}, and {} {room}", memory::text(needed), holder());
    anyhow::ensure!(
        needed as f64 <= NEARLY * total as f64,
        "{}; {less}",
        told(memory::text(total))
    );
    if needed > available {
        let free = told(format!("{} free of {}", memory::text(available), memory::text(total)));
        output::note(format_args!("warning: {free}; {less}"));
    }
    Ok(())
}

/// Bytes that training a tokenizer on images of `side` pixels takes, by a step of it of which nothing is computed.
///
/// # Errors
/// A tokenizer that there is not, or that is not trained here.
pub(crate) fn tokenizer_training(
    config: &Config,
    side: usize,
    global: &GlobalArgs,
) -> anyhow::Result<u64> {
    /// Bytes of buffers, and of the inside of ops in a step on so many images.
    fn of<S: Storage>(config: &Config, side: usize, images: usize) -> anyhow::Result<[usize; 2]> {
        let tokenizer = Tokenizer::new(&config.tokenizer)?;
        let backend = CudaBackend::<S, Dry>::new(Dry::default())?;
        rehearse_tokenizer(&backend, &tokenizer, &config.tokenizer_train, side, images)?;
        let (peak, scratch) = (backend.device().peak_bytes(), backend.scratch_bytes());
        Ok([peak - scratch, scratch])
    }
    // The processor's ops have no memory of their own: there a step would show nothing.
    let images = match global.backend {
        BackendName::Cpu => 0,
        BackendName::Cuda => config.tokenizer_train.batch.min((PIXELS / side.pow(2).max(1)).max(1)),
    };
    let [buffers, scratch] = match global.dtype() {
        Dtype::F32 => of::<f32>(config, side, images)?,
        Dtype::Bf16 => of::<bf16>(config, side, images)?,
    };
    let parameters = Tokenizer::new(&config.tokenizer)?.layout().len();
    Ok(match global.backend {
        // Weights and moments are copied while a checkpoint is written.
        BackendName::Cpu => (buffers + 3 * 4 * parameters) as u64,
        BackendName::Cuda => (buffers + scratch + Driver::PRODUCT_SPACE) as u64,
    })
}

/// Pixels of a step that is only counted, at most: convolutions take parts of a batch, each as much as the next.
const PIXELS: usize = 1 << 24;

/// How far an estimate may lie over what there is before it is believed: `sar plan` is held to a tenth.
const NEARLY: f64 = 1.1;

/// Whose memory it is.
fn holder() -> &'static str {
    match memory::limit() {
        Some(_) => "this job or container may have",
        None => "this machine has",
    }
}
