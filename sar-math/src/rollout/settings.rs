//! The choices of a run: the training method, and SAR's switches with their presets.

use crate::guidance::Guidance;
use crate::sampling::Filter;
use core::fmt;
use core::str::FromStr;

/// Which scales the student pass trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// All scales but the first, each from the prediction of the scale before it.
    All,
    /// Only the last scale, with the class token as its only context: schedule (1, N).
    Last,
    /// Only one random scale, drawn anew at each step: schedule (1, s).
    Random,
}

/// What the student pass is pulled towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StudentTarget {
    /// The codes that the rollout decoded from the teacher pass.
    TeacherHard,
    /// The softmax of the teacher pass's logits, detached.
    TeacherSoft,
    /// The image's codes.
    GroundTruth,
}

/// A training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Teacher forcing: every input comes from the image.
    Teacher,
    /// Self-autoregressive refinement: teacher forcing plus a student pass.
    Sar(Extent),
    /// Student forcing: every input comes from the model's own samples.
    Student,
    /// Hybrid forcing: the first scales' inputs come from the image, the others' from own samples.
    Hybrid {
        /// Number of these first scales, including the very first, whose input is the class token;
        /// 1 is student forcing.
        teacher_scales: usize,
    },
    /// Inputs come alternately from own samples (starting with the second scale's) and from the
    /// image.
    Interleaved,
}

/// How the rollout turns logits into codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decode {
    /// Draws from what this filter leaves of the distribution; `None` takes the largest logit.
    pub draw: Option<Filter>,
    /// Guidance of the teacher pass, which then runs on a doubled batch.
    pub guidance: Guidance,
}

impl Decode {
    /// Takes the largest logit, without guidance.
    pub const ARGMAX: Self = Self { draw: None, guidance: Guidance::Off };
    /// Draws with the filter of both presets and this guidance.
    const fn published(guidance: Guidance) -> Self {
        Self { draw: Some(Filter { top_k: 900, top_p: 0.96 }), guidance }
    }
}

/// SAR's switches, each independent of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SarSettings {
    /// Which scales the student pass trains.
    pub extent: Extent,
    /// What the student pass is pulled towards.
    pub target: StudentTarget,
    /// How the teacher's logits become the student pass's inputs.
    pub decode: Decode,
    /// Weight σ of the contrastive student-forcing loss.
    pub sigma: f64,
}

impl SarSettings {
    /// Preset `paper`: all scales, sampled without guidance. The paper does not state its σ; 0.1 is
    /// what worked in our trial.
    pub const PAPER: Self = Self {
        extent: Extent::All,
        target: StudentTarget::TeacherHard,
        decode: Decode::published(Guidance::Off),
        sigma: 0.1,
    };

    /// Preset `release`, which is what the published code runs: the last scale, sampled with
    /// guidance.
    pub const RELEASE: Self = Self {
        extent: Extent::Last,
        target: StudentTarget::TeacherHard,
        decode: Decode::published(Guidance::Rollout(1.2)),
        sigma: 0.01,
    };

    /// A preset by its name: `paper` or `release`.
    ///
    /// # Errors
    /// [`UnknownName`] for any other name.
    pub fn preset(name: &str) -> Result<Self, UnknownName> {
        match name {
            "paper" => Ok(Self::PAPER),
            "release" => Ok(Self::RELEASE),
            _ => Err(UnknownName { what: "preset", expected: "paper or release" }),
        }
    }
}

/// A name that is not one of those expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownName {
    /// What the name should denote, such as `"rollout extent"`.
    pub what: &'static str,
    /// The names that exist.
    pub expected: &'static str,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: unknown name; expected {}", self.what, self.expected)
    }
}

impl core::error::Error for UnknownName {}

/// The names of [`Extent`], for messages.
const EXTENTS: &str = "all, last or random";
/// The names of [`StudentTarget`].
const TARGETS: &str = "teacher-hard, teacher-soft or ground-truth";
/// The names of [`Method`].
const METHODS: &str = "teacher, sar-all, sar-last, sar-random, student, hybrid:N or interleaved";

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Last => "last",
            Self::Random => "random",
        })
    }
}

impl FromStr for Extent {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "all" => Ok(Self::All),
            "last" => Ok(Self::Last),
            "random" => Ok(Self::Random),
            _ => Err(UnknownName { what: "rollout extent", expected: EXTENTS }),
        }
    }
}

impl fmt::Display for StudentTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TeacherHard => "teacher-hard",
            Self::TeacherSoft => "teacher-soft",
            Self::GroundTruth => "ground-truth",
        })
    }
}

impl FromStr for StudentTarget {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "teacher-hard" => Ok(Self::TeacherHard),
            "teacher-soft" => Ok(Self::TeacherSoft),
            "ground-truth" => Ok(Self::GroundTruth),
            _ => Err(UnknownName { what: "student target", expected: TARGETS }),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Teacher => f.write_str("teacher"),
            Self::Sar(extent) => write!(f, "sar-{extent}"),
            Self::Student => f.write_str("student"),
            Self::Hybrid { teacher_scales } => write!(f, "hybrid:{teacher_scales}"),
            Self::Interleaved => f.write_str("interleaved"),
        }
    }
}

impl FromStr for Method {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let unknown = UnknownName { what: "way of training", expected: METHODS };
        if let Some(extent) = name.strip_prefix("sar-") {
            return extent.parse().map(Self::Sar).map_err(|_| unknown);
        }
        if let Some(count) = name.strip_prefix("hybrid:") {
            let teacher_scales = count.parse().map_err(|_| unknown)?;
            return Ok(Self::Hybrid { teacher_scales });
        }
        match name {
            "teacher" => Ok(Self::Teacher),
            "student" => Ok(Self::Student),
            "interleaved" => Ok(Self::Interleaved),
            _ => Err(unknown),
        }
    }
}
