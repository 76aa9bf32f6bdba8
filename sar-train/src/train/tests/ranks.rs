//! Steps whose micro-batches are shared among ranks, against those of one process.

use super::{CHANNELS, Cpu, Images, REORDERED, SIDE, World, config, near};
use crate::config::{Config, Mode};
use crate::ranks::RanksError;
use crate::train::{OtherRanks, Replica, StepLosses, TrainError, share};
use sar_backend_cpu::Buffer;
use sar_math::backend::Buffers as _;
use sar_math::rollout::Extent;

/// The other ranks, all in this process.
struct Here<'w> {
    replicas: Vec<Replica<'w, Cpu>>,
    images: Images<'w>,
    step: u64,
}

impl<'w> Here<'w> {
    fn new(world: &'w World, config: &Config, ranks: usize) -> Self {
        let replica = |_| {
            let (b, g, q) = (&world.backend, world.generator.clone(), &world.quantizer);
            Replica::new(b, g, config, q, (SIDE, SIDE)).unwrap()
        };
        let images = world.images(config.train.batch);
        Self { replicas: (1..ranks).map(replica).collect(), images, step: 0 }
    }
}

impl OtherRanks<Cpu, StepLosses> for Here<'_> {
    fn ranks(&self) -> usize {
        self.replicas.len() + 1
    }

    fn begin(&mut self, b: &Cpu, step: u64, params: &Buffer<f64>) -> Result<(), TrainError> {
        self.step = step;
        for replica in &mut self.replicas {
            b.upload_params(params.as_slice(), &mut replica.params, 0).unwrap();
        }
        Ok(())
    }

    fn add_gradients(
        &mut self,
        b: &Cpu,
        sum: &mut Buffer<f64>,
    ) -> Result<Vec<StepLosses>, TrainError> {
        let ranks = self.ranks();
        let mut all = Vec::new();
        for (i, replica) in self.replicas.iter_mut().enumerate() {
            let accumulate = replica.config.accumulate;
            let share = share(accumulate, i + 1, ranks);
            self.images.next = (self.step as usize * accumulate + share.start) * self.images.batch;
            replica.gradients(self.step, share, &mut self.images)?;
            all.push(replica.losses().unwrap().unwrap().0);
            let theirs = replica.memory.grads.params.as_slice();
            let added: Vec<f64> = sum.as_slice().iter().zip(theirs).map(|(a, b)| a + b).collect();
            b.upload_accum(&added, sum, 0).unwrap();
        }
        Ok(all)
    }
}

/// Everything that depends on the place of a micro-batch in its step is on: dropped labels, drop path, draws.
fn shared(mode: Mode, accumulate: usize) -> Config {
    let mut config = config(mode);
    let t = &mut config.train;
    (t.batch, t.accumulate) = (2, accumulate);
    (t.class_dropout, t.drop_path) = (0.4, Some(0.3));
    t.random_schedules = mode == Mode::Teacher;
    config.sar.extent = Extent::All;
    config.validate().unwrap();
    config
}

#[test]
fn ranks_together_make_the_step_of_one() {
    let world = World::new(CHANNELS * 5);
    let modes = [Mode::Teacher, Mode::Ssr, Mode::Student, Mode::Hybrid { teacher_scales: 1 }];
    for mode in modes {
        for (accumulate, ranks) in [(2, 2), (4, 3), (5, 2), (4, 4)] {
            let config = shared(mode, accumulate);
            let mut one = world.trainer(&config);
            let mut images = world.images(2);
            let mut rank_0 = world.trainer(&config);
            rank_0.share_with(Box::new(Here::new(&world, &config, ranks))).unwrap();
            let mut own = world.images(2);
            for step in 0..2 {
                one.step(&mut images).unwrap();
                own.next = step * accumulate * 2;
                rank_0.step(&mut own).unwrap();
                let gradients = rank_0.gradients().as_slice().iter();
                let expected = one.gradients().as_slice();
                assert!(expected.iter().any(|g| *g != 0.0));
                gradients.zip(expected).for_each(|(&found, &g)| near(found, g, REORDERED));
                let (found, expected) = (rank_0.report().unwrap(), one.report().unwrap());
                let (found, expected) = (found.unwrap(), expected.unwrap());
                near(found.loss, expected.loss, REORDERED);
                near(found.grad_norm, expected.grad_norm, REORDERED);
                assert_eq!(found.loss_csf.is_some(), expected.loss_csf.is_some());
                near(found.loss_csf.unwrap_or(0.0), expected.loss_csf.unwrap_or(0.0), REORDERED);
                assert_eq!(found.schedule, expected.schedule);
                for (&a, &b) in found.scale_acc.iter().zip(&expected.scale_acc) {
                    near(a, b, REORDERED);
                }
                // The next step begins where this one ended, in both alike.
                let weights = one.params().as_slice().to_vec();
                let replica = &mut rank_0.replica;
                world.backend.upload_params(&weights, &mut replica.params, 0).unwrap();
            }
        }
    }
}

#[test]
fn more_ranks_than_micro_batches_are_refused() {
    let world = World::new(4);
    let config = shared(Mode::Teacher, 2);
    let mut trainer = world.trainer(&config);
    let refused = trainer.share_with(Box::new(Here::new(&world, &config, 3))).unwrap_err();
    let expected = RanksError::TooMany { ranks: 3, accumulate: 2 }.to_string();
    assert_eq!(refused.to_string(), expected);
}
