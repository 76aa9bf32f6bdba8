//! Records of a tokenizer's quality in the log and in TensorBoard.

use super::TokenizerQuality;
use crate::run::{Log, RunError, TensorBoard};
use serde::Serialize;

/// A record of the log.
#[derive(Serialize)]
struct Record {
    psnr: Vec<f64>,
    ssim: Vec<Option<f64>>,
    grids: Vec<String>,
    scale_codebook_used: Vec<f64>,
    codebook_used: f64,
    perplexity: f64,
}

/// Writes the quality of a step to the log and to TensorBoard.
pub(crate) fn keep_quality(
    log: &mut Log,
    board: &mut TensorBoard,
    step: u64,
    quality: &TokenizerQuality,
) -> Result<(), RunError> {
    let scales = &quality.scales;
    let grids: Vec<String> = scales.iter().map(|s| format!("{}x{}", s.grid.0, s.grid.1)).collect();
    for (grid, scale) in grids.iter().zip(scales) {
        board.scalar(&format!("tokenizer_psnr/{grid}"), step, scale.psnr)?;
        if let Some(ssim) = scale.ssim {
            board.scalar(&format!("tokenizer_ssim/{grid}"), step, ssim)?;
        }
        board.scalar(&format!("tokenizer_codes_used/{grid}"), step, scale.codebook_used)?;
    }
    board.scalar("tokenizer/codebook_used", step, quality.codebook_used)?;
    board.scalar("tokenizer/perplexity", step, quality.perplexity)?;
    let record = Record {
        psnr: scales.iter().map(|s| s.psnr).collect(),
        ssim: scales.iter().map(|s| s.ssim).collect(),
        scale_codebook_used: scales.iter().map(|s| s.codebook_used).collect(),
        grids,
        codebook_used: quality.codebook_used,
        perplexity: quality.perplexity,
    };
    log.record(step, "eval", &record)
}
