//! Rank 0's side of a step.

use super::RanksError;
use super::meeting::{Processes, instead_of};
use super::message::{Found, FromLeader, FromMember};
use super::wire::{PIECE, Wire};
use crate::run::Interrupt;
use crate::train::{OtherRanks, TrainError};
use sar_math::backend::Buffers;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Time between looks at whether the user asks to stop.
const ASK: Duration = Duration::from_secs(1);
/// A rank that says nothing for so long after rank 0 has done its own share is told of.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a rank is waited for, at least, once the user asks to stop: then it is taken for lost, and the run is saved as it was
/// after its last step. Batch systems leave a process some 30 seconds for that.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a rank has to take the message that the run has ended.
const MOMENT: Duration = Duration::from_secs(1);
/// More numbers after the gradients than this are not from a rank: a gibibyte.
const MOST_NUMBERS: usize = 1 << 28;
/// Pieces of a rank's gradients that wait to be added.
const PIECES: usize = 4;
/// How long ranks that are in the middle of a step have to notice it.
const GRACE: Duration = Duration::from_secs(5);

/// The other ranks of a run that has begun. Dropping it tells them that the run has ended.
pub struct Leader {
    wires: Vec<Wire>,
    /// Weights on their way out, then the sum of gradients.
    values: Vec<f32>,
    /// What follows the gradients of a rank.
    numbers: Vec<f32>,
    interrupt: Interrupt,
    /// When the step began.
    begun: Instant,
    /// Is told of ranks that say nothing.
    tell: Box<dyn FnMut(&str) + Send>,
    _processes: Processes,
}

impl Leader {
    pub(super) fn new(
        wires: Vec<Wire>,
        parameters: usize,
        processes: Processes,
        interrupt: Interrupt,
        tell: Box<dyn FnMut(&str) + Send>,
    ) -> Self {
        Self {
            wires,
            values: vec![0.0; parameters],
            numbers: Vec::new(),
            interrupt,
            begun: Instant::now(),
            tell,
            _processes: processes,
        }
    }
}

impl<B: Buffers<Host = f32>, F: Found> OtherRanks<B, F> for Leader {
    fn ranks(&self) -> usize {
        self.wires.len() + 1
    }

    fn begin(&mut self, backend: &B, step: u64, params: &B::Params) -> Result<(), TrainError> {
        backend.download_params(params, 0, &mut self.values)?;
        self.begun = Instant::now();
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
    ) -> Result<Vec<F>, TrainError> {
        backend.download_accum(gradients, 0, &mut self.values)?;
        let mut texts = Vec::with_capacity(self.wires.len());
        // Another rank may have twice as many micro-batches.
        let patience = PATIENCE.max(2 * self.begun.elapsed());
        for wire in &mut self.wires {
            wait(wire, patience, &self.interrupt, &mut self.tell)?;
            let (text, numbers) = match wire.receive()? {
                FromMember::Gradients { found, numbers, stop } => {
                    if stop {
                        self.interrupt.ask();
                    }
                    (found, numbers)
                }
                other => return Err(instead_of(wire, "gradients", other).into()),
            };
            if numbers > MOST_NUMBERS {
                return Err(wire.unexpected("gradients", &format!("{numbers} numbers")).into());
            }
            texts.push((text, numbers));
        }
        add_in_order(&mut self.wires, &mut self.values)?;
        let mut all = Vec::with_capacity(self.wires.len());
        for (wire, (text, numbers)) in self.wires.iter_mut().zip(texts) {
            self.numbers.resize(numbers, 0.0);
            wire.receive_values(&mut self.numbers)?;
            let found = F::unpack(text, &self.numbers);
            all.push(found.ok_or_else(|| wire.unexpected("gradients", "those of another model"))?);
        }
        backend.upload_accum(&self.values, gradients, 0)?;
        Ok(all)
    }
}

/// Adds what all wires bring to `sums`. They are read at the same time, so that the network and not one thread limits
/// them; each number is added in the order of the wires, so that sums have the same bits every time.
fn add_in_order(wires: &mut [Wire], sums: &mut [f32]) -> Result<(), RanksError> {
    let len = sums.len();
    std::thread::scope(|scope| {
        let reading = wires.iter_mut().map(|wire| {
            let (give, take) = mpsc::sync_channel(PIECES);
            // Nobody takes any more pieces once another wire has failed.
            let read = move || wire.receive_pieces(len, |piece| give.send(piece).is_ok());
            (take, scope.spawn(read))
        });
        let (pieces, threads): (Vec<_>, Vec<_>) = reading.unzip();
        'all: for sums in sums.chunks_mut(PIECE) {
            for pieces in &pieces {
                // The thread that has ended says why.
                let Ok(piece) = pieces.recv() else { break 'all };
                sums.iter_mut().zip(piece).for_each(|(sum, value)| *sum += value);
            }
        }
        drop(pieces);
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Waits for a rank to say something; for as long as it takes, or for `patience` once the user asks to stop.
fn wait(
    wire: &Wire,
    patience: Duration,
    interrupt: &Interrupt,
    tell: &mut dyn FnMut(&str),
) -> Result<(), RanksError> {
    let (start, mut asked) = (Instant::now(), None::<Instant>);
    let mut told = SILENCE;
    while !wire.hears_within(ASK)? {
        let (peer, seconds) = (&wire.peer, patience.as_secs());
        match asked {
            Some(asked) if asked.elapsed() > patience => {
                return Err(RanksError::Silent { peer: peer.clone(), seconds });
            }
            None if interrupt.is_asked() => {
                asked = Some(Instant::now());
                tell(&format!(
                    "{peer} is waited for, {seconds} s at most; without it the last whole step is saved"
                ));
            }
            _ => {}
        }
        if start.elapsed() >= told {
            tell(&format!("{} has said nothing for {} s", wire.peer, start.elapsed().as_secs()));
            // Each time after twice as long.
            told *= 2;
        }
    }
    Ok(())
}

impl Drop for Leader {
    fn drop(&mut self) {
        for wire in &mut self.wires {
            // One that is gone, or that takes nothing, need not be told.
            let _ = wire.send_within(Some(MOMENT));
            let _ = wire.send(&FromLeader::Done);
        }
        let start = Instant::now();
        // Gradients that they still send are taken, so that they come to read that the run has ended. Their
        // connections end before their processes are waited for.
        self.wires
            .drain(..)
            .for_each(|mut wire| wire.finish(GRACE.saturating_sub(start.elapsed())));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};

    /// Both ends of a connection.
    fn pair(peer: usize) -> (Wire, Wire) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let name = format!("rank {peer}");
        let here = Wire::new(listener.accept().unwrap().0, name).unwrap();
        (here, Wire::new(other, "rank 0".to_owned()).unwrap())
    }

    /// Numbers of a rank whose sums depend on their order.
    fn numbers(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 + 0.37).sin() * 10f32.powi(rank as i32)).collect()
    }

    #[test]
    fn sums_are_in_the_order_of_the_ranks() {
        let len = 2 * PIECE + 77;
        let (mut here, theirs): (Vec<_>, Vec<_>) = (1..4).map(pair).unzip();
        let mut expected = numbers(0, len);
        for rank in 1..4 {
            expected.iter_mut().zip(numbers(rank, len)).for_each(|(sum, value)| *sum += value);
        }
        let mut sums = numbers(0, len);
        std::thread::scope(|scope| {
            for (rank, mut wire) in theirs.into_iter().enumerate() {
                // The last rank is the first to send.
                let late = Duration::from_millis(20 * (3 - rank as u64));
                scope.spawn(move || {
                    std::thread::sleep(late);
                    wire.send_values(&numbers(rank + 1, len)).unwrap();
                });
            }
            add_in_order(&mut here, &mut sums).unwrap();
        });
        assert!(sums.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn a_rank_that_is_lost_in_the_middle_is_named() {
        let len = 8 * PIECE;
        let (mut here, mut theirs): (Vec<_>, Vec<_>) = (1..4).map(pair).unzip();
        let mut lost = theirs.remove(1);
        lost.send_values(&numbers(2, PIECE / 2)).unwrap();
        drop(lost);
        let error = std::thread::scope(|scope| {
            for mut wire in theirs {
                // Nobody reads all of it.
                scope.spawn(move || drop(wire.send_values(&numbers(1, len))));
            }
            let error = add_in_order(&mut here, &mut vec![0.0; len]).unwrap_err();
            drop(here);
            error
        });
        assert!(matches!(&error, RanksError::Lost { peer, .. } if peer == "rank 2"), "{error}");
    }
}
