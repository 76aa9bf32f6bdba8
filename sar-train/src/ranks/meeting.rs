//! Where the ranks of a run meet before it begins.

use super::message::{FromLeader, FromMember, Hello};
use super::wire::{Wire, is_silence};
use super::{Job, Leader, RanksError};
use crate::run::Interrupt;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::time::{Duration, Instant};

/// Environment variable of a secret that keeps strangers out: if rank 0 has one, the others need the same.
pub const SECRET: &str = "SAR_RANKS_SECRET";

/// Time between looks at what else may have happened while ranks are waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Whoever connects has this long to say who it is.
const GREETING: Duration = Duration::from_secs(10);
/// Processes that were started here have this long to end after the run has.
const GRACE: Duration = Duration::from_secs(5);

/// The place where rank 0 waits for the others.
pub struct Meeting {
    // Closed before processes are waited for, so that they notice.
    listener: TcpListener,
    address: SocketAddr,
    ranks: usize,
    expected: Hello,
    processes: Processes,
}

impl Meeting {
    /// Opens a meeting of `ranks` ranks, this process included, at an address of this machine. `computing` names backend
    /// and number type, which all of them must share, and so the secret.
    ///
    /// # Errors
    /// [`RanksError::Listen`].
    pub fn open(
        address: &str,
        ranks: usize,
        computing: &str,
        secret: Option<String>,
    ) -> Result<Self, RanksError> {
        let open = || -> std::io::Result<_> {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) =
            open().map_err(|source| RanksError::Listen { address: address.to_owned(), source })?;
        let expected = Hello::new(computing, secret);
        Ok(Self { listener, address, ranks, expected, processes: Processes::default() })
    }

    /// Returns the address, with the port that the system chose if the meeting was opened at port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the number of ranks, including rank 0.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Watches over a process that was started for a rank: the meeting fails if it ends, and it ends with the run.
    pub fn watch(&mut self, process: Child) {
        self.processes.all.push(process);
    }

    /// Waits until all ranks are ready; `None` if the user stops it. Ranks are numbered as they come.
    ///
    /// `job` is rank 0's own; `tokenizer` are the tokenizer's weights, and
    /// `parameters` is the number of the generator's.
    ///
    /// # Errors
    /// A rank fails or is lost, or a watched process ends.
    pub fn gather(
        mut self,
        job: &Job,
        tokenizer: &[f32],
        parameters: usize,
        interrupt: &Interrupt,
    ) -> Result<Option<Leader>, RanksError> {
        let mut wires: Vec<Wire> = Vec::new();
        while wires.len() + 1 < self.ranks {
            if interrupt.is_asked() {
                return Ok(None);
            }
            match self.listener.accept() {
                Ok((stream, from)) => {
                    let rank = wires.len() + 1;
                    if let Some(mut wire) = welcome(stream, rank, from, &self.expected) {
                        wire.send(&FromLeader::Job(Box::new(Job { rank, ..job.clone() })))?;
                        wire.send_values(tokenizer)?;
                        wires.push(wire);
                    }
                }
                Err(error) if is_silence(&error) => {
                    self.processes.expect_running(&mut wires)?;
                    std::thread::sleep(LOOK);
                }
                Err(source) => {
                    return Err(RanksError::Listen { address: self.address.to_string(), source });
                }
            }
        }
        for at in 0..wires.len() {
            while !wires[at].hears_within(LOOK)? {
                if interrupt.is_asked() {
                    return Ok(None);
                }
                self.processes.expect_running(&mut wires)?;
            }
            match wires[at].receive()? {
                FromMember::Ready => {}
                other => return Err(instead_of(&wires[at], "that it is ready", other)),
            }
        }
        self.processes.take_part = true;
        Ok(Some(Leader::new(wires, parameters, self.processes, interrupt.clone())))
    }
}

/// Takes in a process that has connected, as rank `rank`. One that may not take part is told why; one that does not
/// say who it is, is nobody's.
fn welcome(stream: TcpStream, rank: usize, from: SocketAddr, expected: &Hello) -> Option<Wire> {
    let mut wire = Wire::new(stream, format!("rank {rank} ({from})")).ok()?;
    wire.wait_at_most(Some(GREETING)).ok()?;
    let Ok(FromMember::Hello(hello)) = wire.receive() else { return None };
    if let Some(reason) = refusal(&hello, expected) {
        let _ = wire.send(&FromLeader::Refused(reason));
        return None;
    }
    wire.wait_at_most(None).ok()?;
    Some(wire)
}

/// Why a process cannot take part; `None` if it can.
fn refusal(hello: &Hello, expected: &Hello) -> Option<String> {
    // Nothing else is said to those who do not know the secret.
    if expected.secret.is_some() && hello.secret != expected.secret {
        return Some(format!(
            "rank 0 has a secret, and this process has another or none ({SECRET})"
        ));
    }
    if hello.program != expected.program {
        return Some(format!("it is {}, and this is {}", expected.program, hello.program));
    }
    (hello.computing != expected.computing).then(|| {
        format!(
            "it computes on {}, and this process on {}; give --backend and --dtype to both",
            expected.computing, hello.computing
        )
    })
}

/// The error for a message of another rank that is not the expected one.
pub(super) fn instead_of(wire: &Wire, expected: &str, found: FromMember) -> RanksError {
    match found {
        FromMember::Failed(reason) => RanksError::Failed { peer: wire.peer.clone(), reason },
        other => wire.unexpected(expected, other.name()),
    }
}

/// Processes that were started for ranks. Once they take part they end when their connection does, and dropping this
/// waits for it.
#[derive(Default)]
pub(super) struct Processes {
    all: Vec<Child>,
    take_part: bool,
}

impl Processes {
    /// Fails if one has ended, by the error that it has sent, if it has.
    fn expect_running(&mut self, wires: &mut [Wire]) -> Result<(), RanksError> {
        let ended = self.all.iter_mut().find_map(|process| process.try_wait().ok().flatten());
        let Some(status) = ended else { return Ok(()) };
        for wire in wires {
            if matches!(wire.hears_within(LOOK), Ok(true))
                && let Ok(FromMember::Failed(reason)) = wire.receive()
            {
                return Err(RanksError::Failed { peer: wire.peer.clone(), reason });
            }
        }
        Err(RanksError::EndedEarly { status: status.to_string() })
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let (start, grace) = (Instant::now(), if self.take_part { GRACE } else { Duration::ZERO });
        for process in &mut self.all {
            while matches!(process.try_wait(), Ok(None)) && start.elapsed() < grace {
                std::thread::sleep(LOOK);
            }
            // Ending one that has ended already is an error without consequence.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
