//! Latents that a generator is trained on in place of images.

use super::{Cut, Encoder, Use, Work, earlier, kept};
use crate::backend::Compute;
use crate::cli::{GlobalArgs, TokenizerEncodeArgs};
use crate::commands::latents;
use crate::data::{LatentsWriter, Precision, Sizes};
use crate::run::memory;
use sar_math::backend::MapDims;

/// Writes some views of every training image, then the held-out images.
pub(super) fn write<B: Compute>(
    mut encoder: Encoder<'_, B>,
    args: &TokenizerEncodeArgs,
    of: &Use,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let quiet = global.quiet;
    let (data, views) = (&of.data, args.views);
    let seed = args.seed.unwrap_or(of.config.train.seed);
    let MapDims { channels, height, width, .. } =
        encoder.tokenizer.tokenizer.latents(1, data.train.side());
    let sizes = Sizes {
        views: views as usize,
        train: data.train.len(),
        validation: data.validation.len(),
        latent: [channels, height, width],
    };
    let precision = if args.half { Precision::F16 } else { Precision::F32 };
    let bytes = (sizes.rows() * sizes.values() * precision.bytes()) as u64;
    if !quiet {
        eprintln!("{}", data.summary);
        eprintln!("{views} views of each training image; the file takes {}", memory::text(bytes));
    }
    let origin = latents::origin(encoder.tokenizer, data, seed, global.computed());
    let labels = [data.train.labels(), data.validation.labels()].concat();
    let writer = LatentsWriter::open(&args.out, &origin, sizes, precision, labels, earlier(args))?;
    let Some(mut writer) = writer else { return Ok(()) };
    let work = Work::new(data, (0..views).map(Cut::Epoch), seed);
    match encode(&mut encoder, work, &mut writer, quiet) {
        Ok(()) => Ok(writer.rows.finish()?),
        Err(error) => Err(kept(error, writer.rows.kept(), "latents", writer.rows.partial(), args)),
    }
}

/// Encodes the images whose latents are missing.
fn encode<B: Compute>(
    encoder: &mut Encoder<'_, B>,
    mut work: Work<'_>,
    writer: &mut LatentsWriter,
    quiet: bool,
) -> anyhow::Result<()> {
    let missing = work.missing(encoder.batch, writer.rows.done());
    writer.rows.cut(missing.0)?;
    let mut host = Vec::new();
    work.carry_out(missing, ("latents", quiet), |images| {
        let dims = encoder.encode(&images.values_b)?;
        host.resize(dims.len(), 0.0);
        encoder.backend.download(&encoder.latents, 0, &mut host)?;
        writer.push(&host, &images.labels_b)?;
        Ok(writer.rows.done())
    })
}
