//! Where the ranks of a run meet before it begins.

use super::message::{FromLeader, FromMember, Hello};
use super::wire::{LONGEST, LONGEST_GREETING, LOOK, Wire, is_silence};
use super::{Job, Leader, RanksError};
use crate::run::Interrupt;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Environment variable of a secret that keeps strangers out: if rank 0 has one, the others need the same.
pub const SECRET: &str = "SAR_RANKS_SECRET";

/// As good as no time, which a socket does not take for one.
const MOMENT: Duration = Duration::from_millis(1);
/// Whoever connects has this long to say who it is, and to take each part of what it is sent.
const GREETING: Duration = Duration::from_secs(10);
/// The last words of a process that has ended have this long to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Ranks that a run has nothing left to do for are waited for so long.
const LATECOMERS: Duration = Duration::from_secs(30);
/// Ranks that a run does not begin for are waited for so long: they knock again and again.
const PARTING: Duration = Duration::from_secs(3);
/// Times in a row that taking in a connection may fail, as where the system has no more files for now.
const MOST_FAILURES: u32 = 200;
/// Processes that were started here have this long to end after the run has.
const GRACE: Duration = Duration::from_secs(5);

/// The place where rank 0 waits for the others.
pub struct Meeting {
    // Closed before processes are waited for, so that they notice.
    door: Door,
    address: SocketAddr,
    ranks: usize,
    expected: Hello,
    processes: Processes,
}

impl Meeting {
    /// Opens a meeting of `ranks` ranks, this process included, at an address of this machine. All of them must compute on
    /// the backend and number type that `computing` names, and know the secret if there is one.
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
        let door = Door { listener, expected: 0 };
        Ok(Self { door, address, ranks, expected, processes: Processes::default() })
    }

    /// Says that all ranks come to this address by themselves, so that those who come to a run that does not begin are to
    /// be told.
    pub fn expect_all(&mut self) {
        self.door.expected = self.ranks - 1;
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

    /// Tells those of the expected ranks that come within half a minute that the run has nothing left to do, unless the user
    /// stops it.
    pub fn turn_away(mut self, interrupt: &Interrupt) {
        self.door.answer(&FromLeader::Done, LATECOMERS, || interrupt.is_asked());
    }

    /// Waits until all ranks are ready; `None` if the user stops it. `tokenizer` are the tokenizer's weights, and
    /// `parameters` is the number of what is trained; `tell` is told who comes and goes, and
    /// later who says nothing.
    ///
    /// # Errors
    /// A rank cannot get ready, or a watched process ends.
    pub fn gather(
        self,
        job: &Job,
        tokenizer: &[f32],
        parameters: usize,
        interrupt: &Interrupt,
        mut tell: impl FnMut(&str) + Send + 'static,
    ) -> Result<Option<Leader>, RanksError> {
        let Self { mut door, address, ranks, expected, mut processes } = self;
        let over = AtomicBool::new(false);
        let reception = Reception { expected: &expected, job, tokenizer, over: &over };
        let (arrived, arrivals) = channel();
        let mut wires: Vec<Wire> = Vec::new();
        let gathered = std::thread::scope(|scope| {
            let mut failures = 0;
            let gathered = loop {
                match door.listener.accept() {
                    Ok((stream, from)) => {
                        failures = 0;
                        let (arrived, reception) = (arrived.clone(), &reception);
                        let receive = move || arrived.send(reception.receive(stream, from));
                        // Where the system has no thread left, the process that connected is turned away.
                        let _ = Builder::new().spawn_scoped(scope, receive);
                    }
                    Err(error) if is_silence(&error) => {}
                    Err(source) if failures == MOST_FAILURES => {
                        break Err(RanksError::Listen { address: address.to_string(), source });
                    }
                    Err(_) => failures += 1,
                }
                let looked = look(&mut wires, &arrivals, ranks, &mut tell);
                match looked.and_then(|()| processes.expect_running(&arrivals)) {
                    Ok(()) if wires.len() + 1 >= ranks => break Ok(true),
                    // The same signal may have ended the others.
                    _ if interrupt.is_asked() => break Ok(false),
                    Ok(()) => std::thread::sleep(LOOK),
                    Err(error) => break Err(error),
                }
            };
            over.store(true, Ordering::SeqCst);
            gathered
        });
        let all_there = matches!(gathered, Ok(true));
        if all_there {
            door.expected = 0;
        }
        // Nobody else is needed; or nobody at all, where the run does not begin.
        dismiss(wires.drain(if all_there { ranks - 1 } else { 0 }..));
        dismiss(arrivals.try_iter().filter_map(Arrival::ready));
        if !gathered? {
            return Ok(None);
        }
        for (wire, rank) in wires.iter_mut().zip(1..) {
            wire.peer = format!("rank {rank} ({})", wire.peer);
            wire.send(&FromLeader::Begin { rank })?;
        }
        processes.take_part = true;
        Ok(Some(Leader::new(wires, parameters, processes, interrupt.clone(), Box::new(tell))))
    }
}

/// Where ranks knock.
struct Door {
    listener: TcpListener,
    /// Number of ranks that come and are to be told something.
    expected: usize,
}

impl Door {
    /// Says the same to all ranks that are still expected, for as long as `time` unless `stop` says so.
    fn answer(&mut self, message: &FromLeader, time: Duration, stop: impl Fn() -> bool) {
        let start = Instant::now();
        let over = || start.elapsed() > time || stop();
        while self.expected > 0 && !over() {
            let Ok((stream, from)) = self.listener.accept() else {
                std::thread::sleep(LOOK);
                continue;
            };
            let Ok(mut wire) = Wire::new(stream, from.to_string()) else { continue };
            let came = Instant::now();
            let give_up = || came.elapsed() > ON_ITS_WAY || over();
            if let Ok(FromMember::Hello(_)) = wire.receive_unless(LONGEST_GREETING, give_up) {
                let _ = wire.send(message);
                wire.finish(ON_ITS_WAY);
                self.expected -= 1;
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let refused = FromLeader::Refused("its run has not begun; it says why".to_owned());
        self.answer(&refused, PARTING, || false);
    }
}

/// Tells ranks that are not needed.
fn dismiss(wires: impl Iterator<Item = Wire>) {
    for mut wire in wires {
        let _ = wire.send(&FromLeader::Done);
    }
}

/// Takes up who has become ready, and strikes off who has left.
fn look(
    wires: &mut Vec<Wire>,
    arrivals: &Receiver<Arrival>,
    ranks: usize,
    tell: &mut impl FnMut(&str),
) -> Result<(), RanksError> {
    wires.retain_mut(|wire| match left(wire) {
        None => true,
        Some(error) => {
            tell(&error.to_string());
            false
        }
    });
    for arrival in arrivals.try_iter() {
        match arrival {
            Arrival::Ready(wire) => {
                wires.push(wire);
                let (peer, count) = (&wires[wires.len() - 1].peer, wires.len() + 1);
                tell(&format!("a rank at {peer} is ready: {count} of {ranks}"));
            }
            Arrival::Refused { from, reason } => tell(&format!("{from} is refused: {reason}")),
            Arrival::Lost(error) => tell(&error.to_string()),
            Arrival::Failed(error) => return Err(error),
            Arrival::Stranger => {}
        }
    }
    Ok(())
}

/// Why a rank that was ready has left; `None` if it has not: then it says nothing until the run begins.
fn left(wire: &mut Wire) -> Option<RanksError> {
    match wire.hears_within(MOMENT) {
        Ok(false) => None,
        Ok(true) => {
            let start = Instant::now();
            let said = wire.receive_unless(LONGEST, || start.elapsed() > ON_ITS_WAY);
            Some(said.map_or_else(|error| error, |said| instead_of(wire, "nothing", said)))
        }
        Err(error) => Some(error),
    }
}

/// What became of a process that connected.
enum Arrival {
    /// It has its images and the memory for a step.
    Ready(Wire),
    /// It may not take part.
    Refused { from: SocketAddr, reason: String },
    /// It left before it was ready.
    Lost(RanksError),
    /// It cannot get ready, and says why.
    Failed(RanksError),
    /// It did not say who it is.
    Stranger,
}

impl Arrival {
    fn ready(self) -> Option<Wire> {
        match self {
            Self::Ready(wire) => Some(wire),
            _ => None,
        }
    }
}

/// What a process that connects is given, on a thread of its own.
struct Reception<'g> {
    expected: &'g Hello,
    job: &'g Job,
    tokenizer: &'g [f32],
    /// Whether the meeting is over.
    over: &'g AtomicBool,
}

impl Reception<'_> {
    /// Greets a process and waits until it is ready.
    fn receive(&self, stream: TcpStream, from: SocketAddr) -> Arrival {
        let start = Instant::now();
        let give_up = || start.elapsed() > GREETING || self.over.load(Ordering::SeqCst);
        let Ok(mut wire) = Wire::new(stream, from.to_string()) else { return Arrival::Stranger };
        let Ok(FromMember::Hello(hello)) = wire.receive_unless(LONGEST_GREETING, give_up) else {
            return Arrival::Stranger;
        };
        if let Some(reason) = refusal(&hello, self.expected) {
            let _ = wire.send(&FromLeader::Refused(reason.clone()));
            return Arrival::Refused { from, reason };
        }
        match self.prepare(&mut wire) {
            Ok(FromMember::Ready) => Arrival::Ready(wire),
            Ok(other) => Arrival::Failed(instead_of(&wire, "that it is ready", other)),
            Err(error) => Arrival::Lost(error),
        }
    }

    /// Gives a process its job, and waits for its answer.
    fn prepare(&self, wire: &mut Wire) -> Result<FromMember, RanksError> {
        // Whoever does not take what is sent for so long does not take part.
        wire.send_within(Some(GREETING))?;
        wire.send(&FromLeader::Job(Box::new(self.job.clone())))?;
        wire.send_values(self.tokenizer)?;
        wire.send_within(None)?;
        let over = || self.over.load(Ordering::SeqCst);
        let answer = wire.receive_unless(LONGEST, over);
        if over() && answer.is_err() {
            // It is told, where it still listens.
            let _ = wire.send(&FromLeader::Done);
        }
        answer
    }
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
    fn expect_running(&mut self, arrivals: &Receiver<Arrival>) -> Result<(), RanksError> {
        let ended = self.all.iter_mut().find_map(|process| process.try_wait().ok().flatten());
        let Some(status) = ended else { return Ok(()) };
        // What it has said may still be on its way.
        while let Ok(arrival) = arrivals.recv_timeout(ON_ITS_WAY) {
            if let Arrival::Failed(error) = arrival {
                return Err(error);
            }
            if let Arrival::Lost(_) | Arrival::Refused { .. } = arrival {
                break;
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
