//! What ranks say to each other.

use super::Job;
use crate::train::StepLosses;
use crate::train::tokenizer::PartFound;
use sar_math::MAX_SCALES;
use sar_math::loss::ScaleReport;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What rank 0 says.
#[derive(Serialize, Deserialize)]
pub(super) enum FromLeader {
    /// The process is taken in. If a generator is trained, the weights of its tokenizer follow.
    Job(Box<Job>),
    /// The process is not taken in, and why.
    Refused(String),
    /// All ranks are there, and this one has its number.
    Begin {
        /// Its number.
        rank: usize,
    },
    /// A step begins. The weights of what is trained follow.
    Step(u64),
    /// The run has ended here, whatever came of it.
    Done,
}

/// What the other ranks say.
#[derive(Serialize, Deserialize)]
pub(super) enum FromMember {
    /// A process wants to take part.
    Hello(Hello),
    /// It has its images and the memory for a step.
    Ready,
    /// It has its share of the step. The gradients follow, and then further numbers.
    Gradients {
        /// What it found in its micro-batches: see [`Found`].
        found: Value,
        /// How many numbers follow the gradients.
        numbers: usize,
        /// Whether its user has asked it to stop, which stops the run.
        stop: bool,
    },
    /// It can go no further, and why.
    Failed(String),
}

impl FromMember {
    /// The message's name in errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "a greeting",
            Self::Ready => "that it is ready",
            Self::Gradients { .. } => "gradients",
            Self::Failed(_) => "an error",
        }
    }
}

impl FromLeader {
    /// The message's name in errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Job(_) => "a job",
            Self::Refused(_) => "a refusal",
            Self::Begin { .. } => "the beginning of the run",
            Self::Step(_) => "a step",
            Self::Done => "the end of the run",
        }
    }
}

/// What a process that joins says of itself; rank 0 takes in only its like.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Name and version of the program.
    pub(super) program: String,
    /// Backend and number type.
    pub(super) computing: String,
    /// The secret of the meeting, if it has one.
    pub(super) secret: Option<String>,
}

impl Hello {
    pub(super) fn new(computing: &str, secret: Option<String>) -> Self {
        // With the number of what they say to each other, which changes between versions.
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"), " (2)");
        Self { program: program.to_owned(), computing: computing.to_owned(), secret }
    }
}

/// What a rank finds in its share of a step, as sent to rank 0: a short text, and numbers after it.
pub trait Found: Sized {
    /// Takes it apart. Losses become their bits, since JSON has no NaN, which a loss may be.
    fn pack(&self) -> (Value, Vec<f32>);

    /// Puts it together again; `None` if that is not possible.
    fn unpack(text: Value, numbers: &[f32]) -> Option<Self>;
}

impl Found for StepLosses {
    fn pack(&self) -> (Value, Vec<f32>) {
        let of = |report: &ScaleReport| json!(Report::from(report));
        (json!([of(&self.first), self.second.as_ref().map(of)]), Vec::new())
    }

    fn unpack(text: Value, _numbers: &[f32]) -> Option<Self> {
        let (first, second): (Report, Option<Report>) = serde_json::from_value(text).ok()?;
        Some(Self { first: (&first).into(), second: second.as_ref().map(Into::into) })
    }
}

/// A micro-batch of a tokenizer's step, without the codes and latents that follow.
#[derive(Serialize, Deserialize)]
struct Part {
    reconstruction: u64,
    quantization: u64,
    ids: usize,
    latents: usize,
    area: usize,
}

impl Found for Vec<PartFound<f32>> {
    fn pack(&self) -> (Value, Vec<f32>) {
        let of = |part: &PartFound<f32>| Part {
            reconstruction: part.reconstruction.to_bits(),
            quantization: part.quantization.to_bits(),
            ids: part.ids.len(),
            latents: part.latents.len(),
            area: part.area,
        };
        let mut numbers = Vec::new();
        for part in self {
            // Codes are below 2²⁴, and f32 holds them exactly.
            numbers.extend(part.ids.iter().map(|&id| id as f32));
            numbers.extend(&part.latents);
        }
        (json!(self.iter().map(of).collect::<Vec<_>>()), numbers)
    }

    fn unpack(text: Value, mut numbers: &[f32]) -> Option<Self> {
        let parts: Vec<Part> = serde_json::from_value(text).ok()?;
        let mut next = |len| numbers.split_off(..len);
        let unpacked = parts.into_iter().map(|part| {
            // Whole images, and as many channels everywhere.
            let whole = |all: usize, of: usize| of > 0 && all.is_multiple_of(of);
            if !whole(part.ids, part.area) || !whole(part.latents, part.ids) {
                return None;
            }
            Some(PartFound {
                reconstruction: f64::from_bits(part.reconstruction),
                quantization: f64::from_bits(part.quantization),
                ids: next(part.ids)?.iter().map(|&id| id as u32).collect(),
                latents: next(part.latents)?.to_vec(),
                area: part.area,
            })
        });
        unpacked.collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Report {
    tokens: [usize; MAX_SCALES],
    loss: [u64; MAX_SCALES],
    accuracy: [u64; MAX_SCALES],
    total: u64,
}

impl From<&ScaleReport> for Report {
    fn from(report: &ScaleReport) -> Self {
        Self {
            tokens: report.tokens,
            loss: report.loss.map(f64::to_bits),
            accuracy: report.accuracy.map(f64::to_bits),
            total: report.total.to_bits(),
        }
    }
}

impl From<&Report> for ScaleReport {
    fn from(report: &Report) -> Self {
        Self {
            tokens: report.tokens,
            loss: report.loss.map(f64::from_bits),
            accuracy: report.accuracy.map(f64::from_bits),
            total: f64::from_bits(report.total),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_tokenizers_rank_finds_arrives_as_it_is() {
        let part = |ids: &[u32], area: usize| PartFound {
            reconstruction: 0.1 + ids.len() as f64,
            quantization: 1e-300,
            ids: ids.to_vec(),
            latents: (0..2 * ids.len()).map(|i| i as f32 / 3.0).collect(),
            area,
        };
        let found = vec![part(&[0, 5, (1 << 24) - 1, 5], 2), part(&[7], 1)];
        let (text, numbers) = found.pack();
        let text: Value = serde_json::from_str(&text.to_string()).unwrap();
        assert_eq!(Vec::unpack(text.clone(), &numbers).unwrap(), found);
        // Of a loss that is no number, the bits arrive.
        let broken = vec![PartFound { reconstruction: f64::NAN, ..part(&[1], 1) }];
        let (lost, with) = broken.pack();
        let arrived: Vec<PartFound<f32>> = Found::unpack(lost, &with).unwrap();
        assert_eq!(arrived[0].reconstruction.to_bits(), f64::NAN.to_bits());
        // Fewer numbers than announced, and another model's losses, are not taken.
        assert!(Vec::<PartFound<f32>>::unpack(text.clone(), &numbers[1..]).is_none());
        assert!(StepLosses::unpack(text, &[]).is_none());
        // Nor are parts of images.
        for wrong in [part(&[1, 2, 3], 2), part(&[1], 0), part(&[], 1)] {
            let (text, numbers) = vec![wrong].pack();
            assert!(Vec::<PartFound<f32>>::unpack(text, &numbers).is_none());
        }
    }
}
