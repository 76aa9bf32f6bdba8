//! Rank 0's side of a step.

use super::RanksError;
use super::meeting::{Processes, instead_of};
use super::message::{FromLeader, FromMember};
use super::wire::Wire;
use crate::run::Interrupt;
use crate::train::{OtherRanks, StepLosses, TrainError};
use sar_math::backend::Backend;
use std::time::Duration;

/// How long a rank has to take the message that the run has ended.
const MOMENT: Duration = Duration::from_secs(1);

/// The other ranks of a run that has begun. Dropping it tells them that the run has ended.
pub struct Leader {
    wires: Vec<Wire>,
    /// Weights on their way out, then the sum of gradients.
    values: Vec<f32>,
    interrupt: Interrupt,
    _processes: Processes,
}

impl Leader {
    pub(super) fn new(
        wires: Vec<Wire>,
        parameters: usize,
        processes: Processes,
        interrupt: Interrupt,
    ) -> Self {
        Self { wires, values: vec![0.0; parameters], interrupt, _processes: processes }
    }
}

impl<B: Backend<Host = f32>> OtherRanks<B> for Leader {
    fn ranks(&self) -> usize {
        self.wires.len() + 1
    }

    fn begin(&mut self, backend: &B, step: u64, params: &B::Params) -> Result<(), TrainError> {
        backend.download_params(params, 0, &mut self.values).map_err(TrainError::backend)?;
        let (values, wires) = (&self.values, &mut self.wires);
        let send = |wire: &mut Wire| {
            wire.send(&FromLeader::Step(step))?;
            wire.send_values(values)
        };
        // All at once, so that the last does not wait for the others.
        let sent: Vec<Result<(), RanksError>> = std::thread::scope(|scope| {
            let sending: Vec<_> = wires.iter_mut().map(|w| scope.spawn(|| send(w))).collect();
            let sent = sending.into_iter().map(|thread| thread.join());
            sent.map(|made| made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        Ok(sent.into_iter().collect::<Result<(), _>>()?)
    }

    fn add_gradients(
        &mut self,
        backend: &B,
        gradients: &mut B::Accum,
    ) -> Result<Vec<StepLosses>, TrainError> {
        backend.download_accum(gradients, 0, &mut self.values).map_err(TrainError::backend)?;
        let mut all = Vec::with_capacity(self.wires.len());
        for wire in &mut self.wires {
            match wire.receive()? {
                FromMember::Gradients { losses, stop } => {
                    if stop {
                        self.interrupt.ask();
                    }
                    all.push((&*losses).into());
                }
                other => return Err(instead_of(wire, "gradients", other).into()),
            }
            wire.receive_values(&mut self.values, |sum, value| *sum += value)?;
        }
        backend.upload_accum(&self.values, gradients, 0).map_err(TrainError::backend)?;
        Ok(all)
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        for wire in &mut self.wires {
            // One that is gone, or that takes nothing, need not be told.
            let _ = wire.send_within(Some(MOMENT));
            let _ = wire.send(&FromLeader::Done);
        }
        // Their connections end before their processes are waited for.
        self.wires.clear();
    }
}
