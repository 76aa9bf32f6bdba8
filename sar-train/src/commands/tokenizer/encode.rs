//! `sar tokenizer encode`: the latents of a data set, to train on, or its tokens.

mod latents;
mod tokens;

use super::Use;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, TokenizerEncodeArgs};
use crate::commands::models::open_tokenizer;
use crate::commands::place;
use crate::model::tokenizer::EncoderMemory;
use crate::run::{Interrupt, Progress};
use crate::trained::TrainedTokenizer;
use sar_math::backend::LatentDims;

/// Pixels encoded at a time: 64 images of 128 px or 16 of 256 px, so that a request to stop waits only seconds.
const PIXELS: usize = 1 << 20;
/// Largest number of images encoded at a time.
const BATCH: usize = 64;

pub(super) fn run<B: Compute>(
    backend: &B,
    args: &TokenizerEncodeArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let _place = place::ready_new(&args.out, &["safetensors"], args.force)?;
    let loaded = open_tokenizer(backend, &args.tokenizer)?;
    let scheduled = args.schedule.is_some() || args.latents;
    let of = Use::open(&args.tokenizer, &loaded.tokenizer, &args.images, &args.set, scheduled)?;
    let interrupt = Interrupt::listen()?;
    let encoder = Encoder::new(backend, &loaded, of.data.train.side(), interrupt)?;
    match args.latents {
        true => latents::write(encoder, args, &of, global.quiet)?,
        false => tokens::write(encoder, args, &of, global.quiet)?,
    }
    let replaced = of.data.train.skipped().len() + of.data.validation.skipped().len();
    if replaced > 0 {
        eprintln!(
            "warning: {replaced} images could not be read once they were needed; the next image stands in \
             their place"
        );
    }
    println!("{}", args.out.display());
    Ok(())
}

/// Encodes images to latents, a batch at a time.
struct Encoder<'a, B: Compute> {
    backend: &'a B,
    tokenizer: &'a TrainedTokenizer<B>,
    side: usize,
    /// Number of images at a time.
    batch: usize,
    memory: EncoderMemory<B>,
    latents: B::Activation,
    interrupt: Interrupt,
}

impl<'a, B: Compute> Encoder<'a, B> {
    fn new(
        backend: &'a B,
        tokenizer: &'a TrainedTokenizer<B>,
        side: usize,
        interrupt: Interrupt,
    ) -> Result<Self, B::Error> {
        let batch = (PIXELS / (side * side).max(1)).clamp(1, BATCH);
        let memory = tokenizer.tokenizer.encoder_memory(backend, batch, (side, side))?;
        let [k, h, w] = latent(tokenizer, side);
        let latents = backend.activation(batch * k * h * w)?;
        Ok(Self { backend, tokenizer, side, batch, memory, latents, interrupt })
    }

    /// Encodes at most a batch of images, and leaves their latents in `self.latents`.
    fn encode(&mut self, images_b3hw: &[f32]) -> anyhow::Result<LatentDims> {
        if self.interrupt.is_asked() {
            return Err(EncodingInterrupted.into());
        }
        let (model, params) = (&self.tokenizer.tokenizer, &self.tokenizer.params);
        let (memory, size) = (&mut self.memory, (self.side, self.side));
        model.encode(self.backend, params, memory, images_b3hw, size, &mut self.latents)?;
        let batch = images_b3hw.len() / (3 * self.side * self.side);
        let [channels, height, width] = latent(self.tokenizer, self.side);
        Ok(LatentDims { batch, channels, height, width })
    }
}

/// Channels, height and width of the latent of an image.
fn latent<B: Compute>(tokenizer: &TrainedTokenizer<B>, side: usize) -> [usize; 3] {
    let grid = tokenizer.tokenizer.latent_side(side);
    [tokenizer.tokenizer.config().latent_channels, grid, grid]
}

/// Encoding that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; nothing was written")]
pub(in crate::commands) struct EncodingInterrupted;

/// Returns the progress of encoding `images` images.
fn progress(images: usize, quiet: bool) -> Progress {
    Progress::new("encoding", images as u64, 0, quiet)
}
