//! `sar tokenizer eval`.

use super::{Use, compared, measure};
use crate::backend::Compute;
use crate::cli::TokenizerEvalArgs;
use crate::commands::models::LoadedTokenizer;
use crate::commands::output;
use crate::data::grid;

pub(super) fn run<B: Compute>(backend: &B, args: &TokenizerEvalArgs) -> anyhow::Result<()> {
    let _place = args.grid.as_deref().map(|path| output::ready_as(path, &["png"])).transpose()?;
    let loaded = LoadedTokenizer::open(backend, &args.tokenizer)?;
    let (tokenizer, params) = (&loaded.tokenizer, &loaded.params);
    let Use { config, data } = Use::open(&args.tokenizer, tokenizer, &args.images, &[])?;
    let images = &data.validation;
    anyhow::ensure!(
        !images.is_empty(),
        "no image is held out for validation; raise data.val_fraction"
    );
    let quality = measure(backend, tokenizer, params, images, &config)?;
    println!("{} held-out images of {} px", images.len().min(super::EVALUATED), images.side());
    println!("{:>8}  {:>9}  {:>6}  {:>10}", "grid", "PSNR (dB)", "SSIM", "codes used");
    for scale in &quality.scales {
        let grid = format!("{}x{}", scale.grid.0, scale.grid.1);
        // Images smaller than its window have none.
        let ssim = scale.ssim.map_or("–".to_owned(), |ssim| format!("{ssim:.4}"));
        let used = 100.0 * scale.codebook_used;
        println!("{grid:>8}  {:>9.2}  {ssim:>6}  {used:>9.1}%", scale.psnr);
    }
    println!(
        "what each grid alone decodes to, beside the images scaled to that size; SSIM from 11 px on"
    );
    println!("codebook used: {:.1} %", 100.0 * quality.codebook_used);
    println!("perplexity of the codes: {:.1}", quality.perplexity);
    if let Some(path) = &args.grid {
        grid::save_png(path, &compared(backend, tokenizer, params, images)?)?;
        println!("{}", path.display());
    }
    Ok(())
}
