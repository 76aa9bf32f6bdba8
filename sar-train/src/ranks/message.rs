//! What ranks say to each other.

use super::Job;
use crate::train::StepLosses;
use sar_math::MAX_SCALES;
use sar_math::loss::ScaleReport;
use serde::{Deserialize, Serialize};

/// What rank 0 says.
#[derive(Serialize, Deserialize)]
pub(super) enum FromLeader {
    /// The process is taken in. The weights of the tokenizer follow.
    Job(Box<Job>),
    /// The process is not taken in, and why.
    Refused(String),
    /// All ranks are there, and this one has its number.
    Begin {
        /// Its number.
        rank: usize,
    },
    /// A step begins. The weights of the generator follow.
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
    /// It has its share of the step. The gradients follow.
    Gradients {
        /// Losses of its micro-batches.
        losses: Box<Losses>,
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
        let program = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
        Self { program: program.to_owned(), computing: computing.to_owned(), secret }
    }
}

/// [`StepLosses`] as sent. Numbers are sent as their bits, since JSON has no NaN, which a loss may be.
#[derive(Serialize, Deserialize)]
pub(super) struct Losses {
    first: Report,
    second: Option<Report>,
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

impl From<&StepLosses> for Losses {
    fn from(losses: &StepLosses) -> Self {
        Self { first: (&losses.first).into(), second: losses.second.as_ref().map(Into::into) }
    }
}

impl From<&Losses> for StepLosses {
    fn from(losses: &Losses) -> Self {
        Self { first: (&losses.first).into(), second: losses.second.as_ref().map(Into::into) }
    }
}
