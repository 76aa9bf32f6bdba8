//! The sweep of `sar eval` over filters and guidance values.

use super::Measured;
use crate::backend::Compute;
use crate::config::SampleConfig;
use crate::eval::{AnyError, EvalReport, Evaluator, Generate, SweepPoint};
use crate::run::{Interrupt, Progress};
use crate::sample::Painter;
use sar_math::backend::Filter;

/// Samples and measures by every filter and at every guidance value, in ascending order, until the user asks
/// to stop; what `begun` has is not measured again. `point` sees the report after each.
pub(super) fn sweep<B: Compute>(
    backend: &B,
    of: &Measured<B>,
    params: &B::Params,
    (evaluator, begun): (&Evaluator<'_, B>, &EvalReport),
    interrupt: &Interrupt,
    quiet: bool,
    mut point: impl FnMut(&EvalReport),
) -> anyhow::Result<EvalReport> {
    let (model, decoder) = (&of.generator.generator, of.tokenizer.decoder());
    let (batch, mut guidances) = (of.config.sample.batch, of.config.eval.guidance.clone());
    guidances.sort_by(f64::total_cmp);
    let pairs: Vec<_> =
        of.filters.iter().flat_map(|f| guidances.iter().map(move |g| (*f, *g))).collect();
    let missing = pairs.iter().filter(|(f, g)| begun.point(*f, *g).is_none()).count();
    let total = missing as u64 * of.config.eval.seeds;
    let mut sampling = Sampling {
        painter: Painter::new(backend, model, decoder, &of.schedule, batch, of.guided())?,
        params,
        config: of.config.sample.clone(),
        interrupt,
        stopped: false,
        progress: Progress::new("sampling", total, 0, quiet),
        done: 0,
    };
    let mut points = Vec::with_capacity(pairs.len());
    for (filter, guidance) in pairs {
        let Filter { top_k, top_p } = filter;
        // Of a single filter the settings speak.
        let several = of.filters.len() > 1;
        let (named_k, named_p) = (several.then_some(top_k), several.then_some(top_p));
        let mut add = |measured| {
            points.push(SweepPoint { top_k: named_k, top_p: named_p, ..measured });
        };
        if let Some(known) = begun.point(filter, guidance) {
            add(known.clone());
            continue;
        }
        (sampling.config.top_k, sampling.config.top_p) = (top_k, top_p);
        match evaluator.measure(&mut sampling, guidance) {
            Ok(measured) => {
                add(measured);
                point(&evaluator.report(points.clone()));
            }
            Err(_) if sampling.stopped => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(evaluator.report(points))
}

/// Samples the images that are measured.
struct Sampling<'s, B: Compute> {
    painter: Painter<'s, B>,
    params: &'s B::Params,
    /// The sampler's settings, with the filter of the point that is measured.
    config: SampleConfig,
    interrupt: &'s Interrupt,
    /// Whether the user has stopped it.
    stopped: bool,
    progress: Progress,
    /// Sets of images that are done.
    done: u64,
}

/// The user has stopped the sweep while images were sampled.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Stopped;

impl<B: Compute> Generate for Sampling<'_, B> {
    fn generate(&mut self, labels: &[u32], seed: u64, guidance: f64) -> Result<Vec<f32>, AnyError> {
        let settings = SampleConfig { guidance, ..self.config.clone() }.settings(seed);
        let batch = self.config.batch;
        let mut images = Vec::new();
        for (n, labels) in labels.chunks(batch).enumerate() {
            if self.interrupt.is_asked() {
                self.stopped = true;
                return Err(Stopped.into());
            }
            let first = (n * batch) as u64;
            images.extend(self.painter.paint(self.params, labels, first, &settings, 0)?.images);
        }
        self.done += 1;
        self.progress.update(self.done, &format!("guidance {guidance}"));
        Ok(images)
    }
}
