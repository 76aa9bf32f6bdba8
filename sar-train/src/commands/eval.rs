//! `sar eval`: measures a generator, prints the numbers, keeps them as JSON.

use crate::eval::{EvalReport, Evaluator, Generate};
use crate::model::classifier::ClassifierOps;
use crate::report::{summary, text};
use anyhow::Context as _;
use std::path::Path;

/// Name of the numbers in the generator's run folder, where `sar report` looks for them.
pub const EVAL_FILE: &str = "eval.json";

/// Sweeps guidance, prints the result and writes it to `json`.
///
/// # Errors
/// The generator's, or a file that cannot be written.
pub fn sweep<B: ClassifierOps>(
    evaluator: &Evaluator<'_, B>,
    generator: &mut impl Generate,
    guidances: &[f64],
    json: Option<&Path>,
    quiet: bool,
) -> anyhow::Result<EvalReport> {
    let report = evaluator.sweep(generator, guidances)?;
    if !quiet {
        print!("{}", text::evaluation(&report));
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report)?;
        summary::write_whole(path, text.as_bytes())
            .with_context(|| format!("{}", path.display()))?;
    }
    Ok(report)
}
