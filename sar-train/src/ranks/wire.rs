//! A connection between two ranks: messages in JSON with their length before them, and numbers as they lie in memory.

use super::RanksError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{SockRef, TcpKeepalive};
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Numbers that are sent or received in one piece: 1 MiB.
pub(super) const PIECE: usize = 1 << 18;
/// Length of a message above which it is not from a rank. The longest holds a run's configuration.
pub(super) const LONGEST: u32 = 1 << 20;
/// The same of a greeting.
pub(super) const LONGEST_GREETING: u32 = 1 << 12;
/// After this long without a sign of life the system asks for one, and then again, nine times by default: a machine that
/// was lost while nothing was on its way is noticed after two minutes. While something is, it is noticed when the system
/// gives up sending it again, by default after a quarter of an hour.
const SILENCE: Duration = Duration::from_secs(30);
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Time between looks at what else has happened, while something is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// One end of a connection to another rank.
pub(super) struct Wire {
    stream: TcpStream,
    /// The other rank, as errors name it.
    pub(super) peer: String,
    bytes: Vec<u8>,
}

impl Wire {
    /// Talks to `peer` over a connected stream.
    pub(super) fn new(stream: TcpStream, peer: String) -> Result<Self, RanksError> {
        let wire = Self { stream, peer, bytes: Vec::new() };
        let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(ASK_AGAIN);
        let settle = || -> std::io::Result<()> {
            wire.stream.set_nonblocking(false)?;
            // Messages are sent at once, not gathered.
            wire.stream.set_nodelay(true)?;
            SockRef::from(&wire.stream).set_tcp_keepalive(&keepalive)
        };
        settle().map_err(|source| wire.lost(source))?;
        Ok(wire)
    }

    /// Limits how long sending waits for the other end; `None` is as long as it takes.
    pub(super) fn send_within(&self, time: Option<Duration>) -> Result<(), RanksError> {
        self.stream.set_write_timeout(time).map_err(|source| self.lost(source))
    }

    fn wait_at_most(&self, time: Option<Duration>) -> Result<(), RanksError> {
        self.stream.set_read_timeout(time).map_err(|source| self.lost(source))
    }

    /// Whether a message has begun to arrive within `time`.
    pub(super) fn hears_within(&self, time: Duration) -> Result<bool, RanksError> {
        self.wait_at_most(Some(time))?;
        let heard = match self.stream.peek(&mut [0]) {
            Ok(0) => Err(self.lost(ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(true),
            Err(error) if is_silence(&error) => Ok(false),
            Err(error) => Err(self.lost(error)),
        };
        self.wait_at_most(None)?;
        heard
    }

    /// Sends a message.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), RanksError> {
        let text = serde_json::to_vec(message).map_err(|error| self.lost(error.into()))?;
        let long = || self.lost(Error::new(ErrorKind::InvalidData, "the message is too long"));
        let length = u32::try_from(text.len()).ok().filter(|&n| n <= LONGEST).ok_or_else(long)?;
        // In one piece, so that the other end is not woken twice.
        let whole = [&length.to_le_bytes()[..], &text].concat();
        self.stream.write_all(&whole).map_err(|source| self.lost(source))
    }

    /// Waits for a message.
    pub(super) fn receive<M: DeserializeOwned>(&mut self) -> Result<M, RanksError> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|source| self.lost(source))?;
        self.make_room(length, LONGEST)?;
        self.stream.read_exact(&mut self.bytes).map_err(|source| lost(&self.peer, source))?;
        self.parsed()
    }

    /// Waits for a message of at most `longest` bytes, until `give_up` says so.
    pub(super) fn receive_unless<M: DeserializeOwned>(
        &mut self,
        longest: u32,
        give_up: impl Fn() -> bool,
    ) -> Result<M, RanksError> {
        self.wait_at_most(Some(LOOK))?;
        let mut length = [0; 4];
        fill(&mut self.stream, &mut length, &give_up).map_err(|source| self.lost(source))?;
        self.make_room(length, longest)?;
        let filled = fill(&mut self.stream, &mut self.bytes, &give_up);
        filled.map_err(|source| lost(&self.peer, source))?;
        self.wait_at_most(None)?;
        self.parsed()
    }

    /// Ends the connection so that the other end can read what was sent last: closing it while something is unread
    /// would discard that. Waits for the other end for at most `time`.
    pub(super) fn finish(&mut self, time: Duration) {
        let start = Instant::now();
        let _ = self.stream.shutdown(Shutdown::Write);
        let _ = self.wait_at_most(Some(LOOK));
        self.bytes.resize(4 * PIECE, 0);
        while start.elapsed() < time {
            match self.stream.read(&mut self.bytes) {
                Ok(1..) => {}
                Err(error) if is_silence(&error) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Makes room for a message of this length.
    fn make_room(&mut self, length: [u8; 4], longest: u32) -> Result<(), RanksError> {
        let length = u32::from_le_bytes(length);
        if length > longest {
            return Err(self.unexpected("a message", &format!("{length} bytes")));
        }
        self.bytes.resize(length as usize, 0);
        Ok(())
    }

    fn parsed<M: DeserializeOwned>(&self) -> Result<M, RanksError> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| self.unexpected("a message of this program", &error.to_string()))
    }

    /// Sends numbers. The other end must know how many.
    pub(super) fn send_values(&mut self, values: &[f32]) -> Result<(), RanksError> {
        for piece in values.chunks(PIECE) {
            self.bytes.resize(4 * piece.len(), 0);
            for (bytes, value) in self.bytes.chunks_exact_mut(4).zip(piece) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
            self.stream.write_all(&self.bytes).map_err(|source| lost(&self.peer, source))?;
        }
        Ok(())
    }

    /// Receives as many numbers as `values` has.
    pub(super) fn receive_values(&mut self, values: &mut [f32]) -> Result<(), RanksError> {
        values.chunks_mut(PIECE).try_for_each(|piece| self.receive_piece(piece))
    }

    /// Receives `len` numbers, and hands them to `take` in pieces of [`PIECE`], until it wants no more.
    pub(super) fn receive_pieces(
        &mut self,
        len: usize,
        mut take: impl FnMut(Vec<f32>) -> bool,
    ) -> Result<(), RanksError> {
        let mut received = 0;
        while received < len {
            let mut piece = vec![0.0; PIECE.min(len - received)];
            received += piece.len();
            self.receive_piece(&mut piece)?;
            if !take(piece) {
                break;
            }
        }
        Ok(())
    }

    fn receive_piece(&mut self, piece: &mut [f32]) -> Result<(), RanksError> {
        self.bytes.resize(4 * piece.len(), 0);
        self.stream.read_exact(&mut self.bytes).map_err(|source| lost(&self.peer, source))?;
        for (bytes, value) in self.bytes.as_chunks().0.iter().zip(piece) {
            *value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// The error for a message that does not belong here.
    pub(super) fn unexpected(&self, expected: &str, found: &str) -> RanksError {
        let (expected, found) = (expected.to_owned(), found.to_owned());
        RanksError::Unexpected { peer: self.peer.clone(), expected, found }
    }

    fn lost(&self, source: Error) -> RanksError {
        lost(&self.peer, source)
    }
}

fn lost(peer: &str, source: Error) -> RanksError {
    let ended = matches!(
        source.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
    );
    let source = if ended { Error::new(source.kind(), "its process has ended") } else { source };
    RanksError::Lost { peer: peer.to_owned(), source }
}

/// Reads as many bytes as `bytes` has from a stream whose reads wait for a short time.
fn fill(
    stream: &mut TcpStream,
    bytes: &mut [u8],
    give_up: &impl Fn() -> bool,
) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        if give_up() {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if is_silence(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether waiting ended because nothing came in time, for which the system has two names, or by a signal.
pub(super) fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
