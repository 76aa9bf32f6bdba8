//! The latents that a run trains on in place of its images.

use crate::backend::Compute;
use crate::config::Config;
use crate::data::{Data, Latents, Origin, View, spread};
use crate::hash::sha256_of;
use crate::run::{Recorded, RunFolder};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;

/// Number of images that are encoded again to check that the latents are theirs.
const LOOKED_AT: usize = 4;
/// Largest distance of such a latent from the one in the file, relative to its norm: bf16 and 16
/// bits in the file move it by a hundredth, another image by half of it or more.
const SAME_IMAGE: f64 = 0.1;
/// Advice on naming another file, or doing without one.
const HOW: &str = "the run trains on latents (train.latents): name others with --latents FILE (with \
                   --resume by --set train.latents=FILE), or train on the images with --set train.latents=";

/// What a run without latents trains on.
const IMAGES: &str = "the images";

/// Returns the origin of latents that this tokenizer makes of these images.
pub(super) fn origin<B: Compute>(
    tokenizer: &TrainedTokenizer<B>,
    data: &Data,
    seed: u64,
    computed: String,
) -> Origin {
    Origin {
        tokenizer: sha256_of(&tokenizer.weights),
        images: data.fingerprint(),
        augment: data.augment.clone(),
        seed,
        computed,
    }
}

/// Opens the latents that a run trains on, if it does.
///
/// # Errors
/// The file does not exist, or is of something else.
pub(super) fn of_run<B: Compute>(
    backend: &B,
    config: &Config,
    data: &Data,
    tokenizer: &TrainedTokenizer<B>,
) -> anyhow::Result<Option<Latents>> {
    let Some(path) = &config.train.latents else { return Ok(None) };
    let latents = Latents::open(path).context(HOW)?;
    // By which backend they were made makes no difference to a run.
    let run = origin(tokenizer, data, config.train.seed, String::new());
    let grid = tokenizer.tokenizer.latent_side(data.train.side());
    let latent = [tokenizer.tokenizer.config().latent_channels, grid, grid];
    latents.check(&run, data, latent).context(HOW)?;
    look(backend, data, tokenizer, &latents).context(HOW)?;
    Ok(Some(latents))
}

/// Encodes some training images again, because names alone do not say what the images show.
fn look<B: Compute>(
    backend: &B,
    data: &Data,
    tokenizer: &TrainedTokenizer<B>,
    latents: &Latents,
) -> anyhow::Result<()> {
    let (sizes, side) = (latents.sizes(), data.train.side());
    let chosen = spread(sizes.train, LOOKED_AT);
    let count = chosen.len();
    if count == 0 {
        return Ok(());
    }
    let images = View::new(data, latents.origin().seed, 0).select(&chosen)?.values_b;
    let (model, size) = (&tokenizer.tokenizer, (side, side));
    let mut memory = model.encoder_memory(backend, count, size)?;
    let mut on_device = backend.activation(count * sizes.values())?;
    model.encode(backend, &tokenizer.params, &mut memory, &images, size, &mut on_device)?;
    let mut found = vec![0.0; count * sizes.values()];
    backend.download(&on_device, 0, &mut found)?;
    for (&index, found) in chosen.iter().zip(found.chunks(sizes.values())) {
        let kept = latents.training(index, 0)?;
        let pairs = || kept.iter().zip(found).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let norm: f64 = pairs().map(|(_, b)| b * b).sum();
        let apart: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
        // Written so that a NaN counts as not near.
        let near = apart.sqrt() <= SAME_IMAGE * norm.sqrt();
        if !near {
            let reason = format!(
                "its latent of {} is not what the tokenizer makes of that image now",
                data.train.path(index)?.display()
            );
            return Err(latents.unfit(reason).into());
        }
    }
    Ok(())
}

/// Warns if a run goes on with other latents than it began with, or with images in their place; notes where they were cut
/// by another seed than the run's.
pub(super) fn compare(
    folder: &RunFolder,
    latents: Option<&Latents>,
    seed: u64,
    goes_on: bool,
) -> anyhow::Result<()> {
    if let Some(made) = latents.map(|latents| latents.origin().seed).filter(|made| *made != seed) {
        eprintln!(
            "note: the latents were cut by seed {made}, and the run's is {seed}: it is not bit for bit the run \
             on images"
        );
    }
    if goes_on {
        // A run without this record began when there was nothing else to train on.
        folder.other(Recorded::Source, IMAGES)?;
    }
    let now = latents.map_or_else(|| IMAGES.to_owned(), Latents::describe);
    if let Some(before) = folder.other(Recorded::Source, &now)? {
        eprintln!(
            "warning: the run began on {before}, and now it has {now}: it may not go on as it would have"
        );
    }
    Ok(())
}
