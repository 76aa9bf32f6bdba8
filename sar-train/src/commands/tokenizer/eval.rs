//! `sar tokenizer eval`.

use super::{Use, check_grids, compared, measure};
use crate::backend::Compute;
use crate::cli::TokenizerEvalArgs;
use crate::commands::models::open_tokenizer;
use crate::commands::output;
use crate::data::grid;

pub(super) fn run<B: Compute>(backend: &B, args: &TokenizerEvalArgs) -> anyhow::Result<()> {
    let _place = args.grid.as_deref().map(|path| output::ready_as(path, &["png"])).transpose()?;
    let loaded = open_tokenizer(backend, &args.tokenizer)?;
    let Use { config, data } =
        Use::open(&args.tokenizer, &loaded.tokenizer, &args.images, &[], args.schedule.is_some())?;
    let schedule = args.schedule.unwrap_or(config.generator.schedule);
    let images = &data.validation;
    anyhow::ensure!(
        !images.is_empty(),
        "no image is held out for validation; raise data.val_fraction"
    );
    check_grids(&loaded, &schedule, images.side())?;
    let quality = measure(backend, &loaded, images, &schedule)?;
    let (all, measured) = (images.len(), images.len().min(super::EVALUATED));
    let of = if measured < all { format!(" of {all}") } else { String::new() };
    println!("{measured}{of} held-out images of {} px", images.side());
    println!("{:>8}  {:>9}  {:>6}  {:>10}", "grid", "PSNR (dB)", "SSIM", "codes used");
    for scale in &quality.scales {
        let grid = format!("{}x{}", scale.grid.0, scale.grid.1);
        // Images smaller than its window have none.
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
        grid::save_png(path, &compared(backend, &loaded, images, &schedule)?)?;
        println!("{}", path.display());
    }
    Ok(())
}
