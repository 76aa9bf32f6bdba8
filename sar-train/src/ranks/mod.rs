//! The processes of a data-parallel run, and how they talk to each other.
//!
//! Rank 0 is the process that has the run's folder. It opens a [`Meeting`], which the other ranks [join](Member::join)
//! over TCP, and shares the micro-batches of every step with them ([`crate::train::OtherRanks`]): it sends them the
//! weights, and they send back their gradients. All else, such as checkpoints, held-out loss and pictures, is rank 0's.
//! A rank reads its images itself. What it needs to know of the run, with the tokenizer's weights, comes with the
//! [`Job`] that rank 0 gives it.
//!
//! Gradients and weights go through the memory of the host, in f32.

mod error;
mod leader;
mod meeting;
mod member;
mod message;
mod wire;

pub use error::RanksError;
pub use leader::Leader;
pub use meeting::{Meeting, SECRET};
pub use member::{Job, Member};
pub use message::Found;

#[cfg(test)]
mod tests;
