//! Loss and accuracy of each scale.

use super::Supervision;
use crate::backend::{LossOps, TokenLoss};
use crate::{MAX_SCALES, Real};

/// Loss and accuracy of each scale of the whole schedule, as means over its tokens and samples.
///
/// Scales without supervision have no tokens, loss 0 and accuracy 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleReport {
    /// Number of tokens that were counted, over all samples.
    pub tokens: [usize; MAX_SCALES],
    /// Mean cross-entropy, in nats per token, without σ and the divisor.
    pub loss: [f64; MAX_SCALES],
    /// Fraction of the tokens whose largest logit is the target's largest.
    pub accuracy: [f64; MAX_SCALES],
    /// The contribution to the step's loss L, including weights and divisor; `backward` gave its
    /// gradient.
    pub total: f64,
}

impl Default for ScaleReport {
    fn default() -> Self {
        Self {
            tokens: [0; MAX_SCALES],
            loss: [0.0; MAX_SCALES],
            accuracy: [0.0; MAX_SCALES],
            total: 0.0,
        }
    }
}

impl ScaleReport {
    /// Mean cross-entropy over all counted tokens, nats; 0 where there are none.
    pub fn mean_loss(&self) -> f64 {
        self.mean(&self.loss)
    }

    /// Accuracy over all counted tokens; 0 where there are none.
    pub fn mean_accuracy(&self) -> f64 {
        self.mean(&self.accuracy)
    }

    /// Merges the report of another micro-batch: means are weighted by tokens, totals are added.
    pub fn merge(&mut self, other: &Self) {
        for i in 0..MAX_SCALES {
            let (mine, theirs) = (self.tokens[i] as f64, other.tokens[i] as f64);
            if theirs > 0.0 {
                let all = mine + theirs;
                self.loss[i] = (self.loss[i] * mine + other.loss[i] * theirs) / all;
                self.accuracy[i] = (self.accuracy[i] * mine + other.accuracy[i] * theirs) / all;
                self.tokens[i] += other.tokens[i];
            }
        }
        self.total += other.total;
    }

    fn mean(&self, of: &[f64; MAX_SCALES]) -> f64 {
        let tokens: usize = self.tokens.iter().sum();
        let sum: f64 = of.iter().zip(&self.tokens).map(|(x, &n)| x * n as f64).sum();
        if tokens == 0 { 0.0 } else { sum / tokens as f64 }
    }
}

/// Per-token results on the device, and room for the sums per scale of every micro-batch of a step.
pub(super) struct Recorder<B: LossOps> {
    pub(super) tokens: TokenLoss<B>,
    sums: B::Accum,
}

/// Number of sums of a micro-batch: the losses of all scales, then the hits.
const SUMS: usize = 2 * MAX_SCALES;

impl<B: LossOps> Recorder<B> {
    pub(super) fn new(backend: &B, rows: usize, parts: usize) -> Result<Self, B::Error> {
        let mut sums = backend.accum(SUMS.saturating_mul(parts))?;
        for part in 0..parts {
            // What is reported of a part that was never kept is no number, and no perfect loss.
            backend.upload_accum(&[B::Host::of(f64::NAN); SUMS], &mut sums, SUMS * part)?;
        }
        Ok(Self { tokens: TokenLoss::new(backend, rows)?, sums })
    }

    /// Computes the sums per scale and keeps them on the device as those of micro-batch `part`.
    pub(super) fn keep(
        &mut self,
        backend: &B,
        supervision: &Supervision,
        part: usize,
    ) -> Result<(), B::Error> {
        let (dims, start) = (&supervision.dims, SUMS.saturating_mul(part));
        for (values, at) in [(&self.tokens.loss_bl, 0), (&self.tokens.hits_bl, MAX_SCALES)] {
            let offset = start.saturating_add(at);
            backend.scale_sums(dims.batch, &dims.schedule, values, &mut self.sums, offset)?;
        }
        Ok(())
    }

    /// Returns what was kept for micro-batch `part`, with one download.
    pub(super) fn kept(
        &self,
        backend: &B,
        supervision: &Supervision,
        part: usize,
    ) -> Result<ScaleReport, B::Error> {
        let dims = &supervision.dims;
        let mut sums = [B::Host::default(); SUMS];
        backend.download_accum(&self.sums, SUMS.saturating_mul(part), &mut sums)?;
        let mut report = ScaleReport::default();
        for i in 0..dims.schedule.len() {
            let tokens = dims.batch * dims.schedule.range(i).len();
            if supervision.supervised[i] && tokens > 0 {
                let (loss, hits) = (sums[i].wide(), sums[MAX_SCALES + i].wide());
                let scale = supervision.origin[i];
                report.tokens[scale] = tokens;
                report.loss[scale] = loss / tokens as f64;
                report.accuracy[scale] = hits / tokens as f64;
                report.total += dims.weights[i] * loss;
            }
        }
        Ok(report)
    }
}
