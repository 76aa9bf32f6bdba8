//! A run: its folder, its logs, its progress, and how it stops.

pub mod memory;
mod signals;

pub use signals::{Interrupt, Interrupted};
