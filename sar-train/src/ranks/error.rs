//! Errors between the ranks of a run.

use std::io;

/// Why ranks cannot train together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RanksError {
    /// Rank 0 cannot wait for the others at an address.
    #[error(
        "ranks: cannot wait for the others at {address}; give --listen an address of this machine and a free port"
    )]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Nobody answers where rank 0 should be.
    #[error("ranks: nobody answers at {address}; is a run with --ranks N --listen waiting there?")]
    NobodyThere {
        /// The address.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Rank 0 does not take this process in.
    #[error("ranks: not taken in by rank 0 at {address}: {reason}")]
    Refused {
        /// Rank 0's address.
        address: String,
        /// Rank 0's reason.
        reason: String,
    },
    /// A process for a rank cannot be started.
    #[error("ranks: cannot start another process of this program")]
    Start {
        /// The system's reason.
        source: io::Error,
    },
    /// A process that was started for a rank ended before it took part.
    #[error(
        "ranks: a process that was started for a rank has ended with {status} before it took part"
    )]
    EndedEarly {
        /// How it ended.
        status: String,
    },
    /// A rank reports an error of its own.
    #[error("ranks: {peer} has failed: {reason}")]
    Failed {
        /// The rank.
        peer: String,
        /// What it reports.
        reason: String,
    },
    /// The connection to another rank is lost.
    #[error("ranks: the connection to {peer} is lost")]
    Lost {
        /// The rank.
        peer: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The user wants to stop, and a rank that is waited for says nothing.
    #[error("ranks: {peer} has said nothing for {seconds} s since the run was to stop")]
    Silent {
        /// The rank.
        peer: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Another rank sends something that does not belong here.
    #[error("ranks: {peer} sent {found}, where {expected} was expected")]
    Unexpected {
        /// The rank.
        peer: String,
        /// What was expected.
        expected: String,
        /// What was sent.
        found: String,
    },
    /// There are more ranks than micro-batches.
    #[error(
        "ranks: {ranks} ranks share the micro-batches of a step, of which there are {accumulate}; at most as many ranks can \
         take part"
    )]
    TooMany {
        /// Number of ranks, including rank 0.
        ranks: usize,
        /// Number of micro-batches.
        accumulate: usize,
    },
}
