//! The other ranks' side of a run.

use super::RanksError;
use super::message::{Found, FromLeader, FromMember, Hello};
use super::wire::{LONGEST, LOOK, Wire};
use crate::checkpoint::Kind;
use crate::run::Interrupt;
use crate::train::{Share, TrainError, check_ranks, share};
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long rank 0, which may be in the middle of a step, has to read why this rank has failed.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// How long an address may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What all ranks of a run have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is trained.
    pub model: Kind,
    /// Number of ranks, including rank 0.
    pub ranks: usize,
    /// The step that the run begins or goes on with.
    pub step: u64,
    /// The run's configuration, in TOML, with the tokenizer's.
    pub config: String,
    /// The fingerprint of its images ([`crate::data::Data::fingerprint`]).
    pub images: String,
}

/// A process that takes part in a run as one of its ranks other than 0.
pub struct Member {
    wire: Wire,
    job: Job,
}

impl Member {
    /// Joins the meeting at `address`, unless the user stops it; `None` if the run has nothing left to do. `computing`
    /// names backend and number type.
    ///
    /// # Errors
    /// [`RanksError::NobodyThere`] where there is no meeting (yet), [`RanksError::Refused`] if rank 0 does not take
    /// this process in.
    pub fn join(
        address: &str,
        computing: &str,
        secret: Option<String>,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>, RanksError> {
        let nobody = |source| RanksError::NobodyThere { address: address.to_owned(), source };
        let stream = connected(address).map_err(nobody)?;
        let mut wire = Wire::new(stream, format!("rank 0 ({address})"))?;
        wire.send(&FromMember::Hello(Hello::new(computing, secret)))?;
        match wire.receive_unless(LONGEST, || interrupt.is_asked())? {
            FromLeader::Job(job) => Ok(Some(Self { wire, job: *job })),
            FromLeader::Done => Ok(None),
            FromLeader::Refused(reason) => {
                Err(RanksError::Refused { address: address.to_owned(), reason })
            }
            other => Err(wire.unexpected("a job", other.name())),
        }
    }

    /// Returns what it has in common with the other ranks.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Receives the tokenizer's weights, of which there are `len`. To be called once, after joining.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn tokenizer(&mut self, len: usize) -> Result<Vec<f32>, RanksError> {
        let mut weights = vec![0.0; len];
        self.wire.receive_values(&mut weights)?;
        Ok(weights)
    }

    /// Says that it is ready, and waits for the run to begin; returns its rank, or `None` if the run has ended before it
    /// began or the user stops this process.
    ///
    /// # Errors
    /// The connection to rank 0 is lost.
    pub fn begin(&mut self, interrupt: &Interrupt) -> Result<Option<usize>, RanksError> {
        self.wire.send(&FromMember::Ready)?;
        while !self.wire.hears_within(LOOK)? {
            if interrupt.is_asked() {
                return Ok(None);
            }
        }
        match self.wire.receive()? {
            FromLeader::Begin { rank } => Ok(Some(rank)),
            FromLeader::Done => Ok(None),
            other => Err(self.wire.unexpected("the beginning of the run", other.name())),
        }
    }

    /// Takes a rank's share of every step until the run ends.
    ///
    /// # Errors
    /// The images', the backend's; the connection to rank 0 is lost.
    pub fn serve<S: Share<Found: Found>>(
        &mut self,
        rank: usize,
        work: &mut S,
        interrupt: &Interrupt,
    ) -> Result<(), TrainError> {
        let (ranks, accumulate) = (self.job.ranks, work.accumulate());
        check_ranks(ranks, accumulate)?;
        let share = share(accumulate, rank, ranks);
        let mut values = vec![0.0; work.parameters()];
        loop {
            let step = match self.wire.receive()? {
                FromLeader::Step(step) => step,
                FromLeader::Done => return Ok(()),
                other => return Err(self.wire.unexpected("a step", other.name()).into()),
            };
            self.wire.receive_values(&mut values)?;
            let found = work.take(step, share.clone(), &mut values)?;
            let ((found, numbers), stop) = (found.pack(), interrupt.is_asked());
            self.wire.send(&FromMember::Gradients { found, numbers: numbers.len(), stop })?;
            self.wire.send_values(&values)?;
            self.wire.send_values(&numbers)?;
        }
    }

    /// Tells rank 0 that this process can go no further, if it still listens.
    pub fn give_up(&mut self, reason: &str) {
        let _ = self.wire.send(&FromMember::Failed(reason.to_owned()));
        self.wire.finish(LAST_WORDS);
    }
}

/// Connects to the first of an address's machines that answers.
fn connected(address: &str) -> std::io::Result<TcpStream> {
    let mut last = Error::from(ErrorKind::AddrNotAvailable);
    for machine in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&machine, ANSWER) {
            // On a port where nobody listens, a connection may meet itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
