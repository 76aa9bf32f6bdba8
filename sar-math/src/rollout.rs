//! Rollout plans: which scale feeds which, in which pass, supervised by what. Pure index mathematics.
//!
//! A training step is a [`Plan`]: an optional scale-by-scale decode, one parallel pass that every
//! plan has, and an optional second pass. For each of its scales, a pass names the scale of the
//! *whole* schedule that it generates, the source of its input and the target of its output. Scales
//! count from 0. The ways of training have the names by which [`Method`] is parsed.
//!
//! | way of training | decode | first pass | second pass |
//! | --- | --- | --- | --- |
//! | `teacher` | – | inputs from ground truth | – |
//! | `sar-all` (SSR) | from the first pass's logits | as teacher | every scale from the prediction before it |
//! | `sar-last` (SSR) | 〃 | as teacher | schedule (1, N) |
//! | `sar-random` (SSR) | 〃 | as teacher | schedule (1, s) of one random scale |
//! | `student` | scale by scale, on own samples | inputs from own samples | – |
//! | `hybrid:n` | scale by scale, on mixed inputs | first n scales from ground truth, later from own samples | – |
//! | `interleaved` | 〃 | alternately from own samples and ground truth | – |
//!
//! Attention is block-causal, so the logits of scale i depend only on the inputs of scales ..=i.
//! The last three methods therefore decode scale by scale without gradients and then repeat *in one
//! parallel pass* what was decoded. Second passes drop `pos_start` from the class token
//! (`docs/method.md`, pass 2).

mod settings;

pub use settings::{Decode, Extent, Method, SarSettings, StudentTarget, UnknownName};

use crate::philox::{Purpose, Stream};
use crate::{MAX_SCALES, ScaleSchedule};
use core::fmt;

/// Where the input of one scale comes from. The scales named are those of the whole schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// No input: the entry lies past the pass's schedule.
    #[default]
    None,
    /// The class token, the only source that a first scale can have.
    Class,
    /// Ground-truth codes of an earlier scale.
    GroundTruth {
        /// Index of that scale.
        scale: usize,
    },
    /// Codes that the rollout decoded for an earlier scale.
    Rollout {
        /// Index of that scale.
        scale: usize,
    },
}

/// What the output of one scale is pulled towards. Targets never carry a gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// No target: the scale is not supervised, or the entry lies past the pass's schedule.
    #[default]
    None,
    /// The image's codes for one scale.
    GroundTruth {
        /// Index of that scale in the whole schedule.
        scale: usize,
    },
    /// The codes that the rollout decoded for one scale from the first pass's logits.
    Rollout {
        /// Index of that scale in the whole schedule.
        scale: usize,
    },
    /// The softmax of the first pass's logits of one scale.
    TeacherSoft {
        /// Index of that scale in the whole schedule.
        scale: usize,
    },
}

/// One parallel forward (and backward) over a schedule. Entries past `schedule.len()` are `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// The scales of this pass.
    pub schedule: ScaleSchedule,
    /// Index in the whole schedule of each of these scales.
    pub origin: [usize; MAX_SCALES],
    /// Source of each scale's input.
    pub source: [Source; MAX_SCALES],
    /// Target of each scale's output.
    pub target: [Target; MAX_SCALES],
    /// Whether `pos_start` is added to the class token.
    pub with_start: bool,
}

impl Pass {
    /// A pass of teacher forcing: every input and target comes from the image.
    pub fn teacher(schedule: &ScaleSchedule) -> Self {
        Self::new(*schedule, |i| i, |_| false, |scale| Target::GroundTruth { scale }, true)
    }

    /// A pass over `schedule`. Its scale i generates `origin(i)` and reads the preceding scale: the
    /// rollout's codes where `rolled(i)` is true, ground truth otherwise.
    fn new(
        schedule: ScaleSchedule,
        origin: impl Fn(usize) -> usize,
        rolled: impl Fn(usize) -> bool,
        target: impl Fn(usize) -> Target,
        with_start: bool,
    ) -> Self {
        let mut pass = Self {
            schedule,
            origin: [0; MAX_SCALES],
            source: [Source::None; MAX_SCALES],
            target: [Target::None; MAX_SCALES],
            with_start,
        };
        for i in 0..schedule.len() {
            let scale = origin(i);
            pass.origin[i] = scale;
            pass.source[i] = match scale.checked_sub(1) {
                None => Source::Class,
                Some(scale) if rolled(i) => Source::Rollout { scale },
                Some(scale) => Source::GroundTruth { scale },
            };
            pass.target[i] = target(scale);
        }
        pass
    }

    /// Whether the output of scale `scale` of this pass is supervised.
    pub fn supervised(&self, scale: usize) -> bool {
        self.target.get(scale).is_some_and(|t| *t != Target::None)
    }

    /// Number of tokens of the supervised scales in one sample.
    pub fn supervised_tokens(&self) -> usize {
        (0..self.schedule.len())
            .filter(|&i| self.supervised(i))
            .map(|i| self.schedule.range(i).len())
            .sum()
    }

    /// For each scale of the *whole* schedule, whether this pass reads the rollout's codes of that
    /// scale; `merge_ids` takes these from the decoded ids.
    pub fn reads_rollout(&self) -> [bool; MAX_SCALES] {
        let mut reads = [false; MAX_SCALES];
        for source in self.source {
            if let Source::Rollout { scale } = source {
                reads[scale] = true;
            }
        }
        reads
    }
}

/// What must be decoded without gradients, from what, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Nothing.
    None,
    /// All scales at once after the first pass, from its logits.
    Parallel {
        /// Which scales of the whole schedule a source or target needs.
        needed: [bool; MAX_SCALES],
    },
    /// Scales `0..scales` one after the other before the first pass, with a K/V cache; the input of
    /// each is what the first pass will read ([`Pass::source`]).
    ScaleByScale {
        /// Number of scales to decode, from the first on; the last ones are not needed.
        scales: usize,
    },
}

/// One training step: what to decode and which passes to run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The pass that every plan has; its loss is the teacher-forcing loss.
    pub first: Pass,
    /// The student pass of SAR; its loss is the contrastive student-forcing loss.
    pub second: Option<Pass>,
    /// What is decoded, and when: before the first pass or between the two.
    pub rollout: Rollout,
}

/// Reason why no plan can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanError {
    /// The schedule has only one scale, so that there is none to roll out to.
    OneScale,
    /// Hybrid forcing asks for no scale from the teacher, or for more than the schedule has.
    HybridScales {
        /// Number of scales asked for.
        asked: usize,
        /// Number of scales in the schedule.
        scales: usize,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneScale => f.write_str(
                "rollout: the schedule has 1 scale, expected at least 2: there is no earlier scale \
                 whose prediction could be an input",
            ),
            Self::HybridScales { asked, scales } => write!(
                f,
                "hybrid: {asked} scales from the teacher, expected 1 to {scales}, the schedule's \
                 number of scales",
            ),
        }
    }
}

impl core::error::Error for PlanError {}

impl Plan {
    /// The plan of one step.
    ///
    /// `target` is what SAR's student pass is pulled towards; other methods ignore it.
    /// `seed` and `step` choose the transition of [`Extent::Random`].
    ///
    /// ```
    /// use sar_math::ScaleSchedule;
    /// use sar_math::rollout::{Extent, Method, Plan, Source, StudentTarget};
    /// let schedule: ScaleSchedule = "1_2_4".parse()?;
    /// let method = Method::Sar(Extent::Last);
    /// let plan = Plan::new(method, StudentTarget::TeacherHard, &schedule, 7, 0)?;
    /// let student = plan.second.ok_or("a student pass")?;
    /// assert_eq!(student.schedule.to_string(), "1_4");
    /// assert_eq!(student.source[1], Source::Rollout { scale: 1 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError`] if the schedule is too short, or hybrid forcing asks for no scale or too many.
    pub fn new(
        method: Method,
        target: StudentTarget,
        schedule: &ScaleSchedule,
        seed: u64,
        step: u64,
    ) -> Result<Self, PlanError> {
        let scales = schedule.len();
        if scales < 2 && method != Method::Teacher {
            return Err(PlanError::OneScale);
        }
        match method {
            Method::Teacher => {
                Ok(Self { first: Pass::teacher(schedule), second: None, rollout: Rollout::None })
            }
            Method::Sar(extent) => {
                let second = match extent {
                    Extent::All => student_pass(*schedule, |i| i, target),
                    Extent::Last => transition(schedule, scales - 1, target),
                    Extent::Random => {
                        let mut rng = Stream::new(seed, Purpose::Transition, step);
                        transition(schedule, 1 + rng.below(scales - 1), target)
                    }
                };
                Ok(Self::staggered(schedule, second))
            }
            Method::Student => Ok(Self::on_own_samples(schedule, |_| true)),
            Method::Hybrid { teacher_scales: asked } if asked == 0 || asked > scales => {
                Err(PlanError::HybridScales { asked, scales })
            }
            Method::Hybrid { teacher_scales } => {
                Ok(Self::on_own_samples(schedule, |i| i >= teacher_scales))
            }
            Method::Interleaved => Ok(Self::on_own_samples(schedule, |i| i % 2 == 1)),
        }
    }

    /// A teacher pass, a parallel decode of what `second` needs, and `second`.
    fn staggered(schedule: &ScaleSchedule, second: Pass) -> Self {
        let mut needed = second.reads_rollout();
        for target in second.target {
            if let Target::Rollout { scale } = target {
                needed[scale] = true;
            }
        }
        let first = Pass::teacher(schedule);
        Self { first, second: Some(second), rollout: Rollout::Parallel { needed } }
    }

    /// A plan of one pass against ground truth, whose scale i reads own samples where `own(i)` is
    /// true.
    fn on_own_samples(schedule: &ScaleSchedule, own: impl Fn(usize) -> bool) -> Self {
        let truth = |scale| Target::GroundTruth { scale };
        let first = Pass::new(*schedule, |i| i, own, truth, true);
        let reads = first.reads_rollout();
        let rollout = match reads.iter().rposition(|&r| r) {
            Some(last) => Rollout::ScaleByScale { scales: last + 1 },
            None => Rollout::None,
        };
        Self { first, second: None, rollout }
    }
}

/// The student pass over `schedule`, all of whose inputs are the rollout's codes.
fn student_pass(
    schedule: ScaleSchedule,
    origin: impl Fn(usize) -> usize,
    target: StudentTarget,
) -> Pass {
    let target = |scale| match (scale, target) {
        (0, _) => Target::None,
        (_, StudentTarget::TeacherHard) => Target::Rollout { scale },
        (_, StudentTarget::TeacherSoft) => Target::TeacherSoft { scale },
        (_, StudentTarget::GroundTruth) => Target::GroundTruth { scale },
    };
    Pass::new(schedule, origin, |_| true, target, false)
}

/// The student pass over only the class token and scale `to`, which must not be the first.
fn transition(schedule: &ScaleSchedule, to: usize, target: StudentTarget) -> Pass {
    let staggered = schedule.staggered(to).unwrap_or(*schedule);
    student_pass(staggered, |i| if i == 0 { 0 } else { to }, target)
}
