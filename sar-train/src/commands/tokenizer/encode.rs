//! `sar tokenizer encode`: the latents of a data set, to train on, or its tokens.

mod latents;
mod tokens;

use super::Use;
use crate::backend::Compute;
use crate::cli::{GlobalArgs, TokenizerEncodeArgs};
use crate::commands::models::open_tokenizer;
use crate::commands::place;
use crate::data::{Batch, Data, DataError, Earlier, View};
use crate::model::tokenizer::EncoderMemory;
use crate::run::{Interrupt, Progress};
use crate::trained::TrainedTokenizer;
use sar_math::backend::MapDims;
use std::ops::Range;
use std::path::Path;

/// Pixels encoded at a time: 64 images of 128 px or 16 of 256 px, so that a request to stop waits only seconds.
const PIXELS: usize = 1 << 20;
/// Largest number of images encoded at a time.
const BATCH: usize = 64;

pub(super) fn run<B: Compute>(
    backend: &B,
    args: &TokenizerEncodeArgs,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    // A complete file is looked at again before it is gone on with.
    let _place = place::ready_new(&args.out, &["safetensors"], args.force || args.resume)?;
    let loaded = open_tokenizer(backend, &args.tokenizer)?;
    let scheduled = args.schedule.is_some() || args.latents;
    let of = Use::open(&args.tokenizer, &loaded.tokenizer, &args.images, &args.set, scheduled)?;
    let interrupt = Interrupt::listen()?;
    let encoder = Encoder::new(backend, &loaded, of.data.train.side(), interrupt)?;
    match args.latents {
        true => latents::write(encoder, args, &of, global)?,
        false => tokens::write(encoder, args, &of, global)?,
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
        let latents = backend.activation(tokenizer.tokenizer.latents(batch, side).len())?;
        Ok(Self { backend, tokenizer, side, batch, memory, latents, interrupt })
    }

    /// Encodes at most a batch of images, and leaves their latents in `self.latents`.
    fn encode(&mut self, images_b3hw: &[f32]) -> anyhow::Result<MapDims> {
        if self.interrupt.is_asked() {
            return Err(EncodingInterrupted.into());
        }
        let (model, params) = (&self.tokenizer.tokenizer, &self.tokenizer.params);
        let (memory, size) = (&mut self.memory, (self.side, self.side));
        model.encode(self.backend, params, memory, images_b3hw, size, &mut self.latents)?;
        Ok(model.latents(images_b3hw.len() / (3 * self.side * self.side), self.side))
    }
}

/// Encoding that the user stopped; the exit code is 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(in crate::commands) struct EncodingInterrupted;

/// What the flags say of the rows that an interrupted call has left.
fn earlier(args: &TokenizerEncodeArgs) -> Earlier {
    Earlier { go_on: args.resume, replace: args.force }
}

/// Which images, and how they are cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Training images, as this epoch of a run sees them.
    Epoch(u64),
    /// Training images, in the middle.
    Training,
    /// Held-out images, in the middle.
    HeldOut,
}

/// Images that are encoded at a time, by their numbers in their set.
type Piece = (Cut, Range<usize>);

/// The images to be encoded: cuts of all training images, then the held-out ones.
struct Work<'a> {
    data: &'a Data,
    cuts: Vec<Cut>,
    /// Decides how an epoch cuts its images.
    seed: u64,
    /// The epoch that was seen last.
    view: Option<(u64, View<'a>)>,
}

impl<'a> Work<'a> {
    fn new(data: &'a Data, training: impl Iterator<Item = Cut>, seed: u64) -> Self {
        Self { data, cuts: training.chain([Cut::HeldOut]).collect(), seed, view: None }
    }

    /// Number of images of a cut.
    fn len(&self, cut: Cut) -> usize {
        if cut == Cut::HeldOut { self.data.validation.len() } else { self.data.train.len() }
    }

    /// Returns the pieces whose rows are not all among the first `done`, and the number of rows before them.
    fn missing(&self, batch: usize, done: usize) -> (usize, Vec<Piece>) {
        let (mut before, mut pieces) = (0, Vec::new());
        for &cut in &self.cuts {
            let len = self.len(cut);
            for first in (0..len).step_by(batch) {
                let piece = first..len.min(first + batch);
                if pieces.is_empty() && before + piece.len() <= done {
                    before += piece.len();
                } else {
                    pieces.push((cut, piece));
                }
            }
        }
        (before, pieces)
    }

    fn images(&mut self, (cut, images): Piece) -> Result<Batch, DataError> {
        let epoch = match cut {
            Cut::Epoch(epoch) => epoch,
            Cut::Training => return self.data.train.batch(images.start, images.len()),
            Cut::HeldOut => return self.data.validation.batch(images.start, images.len()),
        };
        let known = self.view.take().filter(|(of, _)| *of == epoch);
        let view = || (epoch, View::new(self.data, self.seed, epoch));
        self.view.insert(known.unwrap_or_else(view)).1.batch(images)
    }

    /// Encodes what is missing by `encode`, which returns the number of rows that there are then. `done` are there, and
    /// `what` is what rows are.
    fn carry_out(
        &mut self,
        (done, missing): (usize, Vec<Piece>),
        (what, quiet): (&str, bool),
        mut encode: impl FnMut(&Batch) -> anyhow::Result<usize>,
    ) -> anyhow::Result<()> {
        let total: usize = self.cuts.iter().map(|&cut| self.len(cut)).sum();
        let mut progress = Progress::new("encoding", total as u64, done as u64, quiet);
        for piece in missing {
            progress.update(encode(&self.images(piece)?)? as u64, "");
        }
        progress.finish(&format!("{total} {what}"));
        Ok(())
    }
}

/// Says what an encoding that fails has kept.
fn kept(
    error: anyhow::Error,
    rows: usize,
    of: &str,
    partial: &Path,
    args: &TokenizerEncodeArgs,
) -> anyhow::Error {
    // What the call was to replace is still there.
    let how = if args.force { "--resume --force" } else { "--resume" };
    match rows {
        0 => error.context("nothing was written"),
        _ => error.context(format!(
            "{rows} {of} are kept in {}; go on after them with {how}",
            partial.display()
        )),
    }
}
