//! `sar tokenizer eval`.

use super::{BATCH, Use, check_grids, held_out};
use crate::backend::Compute;
use crate::cli::TokenizerEvalArgs;
use crate::commands::models::open_tokenizer;
use crate::commands::place;
use crate::data::Dataset;
use crate::data::grid::{self, Images};
use crate::data::npz::NpzWriter;
use crate::run::Interrupt;
use crate::train::tokenizer::{MEASURED, Reconstructor};
use crate::trained::TrainedTokenizer;
use anyhow::Context as _;
use sar_math::ScaleSchedule;
use std::path::Path;

pub(super) fn run<B: Compute>(backend: &B, args: &TokenizerEvalArgs) -> anyhow::Result<()> {
    let grid = args.grid.as_deref().map(|path| place::ready_new(path, &["png"], args.force));
    let _place = grid.transpose()?;
    let arrays = [&args.npz, &args.originals].into_iter().flatten();
    let arrays = arrays.map(|path| place::ready_new(path, &["npz"], args.force));
    let _arrays = arrays.collect::<anyhow::Result<Vec<_>>>()?;
    let loaded = open_tokenizer(backend, &args.tokenizer)?;
    let set = if args.all { vec!["data.val_fraction=0".to_owned()] } else { Vec::new() };
    let scheduled = args.schedule.is_some();
    let Use { config, data } =
        Use::open(&args.tokenizer, &loaded.tokenizer, &args.images, &set, scheduled)?;
    let schedule = args.schedule.unwrap_or(config.generator.schedule);
    let all = args.all && data.validation.is_empty();
    let images = if all { &data.train } else { &data.validation };
    anyhow::ensure!(
        !images.is_empty(),
        "no image is held out for validation; --all takes all that --data names"
    );
    check_grids(&loaded, &schedule, images.side())?;
    let mut measured = held_out(backend, &loaded, images, &schedule)?;
    // There is no interrupt to listen to: Ctrl-C ends the program at once, and nothing is lost.
    let quality = measured.quality(&loaded.params, &Interrupt::none())?;
    let quality = quality.context("the evaluation was stopped")?;
    let (count, seen) = (images.len(), images.len().min(MEASURED));
    let of = if seen < count { format!(" of {count}") } else { String::new() };
    let which = if all { "" } else { "held-out " };
    println!("{seen}{of} {which}images of {} px", images.side());
    println!("{:>8}  {:>9}  {:>6}  {:>10}", "grid", "PSNR (dB)", "SSIM", "codes used");
    for scale in &quality.scales {
        let grid = format!("{}x{}", scale.grid.0, scale.grid.1);
        // Images smaller than SSIM's window have no SSIM.
        let ssim = scale.ssim.map_or("–".to_owned(), |ssim| format!("{ssim:.4}"));
        let used = 100.0 * scale.codebook_used;
        println!("{grid:>8}  {:>9.2}  {ssim:>6}  {used:>9.1}%", scale.psnr);
    }
    println!(
        "{}; SSIM from 11 px on",
        match loaded.quantizer.adds_up() {
            true => "what the grids up to each add up to, decoded, beside the images",
            false => "what each grid alone decodes to, beside the images scaled to that size",
        }
    );
    println!("codebook used: {:.1} %", 100.0 * quality.codebook_used);
    println!("perplexity of the codes: {:.1}", quality.perplexity);
    if let Some(path) = &args.grid {
        grid::save_png(path, &measured.picture(&loaded.params)?)?;
        println!("{}", path.display());
    }
    if let Some(path) = &args.npz {
        arrays_of(backend, &loaded, images, &schedule, path, args.originals.as_deref())?;
    }
    Ok(())
}

/// Writes the reconstructions of all images as an array and, if a path is given for them, the images as another.
fn arrays_of<B: Compute>(
    backend: &B,
    of: &TrainedTokenizer<B>,
    images: &Dataset,
    schedule: &ScaleSchedule,
    path: &Path,
    originals: Option<&Path>,
) -> anyhow::Result<()> {
    let side = images.side();
    let create = |path: &Path| NpzWriter::create(path, images.len(), (side, side));
    let mut reconstructed = create(path)?;
    let mut given = originals.map(create).transpose()?;
    let grid = side / of.tokenizer.downsample_factor();
    let through = Reconstructor::new(backend, &of.tokenizer, BATCH, (side, side))?;
    let mut through = through.adding(&of.quantizer, schedule)?;
    for first in (0..images.len()).step_by(BATCH) {
        let batch = images.batch(first, BATCH)?.values_b;
        let back = through.reconstruct(&of.params, &batch, (grid, grid))?;
        reconstructed.write(Images::square(&back, side))?;
        if let Some(given) = &mut given {
            given.write(Images::square(&batch, side))?;
        }
    }
    reconstructed.finish()?;
    println!("{}", path.display());
    if let (Some(given), Some(path)) = (given, originals) {
        given.finish()?;
        println!("{}", path.display());
    }
    Ok(())
}
