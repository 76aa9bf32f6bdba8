//! What a training step computes, counted from its configuration.

use super::settings::StepSettings;
use crate::config::{Config, GeneratorSection};
use sar_math::ScaleSchedule;
use sar_math::guidance::Guidance;
use sar_math::rollout::{Extent, Method, Pass, Plan, PlanError, Rollout, StudentTarget};
use serde::Serialize;

/// What a step of a generator computes: the mean where steps differ. FLOPs count a multiply-add as two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StepCost {
    /// Tokens that a training step runs forward and backward per image, all passes together.
    pub tokens_trained: u64,
    /// FLOPs of one teacher-forced forward pass of one image.
    pub flops_forward: u64,
    /// FLOPs of one optimiser step: all passes, forward and backward, of all its images.
    pub flops_step: u128,
}

impl StepCost {
    /// Counts one optimiser step of `config`; a schedule that is drawn counts as the generator's own, the longest.
    ///
    /// # Errors
    /// A schedule that the way of training cannot use.
    pub fn of(config: &Config) -> Result<Self, PlanError> {
        let (g, train) = (&config.generator, &config.train);
        let guided = StepSettings::of(config).guidance() != Guidance::Off;
        let whole = |schedule: &ScaleSchedule| forward_flops(g, schedule, schedule.len());
        let steps = steps(config)?;
        let (mut flops, mut tokens_trained) = (0, 0);
        for step in &steps {
            // Backward costs twice the forward; guidance doubles the teacher's forward alone.
            let teacher = whole(&step.first.schedule);
            flops += 3 * teacher + if guided { teacher } else { 0 };
            tokens_trained += step.first.schedule.tokens() as u64;
            if let Some(student) = step.second {
                flops += 3 * whole(&student.schedule);
                tokens_trained += student.schedule.tokens() as u64;
            }
            if let Rollout::ScaleByScale { scales } = step.rollout {
                flops += forward_flops(g, &step.first.schedule, scales);
            }
        }
        let count = steps.len() as u64;
        let images = (train.batch * train.accumulate) as u64;
        Ok(Self {
            tokens_trained: tokens_trained / count,
            flops_forward: whole(&g.schedule),
            flops_step: u128::from(flops / count) * u128::from(images),
        })
    }
}

/// FLOPs of one forward pass of one image over some scales of a schedule, from the first.
fn forward_flops(g: &GeneratorSection, schedule: &ScaleSchedule, scales: usize) -> u64 {
    let [c, k, v, d, mlp] = [g.width, g.channels, g.vocab, g.depth, g.mlp_ratio].map(|n| n as u64);
    let (mut tokens, mut pairs) = (0, 0);
    for scale in schedule.scales().iter().take(scales) {
        let grid = scale.tokens() as u64;
        tokens += grid;
        pairs += grid * tokens;
    }
    let block = 2 * (4 + 2 * mlp) * c * c * tokens + 4 * c * pairs + 2 * 6 * c * c;
    d * block + 2 * tokens * c * (k + v) + 2 * 2 * c * c
}

/// The steps that training takes in turn: one, or where a random transition is rolled out one for each.
fn steps(config: &Config) -> Result<Vec<Plan>, PlanError> {
    let (method, schedule) = (config.train.method(&config.sar), &config.generator.schedule);
    let plan = Plan::new(method, StudentTarget::TeacherHard, schedule, 0, 0)?;
    Ok(match method {
        Method::Sar(Extent::Random) => (1..schedule.len())
            .filter_map(|scale| schedule.staggered(scale))
            .map(|schedule| Plan { second: Some(Pass { schedule, ..plan.first }), ..plan })
            .collect(),
        _ => vec![plan],
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn published() -> Config {
        let mut config = Config::default();
        config.generator = GeneratorSection {
            depth: 16,
            width: 1024,
            heads: 16,
            vocab: 8912,
            channels: 32,
            classes: 1000,
            schedule: ScaleSchedule::published_256(),
            ..config.generator
        };
        config
    }

    #[test]
    fn passes_add_up() {
        let mut config = published();
        let (images, all) = (config.train.batch as u64, ScaleSchedule::published_256());
        let mut of = |mode: &str, extent, guidance| {
            config.train.mode = mode.parse().unwrap();
            (config.sar.extent, config.sar.guidance) = (extent, guidance);
            StepCost::of(&config).unwrap()
        };
        let tf = of("teacher", Extent::All, 1.2);
        assert_eq!(tf.tokens_trained, 680);
        let forward = tf.flops_forward;
        assert_eq!(tf.flops_step, u128::from(3 * forward * images));
        // 2 FLOPs per weight that every token meets, and attention on top.
        let matrices = 2 * 680 * (16 * 12 * 1024 * 1024 + 1024 * (8912 + 32));
        assert!(forward > matrices && forward < matrices * 11 / 10, "{forward} {matrices}");

        let last = of("ssr", Extent::Last, 0.0);
        assert_eq!(last.tokens_trained, 680 + 257);
        let both = of("ssr", Extent::All, 0.0);
        assert_eq!(
            (both.tokens_trained, both.flops_step),
            (2 * 680, u128::from(6 * forward * images))
        );
        assert_eq!(of("ssr", Extent::All, 1.2).flops_step, u128::from(7 * forward * images));
        // One of nine transitions a step, with the class token each.
        let random = of("ssr", Extent::Random, 0.0);
        assert_eq!(random.tokens_trained, 680 + (679 + 9) / 9);
        assert!(random.flops_step < last.flops_step && tf.flops_step < random.flops_step);
        // Own samples up to the scale before the last, scale by scale, then a pass.
        let own = of("student", Extent::All, 1.2);
        let flops = (3 * forward + forward_flops(&published().generator, &all, 9)) * images;
        assert_eq!(own.flops_step, flops.into());
        assert_eq!(own.tokens_trained, 680);
    }

    #[test]
    fn what_cannot_be_trained_has_no_cost() {
        let mut config = published();
        config.generator.schedule = "1".parse().unwrap();
        config.train.mode = "ssr".parse().unwrap();
        let error = StepCost::of(&config).unwrap_err().to_string();
        assert!(error.contains("the schedule has 1 scale"), "{error}");
    }
}
