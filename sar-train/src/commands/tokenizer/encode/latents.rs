//! Latents that a generator is trained on in place of images.

use super::{Encoder, Use, latent, progress};
use crate::backend::Compute;
use crate::cli::TokenizerEncodeArgs;
use crate::commands::latents;
use crate::data::{LatentsWriter, Precision, Sizes, View};
use crate::run::memory;

/// Writes some views of every training image, then the held-out images.
pub(super) fn write<B: Compute>(
    mut encoder: Encoder<'_, B>,
    args: &TokenizerEncodeArgs,
    of: &Use,
    quiet: bool,
) -> anyhow::Result<()> {
    let (data, views) = (&of.data, args.views);
    let seed = args.seed.unwrap_or(of.config.train.seed);
    let sizes = Sizes {
        views: views as usize,
        train: data.train.len(),
        validation: data.validation.len(),
        latent: latent(encoder.tokenizer, data.train.side()),
    };
    let precision = if args.half { Precision::F16 } else { Precision::F32 };
    let bytes = (sizes.rows() * sizes.values() * precision.bytes()) as u64;
    if !quiet {
        eprintln!("{}", data.summary);
        eprintln!("{views} views of each training image; the file takes {}", memory::text(bytes));
    }
    let origin = latents::origin(encoder.tokenizer, data, seed);
    let mut writer = LatentsWriter::create(&args.out, &origin, sizes, precision)?;
    let mut progress = progress(sizes.rows(), quiet);
    let (mut host, mut done) = (Vec::new(), 0);
    let mut push = |encoder: &mut Encoder<'_, B>, images: &[f32]| -> anyhow::Result<()> {
        let dims = encoder.encode(images)?;
        host.resize(dims.batch * sizes.values(), 0.0);
        encoder.backend.download(&encoder.latents, 0, &mut host)?;
        writer.push(&host)?;
        done += dims.batch as u64;
        progress.update(done, "");
        Ok(())
    };
    let batch = encoder.batch;
    let mut train_labels = Vec::with_capacity(sizes.train);
    for number in 0..views {
        let view = View::new(data, seed, number);
        train_labels.clear();
        for first in (0..sizes.train).step_by(batch) {
            let images = view.batch(first..sizes.train.min(first + batch))?;
            push(&mut encoder, &images.values_b)?;
            train_labels.extend(images.labels_b);
        }
    }
    let mut validation_labels = Vec::with_capacity(sizes.validation);
    for first in (0..sizes.validation).step_by(batch) {
        let images = data.validation.batch(first, batch)?;
        push(&mut encoder, &images.values_b)?;
        validation_labels.extend(images.labels_b);
    }
    writer.finish(&train_labels, &validation_labels)?;
    progress.finish(&format!("{} latents", sizes.rows()));
    Ok(())
}
